"""Containers on images that are not here: what a runtime is told, its start, its end, and what is left."""
