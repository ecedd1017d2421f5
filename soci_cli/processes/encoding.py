"""Frozen dataclasses as JSON, and back: what comes from another process is checked field by field."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from soci_cli.errors import InvalidDataError

_T = TypeVar("_T")

_PLAIN: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (float, int),
    bool: (bool,),
    NoneType: (NoneType,),
}


def encode(value: Any) -> bytes:
    """A dataclass as one line of ASCII. Fields may be dataclasses, paths, tuples, mappings by text."""
    return json.dumps(dataclasses.asdict(value), default=_plain).encode("ascii") + b"\n"


def decode(kind: type[_T], data: bytes | str, what: str) -> _T:
    """The dataclass that `encode` made of it. InvalidDataError, which begins with `what`."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidDataError(f"{what} is no JSON") from None
    return from_plain(kind, value, what)


def from_plain(kind: type[_T], value: object, what: str) -> _T:
    """A dataclass out of a decoded JSON object.

    Every field has a value of its type; one that is missing gets its default, and what is unknown is
    dropped, as other versions may know other fields. InvalidDataError.
    """
    made: _T = _read(kind, value, what)
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(type(value).__name__)


def _read(kind: Any, value: Any, what: str) -> Any:
    if kind in _PLAIN:
        # Not isinstance: a bool is no number here.
        if type(value) in _PLAIN[kind]:
            return value
        raise InvalidDataError(f"{what} is no {kind.__name__}")
    if kind is Path:
        text = _read(str, value, what)
        if "\0" in text:
            raise InvalidDataError(f"{what} is no path")
        return Path(text)
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, value, what)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple:
        return tuple(_read(inner[0], item, what) for item in _read_items(list, value, what))
    if inner and NoneType in inner:  # X | None
        if value is None:
            return None
        (other,) = (one for one in inner if one is not NoneType)
        return _read(other, value, what)
    if origin is not None and issubclass(origin, Mapping):
        pairs = _read_items(dict, value, what).items()
        return {key: _read(inner[1], item, f"{what}: {key}") for key, item in pairs}
    raise TypeError(f"{what}: no way to read {kind}")


def _read_items(kind: type[_T], value: Any, what: str) -> _T:
    if not isinstance(value, kind):
        raise InvalidDataError(f"{what} is no {kind.__name__}")
    return value


def _read_fields(kind: Any, value: Any, what: str) -> Any:
    given = _read_items(dict, value, what)
    hints = get_type_hints(kind)
    fields = {}
    for field in dataclasses.fields(kind):
        if field.name in given:
            fields[field.name] = _read(
                hints[field.name], given[field.name], f"{what}: {field.name}"
            )
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InvalidDataError(f"{what}: {field.name} is missing")
    return kind(**fields)
