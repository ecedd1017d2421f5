"""Prefetch artifacts: the spans of a layer to fetch as soon as it is mounted.

See docs/formats.md, "Prefetch artifact".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from soci_cli.errors import InvalidDataError, UsageError
from soci_cli.index.model import LAYER_DIGEST, PREFETCH_MEDIA_TYPE
from soci_cli.oci import Descriptor, canonical, digest_of
from soci_cli.ztoc import Ztoc
from soci_cli.ztoc.reader import clean_path

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
    """Finds each file in the topmost layer that has a zTOC and the file.

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
            if path in first:
                entry = ztoc.files[first[path]]
                start = ztoc.spans.span_of(entry.uncompressed_offset)
                end = ztoc.spans.span_of(entry.uncompressed_offset + entry.uncompressed_size)
                found.setdefault(layer.digest, []).append((start, max(start, end)))
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
