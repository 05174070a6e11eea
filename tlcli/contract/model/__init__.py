"""An exported model: its ONNX file, its description, and how it is run."""
