"""One model in execution: its queue, admission, batching, the thread that runs it, and warm-up."""
