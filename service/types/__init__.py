"""Requests and answers as plain dataclasses, without protobuf or gRPC."""
