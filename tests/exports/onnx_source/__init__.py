"""Tests of maps for foreign ONNX files."""
