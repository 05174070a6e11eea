"""From a data set's name or folder to checked, split, batched images."""
