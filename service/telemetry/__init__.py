"""What is recorded of a request, and the metrics, traces and logs made of it."""
