"""Requests and answers as plain dataclasses, independent of protobuf and gRPC."""
