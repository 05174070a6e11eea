"""Reduced precision (int8 and float16): calibration, conversion, and acceptance checks."""
