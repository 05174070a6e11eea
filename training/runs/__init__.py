"""A run folder: written, read back, resumed, compared."""
