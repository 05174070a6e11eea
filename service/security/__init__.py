"""TLS certificates, gRPC credentials and access tokens."""
