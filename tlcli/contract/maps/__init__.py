"""Class activation maps in NumPy: method names, Eigen-CAM, Score-CAM, fusion of several layers."""
