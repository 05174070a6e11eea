"""The ground floor, without PyTorch: a model's description, how an image becomes an input, map methods, errors."""
