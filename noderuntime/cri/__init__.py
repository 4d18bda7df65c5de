"""The gRPC surface of runtime.v1 and the streaming server."""
