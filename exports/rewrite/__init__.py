"""ONNX side: passes over the finished graph."""
