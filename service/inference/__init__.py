"""From a request to its answer, for both protocols: no protobuf, no gRPC."""
