"""The snapshotter: a proxy plugin of containerd, for layers that stay where they are."""
