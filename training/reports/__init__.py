"""Reports about a training run: figures, HTML report, model card and data sheet."""
