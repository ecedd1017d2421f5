"""Layers of 16 spans, of which each byte is known."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from functools import lru_cache

from soci_cli.lazy import Fetching, LayerBytes, LayerSpans
from soci_cli.lazy.background import BackgroundOptions
from tests.lazy.tools import (
    Place,
    eventually,
    read_now,
    spans_of,
)

SPAN = 1 << 20
COUNT = 16
AT_ONCE = BackgroundOptions(silence_period=0, fetch_period=0.001)


@lru_cache
def layer(seed: int = 0, size: int = COUNT * SPAN) -> bytes:
    """A plain archive, of 16 spans, as far as anybody looks into it: nobody does."""
    header = bytearray(512)
    header[:1] = b"x"
    header[100:108] = b"0000644\0"
    header[108:124] = b"0000000\0" * 2
    header[124:136] = b"%011o\0" % (size - 1024 - 512)
    header[136:148] = b"%011o\0" % 0
    header[148:156] = b" " * 8
    header[156:157] = b"0"
    header[257:265] = b"ustar\x0000"
    header[148:156] = b"%06o\0 " % sum(header)
    content = random.Random(seed).randbytes(size - 1024 - 512)
    return bytes(header) + content + bytes(1024)


def spans_at(fetching: Fetching, seed: int = 0) -> tuple[LayerSpans, Place]:
    return spans_of(layer(seed), fetching, span_size=SPAN)


def read(spans: LayerSpans, number: int, seed: int = 0, file: bytes = b"") -> None:
    """Reads some of a span, which must be right."""
    at = number * SPAN + 1000
    assert spans.read(at, 5000, lambda: file) == layer(seed)[at : at + 5000]


def read_all(spans: LayerSpans, number: int, file: bytes = b"") -> None:
    """Reads a whole span, which must be right."""
    at = number * SPAN
    assert spans.read(at, SPAN, lambda: file) == layer()[at : at + SPAN]


def can_read_now(spans: LayerSpans, number: int, file: bytes = b"", size: int = 5000) -> bool:
    """Whether the first bytes of a span are here; what is read of it must be right."""
    at = number * SPAN
    data = read_now(spans, at, size, lambda: file)
    assert data is None or data == layer()[at : at + size]
    return data is not None


def quiet(spans: LayerSpans) -> None:
    eventually(lambda: spans.is_quiet)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@dataclass(frozen=True)
class Layer:
    archive: LayerBytes
