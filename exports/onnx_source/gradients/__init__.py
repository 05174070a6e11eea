"""Gradient of a foreign graph: backward pass, and one rule per operator."""
