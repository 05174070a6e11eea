"""The gRPC edge: servicers, interceptors, health, reflection."""
