"""Execution of one model: admission, queueing, batching, the model's thread, and warm-up."""
