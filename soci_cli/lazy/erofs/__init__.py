"""Images for the kernel's own file system: EROFS metadata made of zTOCs, over one device a layer."""
