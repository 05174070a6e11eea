"""Class activation maps in NumPy: method names, Eigen-CAM, Score-CAM, several layers as one."""
