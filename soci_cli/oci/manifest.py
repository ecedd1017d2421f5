"""Image manifests, indexes and the few facts of an image config that are needed.

Sources: OCI image spec, manifest.md, image-index.md and config.md. Field orders are those of
docs/formats.md, so that what was parsed and not changed is written as the reference writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from soci_cli.errors import InvalidDataError, explaining
from soci_cli.oci import media_types
from soci_cli.oci.canonical import dumps, loads, sorted_map
from soci_cli.oci.descriptor import Descriptor, Platform
from soci_cli.oci.digest import parse_digest
from soci_cli.oci.values import (
    as_object,
    describe,
    items_field,
    text_field,
    text_map_field,
    texts_field,
)
from soci_cli.text import quote

MAX_ENTRIES = 10_000
"""The most layers of a manifest, manifests of an index, or diff IDs of a config."""

CONFIG_LIMIT = 16 * 1024 * 1024
"""The most bytes of a config, which grows with its history and labels as a manifest does not."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest, or any other artifact that is written as one."""

    schema_version: int
    media_type: str
    artifact_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Index:
    """An image index, or a Docker manifest list."""

    schema_version: int
    media_type: str
    artifact_type: str
    manifests: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)


def parse_manifest(data: bytes, what: str, media_type: str = "") -> Manifest:
    """Decode an OCI or Docker (schema 2) manifest.

    `media_type` is what the descriptor or the registry said it is; "" when nobody did. `what`
    starts every error, which is an InvalidDataError: broken JSON, a wrong type, no config, more
    than `MAX_ENTRIES` layers, a Docker schema 1 manifest, or a document that also reads as an index
    (OCI image spec, manifest.md: the two must not be confused).
    """
    if media_type and not media_types.is_manifest(media_type):
        raise InvalidDataError(f"{what}: {quote(media_type)} is not an image manifest")
    obj = _document(data, what)
    if obj.get("manifests") is not None or media_types.is_index(text_field(obj, "mediaType", what)):
        raise InvalidDataError(f"{what}: expected an image manifest, found an image index")
    if obj.get("config") is None:
        raise InvalidDataError(f"{what}: no config, so this is not an image manifest")
    return Manifest(
        schema_version=2,
        media_type=text_field(obj, "mediaType", what),
        artifact_type=text_field(obj, "artifactType", what),
        config=Descriptor.from_json(obj["config"], f"{what}: config"),
        layers=_descriptors(obj, "layers", what),
        subject=_subject(obj, what),
        annotations=text_map_field(obj, "annotations", what),
    )


def parse_index(data: bytes, what: str, media_type: str = "") -> Index:
    """Decode an OCI index or a Docker manifest list; arguments and errors as `parse_manifest`."""
    if media_type and not media_types.is_index(media_type):
        raise InvalidDataError(f"{what}: {quote(media_type)} is not an image index")
    obj = _document(data, what)
    if (
        obj.get("config") is not None
        or obj.get("layers") is not None
        or media_types.is_manifest(text_field(obj, "mediaType", what))
    ):
        raise InvalidDataError(f"{what}: expected an image index, found an image manifest")
    return Index(
        schema_version=2,
        media_type=text_field(obj, "mediaType", what),
        artifact_type=text_field(obj, "artifactType", what),
        manifests=_descriptors(obj, "manifests", what),
        subject=_subject(obj, what),
        annotations=text_map_field(obj, "annotations", what),
    )


def encode(document: Manifest | Index) -> bytes:
    """The canonical bytes: empty fields are left out, but config and the list of entries."""
    obj: dict[str, object] = {"schemaVersion": document.schema_version}
    if document.media_type:
        obj["mediaType"] = document.media_type
    if document.artifact_type:
        obj["artifactType"] = document.artifact_type
    if isinstance(document, Manifest):
        obj["config"] = document.config.to_json()
        obj["layers"] = [layer.to_json() for layer in document.layers]
    else:
        obj["manifests"] = [manifest.to_json() for manifest in document.manifests]
    if document.subject is not None:
        obj["subject"] = document.subject.to_json()
    if document.annotations:
        obj["annotations"] = sorted_map(document.annotations)
    return dumps(obj)


def parse_config_platform(data: bytes, what: str) -> Platform:
    """The platform that an image config states, not normalized; absent fields are "".

    Raises InvalidDataError, starting with `what`.
    """
    return Platform.from_json(loads(data, what, CONFIG_LIMIT), what)


def parse_config_diff_ids(data: bytes, what: str) -> tuple[str, ...]:
    """The digests of an image config's uncompressed layers, lowest first; empty without a rootfs.

    Raises InvalidDataError, starting with `what`.
    """
    rootfs = as_object(loads(data, what, CONFIG_LIMIT), what).get("rootfs")
    if rootfs is None:
        return ()
    where = f"{what}: rootfs"
    diff_ids = texts_field(as_object(rootfs, where), "diff_ids", where, MAX_ENTRIES)
    with explaining(f"{where}: diff_ids"):
        return tuple(parse_digest(diff_id) for diff_id in diff_ids)


def _document(data: bytes, what: str) -> dict[str, object]:
    obj = as_object(loads(data, what), what)
    version = obj.get("schemaVersion")
    if obj.get("fsLayers") is not None or (version == 1 and not isinstance(version, bool)):
        raise InvalidDataError(
            f"{what}: a Docker schema 1 manifest, which is not supported; "
            "push the image again with a current tool"
        )
    if not isinstance(version, int) or version != 2:
        raise InvalidDataError(f"{what}: schemaVersion: expected 2, got {describe(version)}")
    return obj


def _descriptors(obj: Mapping[str, object], key: str, what: str) -> tuple[Descriptor, ...]:
    items = items_field(obj, key, what, MAX_ENTRIES)
    return tuple(Descriptor.from_json(item, f"{what}: {key}[{i}]") for i, item in enumerate(items))


def _subject(obj: Mapping[str, object], what: str) -> Descriptor | None:
    value = obj.get("subject")
    return None if value is None else Descriptor.from_json(value, f"{what}: subject")
