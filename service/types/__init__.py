"""Requests and responses as plain dataclasses, independent of protobuf and gRPC."""
