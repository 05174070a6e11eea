"""Exported models: ONNX files, their descriptions, and inference."""
