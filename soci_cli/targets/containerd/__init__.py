"""containerd as a place: `containerd:IMAGE`. Needs the extra `containerd` (grpcio and protobuf)."""
