"""Python clients and the load generator."""
