"""Content descriptors and platforms (OCI image spec, descriptor.md and image-index.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from soci_cli.errors import explaining
from soci_cli.oci.canonical import sorted_map
from soci_cli.oci.digest import parse_digest
from soci_cli.oci.values import (
    as_object,
    size_field,
    text_field,
    text_map_field,
    texts_field,
)

_MAX_TEXTS = 10_000


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on, as the document has it; `platforms.normalize` makes it comparable."""

    architecture: str
    os: str
    os_version: str = ""
    os_features: tuple[str, ...] = ()
    variant: str = ""

    @classmethod
    def from_json(cls, value: object, what: str) -> Platform:
        """From a decoded JSON object; unknown fields are dropped. Raises InvalidDataError."""
        obj = as_object(value, what)
        return cls(
            architecture=text_field(obj, "architecture", what),
            os=text_field(obj, "os", what),
            os_version=text_field(obj, "os.version", what),
            os_features=texts_field(obj, "os.features", what, _MAX_TEXTS),
            variant=text_field(obj, "variant", what),
        )

    def to_json(self) -> dict[str, object]:
        """Fields in the order of docs/formats.md; only architecture and os stay when empty."""
        obj: dict[str, object] = {"architecture": self.architecture, "os": self.os}
        if self.os_version:
            obj["os.version"] = self.os_version
        if self.os_features:
            obj["os.features"] = list(self.os_features)
        if self.variant:
            obj["variant"] = self.variant
        return obj


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Names content by type, digest and size (bytes). `data` is base64 text, kept as it came."""

    media_type: str
    digest: str
    size: int
    urls: tuple[str, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    data: str | None = None
    platform: Platform | None = None
    artifact_type: str = ""

    @classmethod
    def from_json(cls, value: object, what: str) -> Descriptor:
        """From a decoded JSON object; unknown fields are dropped.

        Digest and size must be there. Raises InvalidDataError, starting with `what`.
        """
        obj = as_object(value, what)
        digest = text_field(obj, "digest", what)
        with explaining(f"{what}: digest"):
            parse_digest(digest)
        platform = obj.get("platform")
        return cls(
            media_type=text_field(obj, "mediaType", what),
            digest=digest,
            size=size_field(obj, "size", what),
            urls=texts_field(obj, "urls", what, _MAX_TEXTS),
            annotations=text_map_field(obj, "annotations", what),
            data=text_field(obj, "data", what) or None,
            platform=(
                None if platform is None else Platform.from_json(platform, f"{what}: platform")
            ),
            artifact_type=text_field(obj, "artifactType", what),
        )

    def to_json(self) -> dict[str, object]:
        """Fields in the order of docs/formats.md; empty ones are left out, but the first three."""
        obj: dict[str, object] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.urls:
            obj["urls"] = list(self.urls)
        if self.annotations:
            obj["annotations"] = sorted_map(self.annotations)
        if self.data:
            obj["data"] = self.data
        if self.platform is not None:
            obj["platform"] = self.platform.to_json()
        if self.artifact_type:
            obj["artifactType"] = self.artifact_type
        return obj
