"""Infrastructure that knows nothing of models: threads, streams, addresses, files that reload."""
