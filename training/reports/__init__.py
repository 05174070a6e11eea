"""Reports of a run: figures, model card, data sheet."""
