"""What people read after a run: figures, model card, data sheet."""
