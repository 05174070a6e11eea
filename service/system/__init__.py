"""Infrastructure that does not know about models: thread pool, ordered streams, addresses, reloading files."""
