"""Settings of the current process: usable cores, malloc policies, silenced libraries."""
