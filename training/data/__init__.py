"""Data sets: from a name or a folder to checked images, split into parts and loaded in batches."""
