"""All models: which versions are loaded, and who may change that."""
