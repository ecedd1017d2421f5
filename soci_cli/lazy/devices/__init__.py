"""The device of a layer: its archive laid out in blocks, as one file of the cache or while it is made."""
