"""Numbers about predictions: accuracy, F1, calibration, significance, temperature."""
