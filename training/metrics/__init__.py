"""Evaluation metrics: accuracy, F1, calibration, statistical significance and temperature scaling."""
