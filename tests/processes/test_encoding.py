"""Dataclasses as JSON, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import InvalidDataError
from soci_cli.processes.encoding import decode, encode


@dataclass(frozen=True)
class Inner:
    name: str
    size: int = 1


@dataclass(frozen=True)
class Outer:
    text: str
    path: Path
    inner: Inner
    seconds: float = 1.0
    flag: bool = False
    maybe: Path | None = None
    many: tuple[Inner, ...] = ()
    by_name: Mapping[str, Inner] = field(default_factory=dict)


TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=()))
INNER = st.builds(Inner, TEXT, st.integers())
PATH = TEXT.map(Path)


@given(
    st.builds(
        Outer,
        TEXT,
        PATH,
        INNER,
        st.floats(allow_nan=False),
        st.booleans(),
        st.none() | PATH,
        st.lists(INNER, max_size=3).map(tuple),
        st.dictionaries(TEXT, INNER, max_size=3),
    )
)
def test_what_was_encoded_is_decoded(value: Outer) -> None:
    data = encode(value)
    assert data.isascii()
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    assert decode(Outer, data, "it") == value


GOOD = {"text": "a", "path": "/b", "inner": {"name": "c"}}


def test_what_is_missing_or_unknown() -> None:
    """Other versions may have other fields."""
    assert decode(Outer, json.dumps({**GOOD, "new": 1}), "it") == Outer("a", Path("/b"), Inner("c"))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"text": 1}, "it: text is no str"),
        ({"text": None}, "it: text is no str"),
        ({"path": "a\0b"}, "it: path is no path"),
        ({"path": 5}, "it: path is no str"),
        ({"inner": "c"}, "it: inner is no dict"),
        ({"inner": {}}, "it: inner: name is missing"),
        ({"inner": {"name": "c", "size": True}}, "it: inner: size is no int"),
        ({"inner": {"name": "c", "size": 1.0}}, "it: inner: size is no int"),
        ({"seconds": "1"}, "it: seconds is no float"),
        ({"flag": 1}, "it: flag is no bool"),
        ({"maybe": 1}, "it: maybe is no str"),
        ({"many": {}}, "it: many is no list"),
        ({"many": [1]}, "it: many is no dict"),
        ({"by_name": []}, "it: by_name is no dict"),
        ({"by_name": {"x": {"name": 1}}}, "it: by_name: x: name is no str"),
    ],
)
def test_what_is_wrong(changed: dict[str, object], problem: str) -> None:
    with pytest.raises(InvalidDataError) as raised:
        decode(Outer, json.dumps({**GOOD, **changed}), "it")
    assert str(raised.value) == problem


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"1"])
def test_what_is_no_object(data: bytes) -> None:
    with pytest.raises(InvalidDataError, match=r"^it is no "):
        decode(Outer, data, "it")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*GOOD, "many", "by_name", "maybe"]), JSON, max_size=3))
def test_anything(changed: dict[str, object]) -> None:
    try:
        decode(Outer, json.dumps({**GOOD, **changed}), "it")
    except InvalidDataError as error:
        assert str(error).startswith("it")
