"""Where images live: layouts in folders and tar files, the local store, and copying between them.

Every place has the base of `protocol.py`. Nothing here knows what an image means beyond
its manifests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from soci_cli.exports import importing

if TYPE_CHECKING:
    from soci_cli.targets.archive import Archive, ArchiveTarget
    from soci_cli.targets.blobs import BlobReader, BytesLike, Writer
    from soci_cli.targets.copy import (
        CopySummary,
        Outcome,
        children_of,
        copy_blob,
        copy_blobs,
        copy_graph,
        may_link,
        read_blob,
        skip_nothing,
    )
    from soci_cli.targets.layout import Layout, WritableLayout
    from soci_cli.targets.places import Place, local_store, open_source, open_target, parse_place
    from soci_cli.targets.protocol import Source, Target
    from soci_cli.targets.store import (
        LOCAL_CONTENT,
        Store,
        StoredArtifact,
        StoredImage,
        StoreTarget,
        Sweep,
    )
else:
    __getattr__ = importing(
        __name__,
        {
            "archive": "Archive ArchiveTarget",
            "blobs": "BlobReader BytesLike Writer",
            "copy": "CopySummary Outcome children_of copy_blob copy_blobs copy_graph may_link read_blob "
            "skip_nothing",
            "layout": "Layout WritableLayout",
            "places": "Place local_store open_source open_target parse_place",
            "protocol": "Source Target",
            "store": "LOCAL_CONTENT Store StoredArtifact StoredImage StoreTarget Sweep",
        },
    )


__all__ = [
    "LOCAL_CONTENT",
    "Archive",
    "ArchiveTarget",
    "BlobReader",
    "BytesLike",
    "CopySummary",
    "Layout",
    "Outcome",
    "Place",
    "Source",
    "Store",
    "StoreTarget",
    "StoredArtifact",
    "StoredImage",
    "Sweep",
    "Target",
    "WritableLayout",
    "Writer",
    "children_of",
    "copy_blob",
    "copy_blobs",
    "copy_graph",
    "local_store",
    "may_link",
    "open_source",
    "open_target",
    "parse_place",
    "read_blob",
    "skip_nothing",
]
