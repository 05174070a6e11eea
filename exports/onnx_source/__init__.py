"""Maps for ONNX classifiers that already exist: graph analysis, gradient rules on ONNX operators, and map formulas, without PyTorch."""
