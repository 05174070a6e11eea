"""Networks: backbones and heads, their weights, and their layers with spatial maps."""
