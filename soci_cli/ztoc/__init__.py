"""What SOCI says of a layer: the zTOC, built in one pass and read back span by span.

A zTOC lists the files of a layer and the places in its compressed stream where reading can begin, so
that one file can be read by fetching a part of the layer. This package knows no images and no
registries; `docs/formats.md` describes the format.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from soci_cli.exports import importing

if TYPE_CHECKING:
    from soci_cli.ztoc.attributes import Node
    from soci_cli.ztoc.builder import (
        BuiltZtoc,
        ByteStream,
        build_ztoc,
    )
    from soci_cli.ztoc.codec import Ztoc, decode_ztoc
    from soci_cli.ztoc.file_tree import FileTree
    from soci_cli.ztoc.layer import LayerFiles
    from soci_cli.ztoc.model import (
        ZTOC_MEDIA_TYPE,
        Checkpoint,
        Compression,
        FileMetadata,
    )
    from soci_cli.ztoc.reader import LayerReader, ReadAt
    from soci_cli.ztoc.toc import TableOfContents
    from soci_cli.ztoc.zinfo import Spans
else:
    __getattr__ = importing(
        __name__,
        {
            "builder": "BuiltZtoc ByteStream build_ztoc",
            "attributes": "Node",
            "codec": "Ztoc decode_ztoc",
            "file_tree": "FileTree",
            "layer": "LayerFiles",
            "model": "ZTOC_MEDIA_TYPE Checkpoint Compression FileMetadata",
            "reader": "LayerReader ReadAt",
            "toc": "TableOfContents",
            "zinfo": "Spans",
        },
    )


__all__ = [
    "ZTOC_MEDIA_TYPE",
    "BuiltZtoc",
    "ByteStream",
    "Checkpoint",
    "Compression",
    "FileMetadata",
    "FileTree",
    "LayerFiles",
    "LayerReader",
    "Node",
    "ReadAt",
    "Spans",
    "TableOfContents",
    "Ztoc",
    "build_ztoc",
    "decode_ztoc",
]
