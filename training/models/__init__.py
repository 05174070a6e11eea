"""The network: backbone and head, its weights, and its layers with spatial maps."""
