"""PyTorch side: the gradient traced into plain operators, and the formulas of the map methods."""
