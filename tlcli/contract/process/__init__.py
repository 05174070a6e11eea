"""Process-level settings: usable CPU cores, malloc policies, and silenced libraries."""
