"""Request records, and the metrics, traces and logs derived from them."""
