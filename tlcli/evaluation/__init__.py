"""Evaluation of exported models and their maps, run with ONNX Runtime on the same file that is served."""
