"""A layer as an image's manifest and its SOCI index name it: plain data."""

from __future__ import annotations

from dataclasses import dataclass

from soci_cli.oci.descriptor import Descriptor


@dataclass(frozen=True)
class KnownLayer:
    """A layer, its zTOC and its prefetch artifact, where there are such, and its diff ID, if known."""

    descriptor: Descriptor
    ztoc: Descriptor | None = None
    prefetch: Descriptor | None = None
    diff_id: str = ""
