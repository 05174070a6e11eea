"""Server settings, read from a file, the environment and flags."""
