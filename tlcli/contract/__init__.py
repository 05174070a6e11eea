"""The ground floor, without PyTorch: a model's description, how a picture becomes an input, map methods, errors."""
