from __future__ import annotations

import contextlib
import json

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import InvalidDataError, SociError
from soci_cli.oci.canonical import dumps, loads, sorted_map
from tests.oci.strategies import json_values, scalars, texts

values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({}, "{}"),
        ([], "[]"),
        ((1, "a"), '[1,"a"]'),
        ({"b": 1, "a": [True, False, None]}, '{"b":1,"a":[true,false,null]}'),
        ("<a&b>", r'"\u003ca\u0026b\u003e"'),
        ("\u2028\u2029", r'"\u2028\u2029"'),
        ('"\\/', r'"\"\\/"'),
        ("\n\r\t\b\f", r'"\n\r\t\b\f"'),
        ("\x00\x0b\x1f", r'"\u0000\u000b\u001f"'),
        ("\x7f\x80", '"\x7f\x80"'),
        ("naïve 名前 🐳", '"naïve 名前 🐳"'),
        ("a\ud800b", '"a\ufffdb"'),
        ({"<\udfff": -7}, '{"\\u003c\ufffd":-7}'),
        (2**63 - 1, "9223372036854775807"),
    ],
)
def test_dumps(value: object, text: str) -> None:
    assert dumps(value) == text.encode()


@pytest.mark.parametrize("value", [1.5, {1: 2}, {None: 1}, b"x", {"a": {1}}, object()])
def test_dumps_refuses(value: object) -> None:
    with pytest.raises(TypeError):
        dumps(value)


@given(values)
def test_round_trip(value: object) -> None:
    data = dumps(value)
    assert loads(data, "x") == value
    assert json.loads(data) == value
    assert dumps(loads(data, "x")) == data
    assert not set(b"<>&\n") & set(data)


@given(json_values)
def test_loads_reads_what_json_writes(value: object) -> None:
    assert loads(json.dumps(value).encode(), "x") == value
    assert loads(json.dumps(value, indent=1, ensure_ascii=False).encode(), "x") == value


@given(st.dictionaries(texts, st.integers(), max_size=6))
def test_sorted_map(items: dict[str, int]) -> None:
    ordered = sorted_map(items)
    assert ordered == items
    assert list(ordered) == sorted(items, key=lambda key: key.encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{}{}",
        b"{'a':1}",
        b'{"a":NaN}',
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"-1e999",
        b"1" * 101,
        b"1" * 5000,
        b"01",
        b'"\xff"',
        b'"\x00"',
        b'"a\nb"',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        "{}".encode("utf-32"),
        b"[" * 101 + b"]" * 101,
        b'{"a":' * 101 + b"1" + b"}" * 101,
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_loads_refuses(data: bytes) -> None:
    with pytest.raises(InvalidDataError, match=r"^manifest of x: ") as info:
        loads(data, "manifest of x")
    assert "\n" not in str(info.value)


def test_loads_limits() -> None:
    assert loads(b"[" * 100 + b"]" * 100, "x")
    assert loads(b"[" * 100 + b"1" + b"]" * 100, "x")
    assert loads(b"9" * 100, "x") == int("9" * 100)
    assert loads(b"[1]", "x", limit=3) == [1]
    with pytest.raises(InvalidDataError, match="4 bytes, at most 3"):
        loads(b"[12]", "x", limit=3)
    with pytest.raises(InvalidDataError, match="at most 4194304"):
        loads(b" " * (4 * 1024 * 1024) + b"1", "x")


def test_loads_as_go() -> None:
    assert loads(b'{"a":1,"a":2}', "x") == {"a": 2}
    assert loads(rb'{"\ud800k":["\udc00","\ud83d\udc33"]}', "x") == {"\ufffdk": ["\ufffd", "🐳"]}


@given(st.binary(max_size=60) | st.text('{}[]",:\\udD8 0123eE-+.', max_size=60).map(str.encode))
def test_loads_raises_nothing_else(data: bytes) -> None:
    # A float is read and not written.
    with contextlib.suppress(SociError, TypeError):
        dumps(loads(data, "x"))
