"""Base layer without PyTorch: model descriptions, image decoding and preprocessing, map methods, errors."""
