"""How good the maps of an exported model are: measured on ONNX Runtime, on what is served."""
