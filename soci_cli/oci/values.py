"""Typed values out of untrusted documents, and how to show such a value in an error.

As Go's encoding/json does, an absent field and a null are the same: the empty value of its type.
Everything else of a wrong type is an `InvalidDataError` that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping

from soci_cli.errors import InvalidDataError
from soci_cli.text import quote


def describe(value: object) -> str:
    """A short name for any decoded value: the value itself when it is a scalar, else its kind."""
    if isinstance(value, str):
        return quote(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return quote(str(value))[1:-1]
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    return f"a {type(value).__name__}"


def as_object(value: object, where: str) -> dict[str, object]:
    """`value` itself when it is a JSON object."""
    if not isinstance(value, dict):
        raise InvalidDataError(f"{where}: expected an object, got {describe(value)}")
    return value


def text_field(obj: Mapping[str, object], key: str, where: str) -> str:
    """The string at `key`; "" when absent or null."""
    return _text(obj.get(key), f"{where}: {key}")


def size_field(obj: Mapping[str, object], key: str, where: str) -> int:
    """The required number of bytes at `key`: a whole number from 0 that fits a signed int64."""
    value = obj.get(key)
    # True is an int to Python and not to JSON.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise InvalidDataError(f"{where}: {key}: expected a size in bytes, got {describe(value)}")
    return value


def items_field(obj: Mapping[str, object], key: str, where: str, limit: int) -> list[object]:
    """The list at `key`, of at most `limit` items of any type; empty when absent or null."""
    value = obj.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidDataError(f"{where}: {key}: expected a list, got {describe(value)}")
    if len(value) > limit:
        raise InvalidDataError(f"{where}: {key}: {len(value)} items, at most {limit} are read")
    return value


def texts_field(obj: Mapping[str, object], key: str, where: str, limit: int) -> tuple[str, ...]:
    """The list of strings at `key`; empty when absent or null."""
    items = items_field(obj, key, where, limit)
    return tuple(_text(item, f"{where}: {key}[{i}]") for i, item in enumerate(items))


def text_map_field(obj: Mapping[str, object], key: str, where: str) -> dict[str, str]:
    """The map of strings to strings at `key`; empty when absent or null."""
    value = obj.get(key)
    if value is None:
        return {}
    items = as_object(value, f"{where}: {key}").items()
    return {name: _text(item, f"{where}: {key}[{quote(name)}]") for name, item in items}


def _text(value: object, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidDataError(f"{where}: expected a string, got {describe(value)}")
    return value
