"""Infrastructure that is independent of models: thread pool, ordered streams, addresses, file limits and reloading files."""
