"""JSON as Go's encoding/json writes it, and a strict reader for JSON from outside.

Digests are taken over the written bytes, so they must be the ones the reference implementation
writes: see "SOCI index" in docs/formats.md.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from soci_cli.errors import InvalidDataError, SociError

DEFAULT_LIMIT = 4 * 1024 * 1024
"""The most bytes of one document that `loads` reads; registries refuse larger manifests too."""

_MAX_DEPTH = 100
_MAX_DIGITS = 100
_SURROGATE = re.compile("[\ud800-\udfff]")
# Go escapes these so that JSON can be put into HTML and JavaScript.
_GO_ESCAPES = re.compile("[<>&\u2028\u2029]")

_T = TypeVar("_T")


def dumps(value: object) -> bytes:
    """Compact JSON, byte for byte as Go 1.22 or later marshals the same value.

    Takes mappings with string keys (written in the caller's order), lists, tuples, strings, ints,
    bools and None; TypeError for anything else, floats included. A lone surrogate is written as
    U+FFFD. No newline at the end.
    """
    parts: list[str] = []
    _write(value, parts)
    return "".join(parts).encode()


def sorted_map(items: Mapping[str, _T]) -> dict[str, _T]:
    """The same map in the order in which Go writes maps: by the UTF-8 bytes of the keys."""
    # Code point order and UTF-8 byte order are the same.
    return {key: items[key] for key in sorted(items)}


def loads(
    data: bytes, what: str, limit: int = DEFAULT_LIMIT, kind: type[SociError] = InvalidDataError
) -> object:
    """Decode one JSON document (RFC 8259) of at most `limit` bytes.

    Raises `kind`, starting with `what`, for a document that is too large, not UTF-8, not
    JSON, or nested more than 100 deep, and for NaN, infinities and absurdly long numbers. Of a
    repeated key the last one counts, and a lone surrogate becomes U+FFFD, both as in Go.
    """
    if len(data) > limit:
        raise kind(f"{what}: {len(data)} bytes, at most {limit} are read")
    try:
        text = data.decode("utf-8")
        value: object = json.loads(
            text, parse_constant=_refuse_constant, parse_int=_integer, parse_float=_float
        )
    except UnicodeDecodeError as error:
        raise kind(f"{what}: not UTF-8 text at byte {error.start}") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise kind(f"{what}: not valid JSON at {place}: {error.msg}") from error
    except ValueError as error:
        raise kind(f"{what}: not valid JSON: {error}") from error
    except RecursionError as error:
        raise kind(f"{what}: JSON nested too deep") from error
    if _too_deep(value):
        raise kind(f"{what}: JSON nested too deep, at most {_MAX_DEPTH} levels are read")
    # Only an escape can bring a surrogate into a document that is UTF-8.
    return _mend(value) if re.search(r"\\u[dD][89a-fA-F]", text) else value


def _write(value: object, out: list[str]) -> None:
    if isinstance(value, str):
        out.append(_string(value))
    elif value is None or isinstance(value, bool):
        out.append(json.dumps(value))
    elif isinstance(value, int):
        out.append(int.__repr__(value))
    elif isinstance(value, Mapping):
        separator = "{"
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"JSON keys are strings, not {type(key).__name__}")
            out.append(f"{separator}{_string(key)}:")
            _write(item, out)
            separator = ","
        out.append("}" if value else "{}")
    elif isinstance(value, (list, tuple)):
        separator = "["
        for item in value:
            out.append(separator)
            _write(item, out)
            separator = ","
        out.append("]" if value else "[]")
    else:
        raise TypeError(f"cannot write {type(value).__name__} as canonical JSON")


def _string(text: str) -> str:
    # Python's own escapes for quotes, backslashes and control characters are those of Go 1.22.
    quoted = json.dumps(_SURROGATE.sub("\ufffd", text), ensure_ascii=False)
    return _GO_ESCAPES.sub(lambda match: f"\\u{ord(match[0]):04x}", quoted)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError("a number out of range")
    return value


def _too_deep(value: object) -> bool:
    level = _containers([value])
    for _ in range(_MAX_DEPTH):
        below: list[dict[str, object] | list[object]] = []
        for item in level:
            below += _containers(item.values() if isinstance(item, dict) else item)
        if not below:
            return False
        level = below
    return True


def _containers(items: Iterable[object]) -> list[dict[str, object] | list[object]]:
    return [item for item in items if isinstance(item, (dict, list))]


def _mend(value: object) -> object:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_mend(item) for item in value]
    if isinstance(value, dict):
        return {_SURROGATE.sub("\ufffd", key): _mend(item) for key, item in value.items()}
    return value
