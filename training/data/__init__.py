"""Data sets: find, download, check and split images, and load them in batches."""
