"""How fast and how large: see bench.py."""
