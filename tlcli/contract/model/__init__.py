"""Exported models: the ONNX file, its description, and how to run it."""
