"""What the kernel does with mounts: system calls, what is mounted where. Nothing here knows images."""
