"""Inference for both protocols, from query to response, independent of protobuf and gRPC."""
