"""From a request to its answer, for both protocols; without protobuf and gRPC."""
