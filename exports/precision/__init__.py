"""int8 and float16: calibration, conversion, acceptance."""
