"""Prefetch artifacts: the spans of a layer to fetch as soon as it is mounted.

See docs/formats.md, "Prefetch artifact".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from soci_cli.errors import InvalidDataError, NotFoundError, UsageError
from soci_cli.index.model import LAYER_DIGEST, PREFETCH_MEDIA_TYPE
from soci_cli.oci import Descriptor, canonical, digest_of
from soci_cli.ztoc import LayerFiles, Ztoc
from soci_cli.ztoc.folders import IMPLIED, LINKS, SYMLINK
from soci_cli.ztoc.paths import clean_path, show, walk

_VERSION = "1.0"
_LIST_LIMIT = 64 << 20
_MAX_SPANS = 1 << 31  # a span's number has 32 bits


@dataclass(frozen=True)
class PrefetchPlan:
    """The prefetch artifacts of an image: descriptor and bytes of each, in layer order.

    `missing` are the files that no indexed layer has.
    """

    artifacts: tuple[tuple[Descriptor, bytes], ...]
    missing: tuple[str, ...]


def plan_prefetch(
    files: Sequence[str], layers: Sequence[Descriptor], ztocs: Mapping[str, Ztoc]
) -> PrefetchPlan:
    """Finds each file in the topmost layer that has a zTOC and the file; links are followed.

    `ztocs` are the zTOCs of an image by layer digest, `layers` its layers from the lowest to the topmost.
    """
    wanted = {file: clean_path(b"/" + file.encode("utf-8", "surrogateescape")) for file in files}
    found: dict[str, list[tuple[int, int]]] = {}
    left = dict(wanted)
    for layer in reversed(layers):
        ztoc = ztocs.get(layer.digest)
        if ztoc is None or not left:
            continue
        here = set(left.values())
        first: dict[bytes, int] = {}
        for index, name in enumerate(ztoc.files.names()):
            if (name in here or clean_path(name) in here) and clean_path(name) not in first:
                first[clean_path(name)] = index
        for file, path in list(left.items()):
            if path in first and ztoc.files.type_of(first[path]) not in LINKS:
                found.setdefault(layer.digest, []).append(_spans_of(ztoc, first[path]))
                del left[file]
    if left:
        stack = _Stack([(one.digest, ztocs[one.digest]) for one in layers if one.digest in ztocs])
        for file, path in list(left.items()):
            with suppress(NotFoundError):
                digest, entry = stack.find(path)
                found.setdefault(digest, []).append(_spans_of(ztocs[digest], entry))
                del left[file]
    artifacts = []
    for digest in dict.fromkeys(layer.digest for layer in layers):
        if digest in found:
            data = encode_prefetch(merge_spans(found[digest]))
            descriptor = Descriptor(
                PREFETCH_MEDIA_TYPE, digest_of(data), len(data), annotations={LAYER_DIGEST: digest}
            )
            artifacts.append((descriptor, data))
    return PrefetchPlan(tuple(artifacts), tuple(left))


def _spans_of(ztoc: Ztoc, entry: int) -> tuple[int, int]:
    start, size = ztoc.files.stored(ztoc.files.fields(entry))
    return ztoc.spans.span_of(start), max(map(ztoc.spans.span_of, (start, start + size)))


_Place: TypeAlias = tuple[bytes, int, int]
"""A file: its path, the number of its layer, and its entry there."""


class _Stack:
    """The layers that have a zTOC over each other, to follow links by."""

    def __init__(self, layers: Sequence[tuple[str, Ztoc]]) -> None:
        """`layers` are digests and zTOCs, from the lowest to the topmost."""
        self._digests = [digest for digest, _ in layers]
        self._layers = [LayerFiles(ztoc) for _, ztoc in layers]

    def find(self, path: bytes) -> tuple[str, int]:
        """The layer's digest and the entry of the file that a path leads to. NotFoundError."""
        _, number, entry = walk(self, (b"", 0, IMPLIED), path, "the image")
        if entry < 0:
            raise NotFoundError(f"no layer names {show(path)}")
        return self._digests[number], entry

    def look(self, folder: _Place, name: bytes) -> _Place | None:
        """See `Walker.look`."""
        path = folder[0]
        for number, files in reversed(list(enumerate(self._layers))):
            found = files.look(path, name)
            if found is not None:
                return (path + b"/" + name if path else name), number, found[0]
            if name in files.whiteouts(path) or files.is_opaque(path):
                break
        return None

    def is_folder(self, file: _Place) -> bool:
        """See `Walker.is_folder`."""
        return self._layers[file[1]].is_directory(file[2])

    def link_of(self, file: _Place) -> bytes | None:
        """See `Walker.link_of`."""
        files, entry = self._layers[file[1]], file[2]
        return files.linkname(entry) if entry >= 0 and files.type_of(entry) == SYMLINK else None


def merge_spans(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges of spans, both ends included: sorted, and merged where they overlap or touch."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def encode_prefetch(spans: Sequence[tuple[int, int]]) -> bytes:
    """The bytes of a prefetch artifact."""
    return canonical.dumps(
        {
            "version": _VERSION,
            "prefetch_spans": [{"start_span": start, "end_span": end} for start, end in spans],
        }
    )


@dataclass(frozen=True)
class PrefetchArtifact:
    """A prefetch artifact: ranges of spans, both ends included."""

    version: str
    spans: tuple[tuple[int, int], ...]


def decode_prefetch(data: bytes, digest: str) -> PrefetchArtifact:
    """Reads a prefetch artifact. InvalidDataError, with its digest, for what is none."""
    what = f"prefetch artifact {digest}"
    value = canonical.loads(data, what)
    spans = value.get("prefetch_spans") if isinstance(value, dict) else None
    version = value.get("version") if isinstance(value, dict) else None
    if not isinstance(spans, list) or not isinstance(version, str):
        raise InvalidDataError(f"{what} has no version or no list of spans")
    return PrefetchArtifact(version, tuple(_span(span, what) for span in spans))


def span_count(artifact: PrefetchArtifact) -> int:
    """How many spans an artifact names, as the sum of its ranges."""
    return sum(end - start + 1 for start, end in artifact.spans)


def _span(value: object, what: str) -> tuple[int, int]:
    start, end = (
        (value.get("start_span"), value.get("end_span")) if isinstance(value, dict) else (0, -1)
    )
    # bool is an int, but true is no number of a span
    if type(start) is not int or type(end) is not int or not 0 <= start <= end < _MAX_SPANS:
        raise InvalidDataError(f"{what} has a range of spans that cannot be meant")
    return start, end


def read_prefetch_list(path: Path) -> list[str]:
    """The paths in a JSON file that holds a list of strings; UsageError when it does not."""
    try:
        if path.stat().st_size > _LIST_LIMIT:
            raise UsageError(f"{path}: too large for a list of files to prefetch")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{path}: a JSON list of strings is expected")
    return value
