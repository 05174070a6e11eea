"""Evaluation of exported models and their maps, measured with ONNX Runtime on the file that is served."""
