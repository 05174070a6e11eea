"""PyTorch side of the export: tracing of gradients into plain operators, and the formulas of the map methods."""
