"""index.json and oci-layout: what an OCI image layout says of its images.

Shared by layouts in folders, in tar files and in the local store. See "image-layout.md" of the OCI
image specification, sections "oci-layout file" and "index.json file". Nothing here touches a disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from soci_cli.errors import InvalidDataError, NotFoundError, UsageError
from soci_cli.oci.canonical import loads
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import digest_of
from soci_cli.oci.manifest import Index, encode
from soci_cli.oci.media_types import OCI_INDEX, is_manifest
from soci_cli.text import brief

REF_NAME = "org.opencontainers.image.ref.name"
CONTAINERD_NAME = "io.containerd.image.name"
MARKER = b'{"imageLayoutVersion":"1.0.0"}'
MARKER_LIMIT = 64 * 1024
INDEX_LIMIT = 16 * 1024 * 1024
_NAMES_SHOWN = 10


@dataclass(frozen=True)
class IndexJson:
    """A read index.json: the JSON object as it is, and its entries."""

    document: Mapping[str, Any]
    entries: tuple[Descriptor, ...]


def empty_index() -> IndexJson:
    """The index.json of a layout without images."""
    return IndexJson({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}, ())


def check_marker(data: bytes, place: str) -> None:
    """InvalidDataError unless `data`, the file oci-layout, is of a 1.x layout."""
    document = loads(data, f"oci-layout of {place}")
    version = document.get("imageLayoutVersion") if isinstance(document, dict) else None
    if not isinstance(version, str) or not version.startswith("1."):
        raise InvalidDataError(
            f"{place} is no OCI image layout of version 1: its file oci-layout says "
            f"{brief(repr(version), 40)}",
            place=place,
        )


def parse_index_json(data: bytes, place: str) -> IndexJson:
    """Read index.json. Raises InvalidDataError for anything that is not a list of descriptors."""
    what = f"index.json of {place}"
    document = loads(data, what, INDEX_LIMIT)
    if not isinstance(document, dict) or document.get("schemaVersion") != 2:
        raise InvalidDataError(f"{what} is no image index of schema version 2")
    manifests = document.get("manifests")
    if manifests is None:
        manifests = []
    if not isinstance(manifests, list):
        raise InvalidDataError(f"{what}: manifests is no list")
    return IndexJson(document, tuple(Descriptor.from_json(entry, what) for entry in manifests))


def flat_index(index: IndexJson) -> bytes | None:
    """The image index that a flat list of platforms stands for, None when this is no such list.

    go-containerregistry writes a multi-platform image as the entries of index.json themselves: at
    least two manifests, all with a platform, none with a name.
    """
    if len(index.entries) < 2:
        return None
    for entry in index.entries:
        named = REF_NAME in entry.annotations or CONTAINERD_NAME in entry.annotations
        if named or entry.platform is None or not is_manifest(entry.media_type):
            return None
    return encode(
        Index(
            schema_version=2,
            media_type=OCI_INDEX,
            artifact_type="",
            manifests=index.entries,
            subject=None,
            annotations={},
        )
    )


def resolve_entry(index: IndexJson, tag: str | None, place: str) -> Descriptor:
    """What TAG means, where `@DIGEST` chooses by digest and None is the only image.

    Raises NotFoundError when there is no such entry, or several that differ.
    """
    flat = flat_index(index)
    if flat is not None:
        root = Descriptor(OCI_INDEX, digest_of(flat), len(flat))
        if tag is None or tag == f"@{root.digest}":
            return root
    positions = _positions(index, tag)
    if tag is None and not positions:
        positions = list(range(len(index.entries)))  # nothing but artifacts
    if len({index.entries[position].digest for position in positions}) == 1:
        return without_names(index.entries[positions[0]])
    if not index.entries:
        raise NotFoundError(f"{place} holds no image", place=place)
    if tag is None:
        raise NotFoundError(
            f"{place} holds several images, so add a tag; there are {entry_names(index)}",
            place=place,
        )
    if positions:
        raise NotFoundError(
            f"{place} holds several images with the tag {brief(tag)}; choose one by its full name "
            f"or as @DIGEST; there are {entry_names(index)}",
            place=place,
        )
    raise NotFoundError(f"{place} holds no such image; there are {entry_names(index)}", place=place)


def without_names(descriptor: Descriptor) -> Descriptor:
    """The descriptor without the annotations that name an entry of index.json."""
    annotations = {
        key: value
        for key, value in descriptor.annotations.items()
        if key not in (REF_NAME, CONTAINERD_NAME)
    }
    return replace(descriptor, annotations=annotations)


def entry_names(index: IndexJson) -> str:
    """The tags of a layout for a message, at most ten of them; untagged entries by digest."""
    names = [
        brief(entry.annotations.get(REF_NAME) or f"@{entry.digest}", 100)
        for entry in index.entries[:_NAMES_SHOWN]
    ]
    more = len(index.entries) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def check_taggable(index: IndexJson, tag: str | None, place: str) -> None:
    """UsageError when `put_entry` could not know which entry to replace."""
    _replaced(index, tag, place)


def put_entry(
    index: IndexJson, tag: str | None, names: Mapping[str, str], descriptor: Descriptor, place: str
) -> bytes:
    """index.json in which TAG means `descriptor`; other entries and unknown fields stay.

    The entry that had this tag is replaced in its position and keeps its names. Without a tag that
    is the only entry, the flat list of platforms, or the only entry without a name. `names` are the
    annotations that name a new entry. UsageError when several entries could be meant.
    """
    positions = _replaced(index, tag, place)
    kept: dict[str, str] = {}
    if len(positions) == 1:
        old = index.entries[positions[0]].annotations
        kept = {key: old[key] for key in (REF_NAME, CONTAINERD_NAME) if old.get(key)}
    annotations = {**without_names(descriptor).annotations, **(kept or names)}
    entry = replace(descriptor, annotations=annotations).to_json()
    manifests = list(index.document.get("manifests") or ())
    if positions:
        manifests[positions[0]] = entry
        for position in reversed(positions[1:]):
            del manifests[position]
    else:
        manifests.append(entry)
    return encode_document(index, manifests)


def remove_entries(index: IndexJson, tag: str) -> bytes | None:
    """index.json without the entries named TAG, None when there is none."""
    positions = set(_positions(index, tag))
    if not positions:
        return None
    manifests = index.document.get("manifests") or ()
    kept = [entry for position, entry in enumerate(manifests) if position not in positions]
    return encode_document(index, kept)


def encode_document(index: IndexJson, manifests: list[Any]) -> bytes:
    """index.json with these entries and the other fields as they were."""
    document = {**index.document, "manifests": manifests}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def entry_naming(index: IndexJson, tag: str | None = None) -> dict[str, str]:
    """The naming annotations of the entry that TAG means; empty when there is no single one."""
    positions = _positions(index, tag)
    if len(positions) != 1:
        return {}
    annotations = index.entries[positions[0]].annotations
    return {key: annotations[key] for key in (REF_NAME, CONTAINERD_NAME) if annotations.get(key)}


def check_tag_for_writing(tag: str | None, place: str) -> None:
    """UsageError for `@DIGEST`, which cannot be made to mean something else."""
    if tag is not None and tag.startswith("@"):
        raise UsageError("an image is written under a tag, not under a digest", place=place)


def _positions(index: IndexJson, tag: str | None) -> list[int]:
    """The entries that TAG may mean: by name, else by containerd's name, else by its tag."""
    if tag is None:
        return _where(index, lambda entry: not _is_beside(entry))
    if tag.startswith("@"):
        return _where(index, lambda entry: entry.digest == tag[1:])
    return (
        _where(index, lambda entry: entry.annotations.get(REF_NAME) == tag)
        or _where(index, lambda entry: entry.annotations.get(CONTAINERD_NAME) == tag)
        or _where(index, lambda entry: _tag_part(entry.annotations.get(CONTAINERD_NAME)) == tag)
    )


