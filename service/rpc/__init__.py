"""Server over gRPC: servicers, interceptors, health, reflection."""
