"""Mounted images: the server of each, what is written down of it, asking it, and ending it."""
