"""ONNX side of the export: rewriting passes over the graph that PyTorch's exporter wrote."""
