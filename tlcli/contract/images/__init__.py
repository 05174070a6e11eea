"""Image handling: file search, decoding, preprocessing for a network, and drawing of maps."""
