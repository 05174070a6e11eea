"""Python clients for a server, and the load generator."""
