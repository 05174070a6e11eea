"""Inference for both protocols, from query to answer, independent of protobuf and gRPC."""
