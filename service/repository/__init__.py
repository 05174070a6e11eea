"""Model repository of a server: loaded versions, the version policy, and load and unload control."""
