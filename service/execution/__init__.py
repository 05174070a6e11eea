"""One model: queue, admission, batching, the thread that runs it, warm-up."""
