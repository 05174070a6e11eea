"""Records of requests, and the metrics, traces and logs made from them."""