def add_beside(index: IndexJson, referrer: Descriptor) -> bytes:
    """index.json with a manifest that refers to an image, and has no name."""
    entries = list(index.document.get("manifests") or ())
    if referrer.digest not in [entry.digest for entry in index.entries]:
        entries.append(without_names(referrer).to_json())
    return encode_document(index, entries)


def _is_beside(entry: Descriptor) -> bool:
    """Whether an entry is no image, but an artifact without a name, such as what refers to one."""
    named = entry.annotations.get(REF_NAME) or entry.annotations.get(CONTAINERD_NAME)
    return bool(entry.artifact_type) and not named


def _where(index: IndexJson, wanted: Callable[[Descriptor], bool]) -> list[int]:
    return [position for position, entry in enumerate(index.entries) if wanted(entry)]


def _tag_part(name: str | None) -> str | None:
    last = (name or "").rpartition("/")[2].partition("@")[0]
    return last.partition(":")[2] or None


def _replaced(index: IndexJson, tag: str | None, place: str) -> list[int]:
    """The entries that a new one takes the place of."""
    if tag is None and flat_index(index) is None and len(_positions(index, None)) > 1:
        unnamed = _where(
            index,
            lambda e: not {REF_NAME, CONTAINERD_NAME} & e.annotations.keys() and not _is_beside(e),
        )
        if len(unnamed) == 1:
            return unnamed
        raise UsageError(
            f"{place} holds several images, so say which tag to write; "
            f"there are {entry_names(index)}",
            place=place,
        )
    positions = _positions(index, tag)
    meant = [index.entries[position] for position in positions]
    if tag is not None and len({(e.digest, e.annotations.get(CONTAINERD_NAME)) for e in meant}) > 1:
        raise UsageError(
            f"{place} holds several images with the tag {brief(tag)}, so choose one by its full "
            f"name; there are {entry_names(index)}",
            place=place,
        )
    return positions
