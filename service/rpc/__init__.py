"""gRPC server: servicers, interceptors, health checks and reflection."""
