"""Foreign ONNX graph: reader, upgrade to a current opset, observed shapes, and writer of further nodes."""
