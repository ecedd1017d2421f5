"""Reading an image that is somewhere else: only the spans that hold what is read are fetched.

`open_image` gives the files of one platform as a container would see them. Layers that have a zTOC stay
where they are; other layers are unpacked into the cache once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from soci_cli.exports import importing
from soci_cli.user_folders import cache_root

if TYPE_CHECKING:
    from soci_cli.lazy.cache import Cache
    from soci_cli.lazy.fetcher import Fetcher
    from soci_cli.lazy.fetching import Fetching
    from soci_cli.lazy.layer_bytes import LayerBytes
    from soci_cli.lazy.lazy_layer import LazyLayer
    from soci_cli.lazy.merged import File, LazyImage
    from soci_cli.lazy.opening import OpenOptions, open_image
    from soci_cli.lazy.spans import LayerSpans
else:
    __getattr__ = importing(
        __name__,
        {
            "cache": "Cache",
            "fetcher": "Fetcher",
            "fetching": "Fetching",
            "lazy_layer": "LazyLayer",
            "layer_bytes": "LayerBytes",
            "merged": "File LazyImage",
            "opening": "OpenOptions open_image",
            "spans": "LayerSpans",
        },
    )


__all__ = [
    "Cache",
    "Fetcher",
    "Fetching",
    "File",
    "LayerBytes",
    "LayerSpans",
    "LazyImage",
    "LazyLayer",
    "OpenOptions",
    "cache_root",
    "open_image",
]
