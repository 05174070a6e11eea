"""Settings of a server, and their sources: a file, the environment and flags."""
