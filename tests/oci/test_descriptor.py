from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from soci_cli.errors import InvalidDataError
from soci_cli.oci import Descriptor, Platform
from soci_cli.oci.canonical import dumps, loads
from tests.oci.strategies import descriptors, json_values

DIGEST = "sha256:" + "ab" * 32


def minimal(**fields: Any) -> dict[str, Any]:
    return {"mediaType": "m", "digest": DIGEST, "size": 3} | fields


def test_order_and_empties() -> None:
    full = {
        "mediaType": "m",
        "digest": DIGEST,
        "size": 3,
        "urls": ["u"],
        "annotations": {"a": "1", "b": "2"},
        "data": "YWJj",
        "platform": {
            "architecture": "amd64",
            "os": "windows",
            "os.version": "10.0",
            "os.features": ["win32k"],
            "variant": "v1",
        },
        "artifactType": "t",
    }
    reversed_keys = dict(reversed(full.items())) | {"annotations": {"b": "2", "a": "1"}, "x": 1}
    assert dumps(Descriptor.from_json(reversed_keys, "d").to_json()) == dumps(full)
    empty = minimal(urls=[], annotations={}, data="", platform=None, artifactType="")
    assert Descriptor.from_json(empty, "d") == Descriptor("m", DIGEST, 3)
    assert list(Descriptor("", DIGEST, 0).to_json()) == ["mediaType", "digest", "size"]
    assert Platform("", "").to_json() == {"architecture": "", "os": ""}


def test_missing_media_type_and_nulls() -> None:
    got = Descriptor.from_json(
        {"mediaType": None, "digest": DIGEST, "size": 0, "urls": None, "annotations": {"a": None}},
        "d",
    )
    assert got == Descriptor("", DIGEST, 0, annotations={"a": ""})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"digest": None}, "d: digest: not a digest: ''"),
        ({"digest": 5}, "d: digest: expected a string, got 5"),
        ({"digest": "sha256:zz"}, "d: digest: not a digest: 'sha256:zz'"),
        ({"size": None}, "d: size: expected a size in bytes, got null"),
        ({"size": True}, "got true"),
        ({"size": -1}, "got -1"),
        ({"size": 2**63}, "got 9223372036854775808"),
        ({"size": 1.0}, "got 1.0"),
        ({"size": "1"}, "got '1'"),
        ({"mediaType": []}, "d: mediaType: expected a string, got a list"),
        ({"urls": "u"}, "d: urls: expected a list, got 'u'"),
        ({"urls": [1]}, r"d: urls\[0\]: expected a string, got 1"),
        ({"annotations": []}, "d: annotations: expected an object, got a list"),
        ({"annotations": {"a\n": 1}}, r"d: annotations\['a\\n'\]: expected a string"),
        ({"platform": "linux"}, "d: platform: expected an object"),
        ({"platform": {"os.features": {}}}, "d: platform: os.features: expected a list"),
        ({"platform": {"os.features": [""] * 10_001}}, "at most 10000"),
        ({"data": {}}, "d: data: expected a string, got an object"),
    ],
)
def test_refuses(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidDataError, match=message) as info:
        Descriptor.from_json(minimal(**fields), "d")
    assert "\n" not in str(info.value)


@given(descriptors)
def test_round_trip(descriptor: Descriptor) -> None:
    data = dumps(descriptor.to_json())
    again = Descriptor.from_json(loads(data, "d"), "d")
    assert again == descriptor
    assert dumps(again.to_json()) == data


@given(json_values)
def test_any_value(value: object) -> None:
    with pytest.raises(InvalidDataError):
        Descriptor.from_json(value, "d")
    for key in ("mediaType", "urls", "annotations", "data", "platform", "artifactType", "size"):
        try:
            Descriptor.from_json(minimal(**{key: value}), "d")
        except InvalidDataError as error:
            assert str(error).startswith(f"d: {key}")
