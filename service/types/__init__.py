"""Requests and answers as plain dataclasses: no protobuf, no gRPC."""
