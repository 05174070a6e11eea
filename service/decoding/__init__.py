"""Images of requests, decoded within a memory budget in threads or in processes."""
