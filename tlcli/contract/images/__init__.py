"""Image files: searching folders, decoding, preprocessing to a network's input, drawing maps."""
