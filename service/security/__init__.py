"""TLS certificates and tokens."""
