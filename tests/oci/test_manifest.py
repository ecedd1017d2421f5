from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import InvalidDataError, SociError
from soci_cli.oci import (
    Descriptor,
    Index,
    Manifest,
    Platform,
    digest_of,
    encode,
    media_types,
    parse_config_diff_ids,
    parse_config_platform,
    parse_index,
    parse_manifest,
)
from tests.oci.strategies import descriptors, json_values, text_maps, texts

GOLDEN = Path(__file__).parent.parent / "golden"
CONVERTED = sorted(GOLDEN.glob("converted/*/*.json"))
BLOBS = sorted(GOLDEN.glob("images/**/blobs/sha256/*"))
DIGEST = "sha256:" + "ab" * 32
DESCRIPTOR = {"mediaType": "m", "digest": DIGEST, "size": 3}


def manifest(**fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": DESCRIPTOR, "layers": []} | fields).encode()


def index(**fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "manifests": []} | fields).encode()


@pytest.mark.parametrize("path", CONVERTED, ids=lambda path: f"{path.parent.name}/{path.name[:8]}")
def test_golden_documents_survive(path: Path) -> None:
    data = path.read_bytes()
    assert digest_of(data) == f"sha256:{path.stem}"
    document = json.loads(data)
    if "manifests" in document:
        assert encode(parse_index(data, "golden", document["mediaType"])) == data
    elif "layers" in document:
        assert encode(parse_manifest(data, "golden", document["mediaType"])) == data
    else:
        # The empty config and the prefetch artifact are neither.
        with pytest.raises(InvalidDataError, match="schemaVersion"):
            parse_manifest(data, "golden")


def test_golden_is_there() -> None:
    assert len(CONVERTED) > 50


@pytest.mark.parametrize("path", BLOBS, ids=lambda path: path.name[:8])
def test_golden_images_parse(path: Path) -> None:
    data = path.read_bytes()
    if not data.startswith(b"{"):
        return
    document = json.loads(data)
    if "manifests" in document:
        parsed = parse_index(data, "golden")
        assert len(parsed.manifests) == len(document["manifests"])
    elif "layers" in document:
        assert len(parse_manifest(data, "golden").layers) == len(document["layers"])
    elif "rootfs" in document:
        assert parse_config_platform(data, "golden").os == document["os"]
        diff_ids = parse_config_diff_ids(data, "golden")
        assert list(diff_ids) == document["rootfs"]["diff_ids"]


def test_manifest_fields() -> None:
    data = manifest(
        mediaType=media_types.OCI_MANIFEST,
        artifactType="t",
        layers=[DESCRIPTOR | {"size": 4}],
        subject=DESCRIPTOR,
        annotations={"b": "2", "a": "1"},
        other=[1],
    )
    descriptor = Descriptor("m", DIGEST, 3)
    parsed = parse_manifest(data, "m")
    assert parsed == Manifest(
        2,
        media_types.OCI_MANIFEST,
        "t",
        descriptor,
        (Descriptor("m", DIGEST, 4),),
        descriptor,
        {"a": "1", "b": "2"},
    )
    assert list(json.loads(encode(parsed))) == [
        "schemaVersion",
        "mediaType",
        "artifactType",
        "config",
        "layers",
        "subject",
        "annotations",
    ]
    assert encode(parsed).endswith(b'"annotations":{"a":"1","b":"2"}}')


def test_null_lists_are_empty_and_written() -> None:
    assert encode(parse_manifest(manifest(layers=None), "m")).endswith(b',"layers":[]}')
    assert encode(parse_index(index(manifests=None), "i")) == b'{"schemaVersion":2,"manifests":[]}'
    assert parse_index(b'{"schemaVersion":2}', "i").manifests == ()
    # A null is an absent field.
    assert parse_index(index(config=None, layers=None), "i").manifests == ()
    assert parse_manifest(manifest(manifests=None), "m").layers == ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (manifest(manifests=[]), "expected an image manifest, found an image index"),
        (manifest(mediaType=media_types.OCI_INDEX), "found an image index"),
        (manifest(mediaType=media_types.DOCKER_MANIFEST_LIST), "found an image index"),
        (manifest(schemaVersion=1), "Docker schema 1"),
        (manifest(fsLayers=[]), "Docker schema 1"),
        (manifest(schemaVersion=3), "schemaVersion: expected 2, got 3"),
        (manifest(schemaVersion="2"), "schemaVersion: expected 2, got '2'"),
        (manifest(schemaVersion=True), "schemaVersion: expected 2, got true"),
        (manifest(schemaVersion=2.0), "schemaVersion: expected 2, got 2.0"),
        (manifest(config=None), "no config"),
        (manifest(config=[]), "m: config: expected an object"),
        (manifest(layers={}), "m: layers: expected a list"),
        (manifest(layers=[DESCRIPTOR, None]), r"m: layers\[1\]: expected an object, got null"),
        (manifest(layers=[DESCRIPTOR | {"size": -1}]), r"m: layers\[0\]: size: expected"),
        (manifest(layers=[DESCRIPTOR] * 10_001), "10001 items, at most 10000"),
        (manifest(subject={}), "m: subject: digest"),
        (manifest(annotations=[]), "m: annotations"),
        (manifest(mediaType=1), "m: mediaType"),
        (b"[]", "m: expected an object, got a list"),
        (b"null", "m: expected an object, got null"),
        (b"\x1f\x8b", "not UTF-8"),
    ],
)
def test_manifest_refuses(data: bytes, message: str) -> None:
    with pytest.raises(InvalidDataError, match=message) as info:
        parse_manifest(data, "m")
    assert str(info.value).startswith("m: ")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (index(config=DESCRIPTOR), "expected an image index, found an image manifest"),
        (index(layers=[]), "found an image manifest"),
        (index(mediaType=media_types.OCI_MANIFEST), "found an image manifest"),
        (index(mediaType=media_types.DOCKER_MANIFEST), "found an image manifest"),
        (index(schemaVersion=1), "Docker schema 1"),
        (index(manifests=[DESCRIPTOR] * 10_001), "at most 10000"),
        (index(manifests=[1]), r"i: manifests\[0\]: expected an object, got 1"),
    ],
)
def test_index_refuses(data: bytes, message: str) -> None:
    with pytest.raises(InvalidDataError, match=message):
        parse_index(data, "i")


def test_the_promised_media_type_counts() -> None:
    assert parse_manifest(manifest(), "m", media_types.DOCKER_MANIFEST)
    assert parse_index(index(), "i", media_types.DOCKER_MANIFEST_LIST)
    with pytest.raises(InvalidDataError, match="is not an image manifest"):
        parse_manifest(manifest(), "m", media_types.OCI_INDEX)
    with pytest.raises(InvalidDataError, match="is not an image index"):
        parse_index(index(), "i", media_types.OCI_MANIFEST)


@given(
    st.builds(
        Manifest,
        schema_version=st.just(2),
        media_type=texts,
        artifact_type=texts,
        config=descriptors,
        layers=st.lists(descriptors, max_size=2).map(tuple),
        subject=st.none() | descriptors,
        annotations=text_maps,
    )
)
def test_manifest_round_trip(document: Manifest) -> None:
    assert parse_manifest(encode(document), "m") == document


@given(
    st.builds(
        Index,
        schema_version=st.just(2),
        media_type=texts,
        artifact_type=texts,
        manifests=st.lists(descriptors, max_size=2).map(tuple),
        subject=st.none() | descriptors,
        annotations=text_maps,
    )
)
def test_index_round_trip(document: Index) -> None:
    assert parse_index(encode(document), "i") == document


def test_config() -> None:
    config = {
        "architecture": "arm64",
        "os": "linux",
        "variant": "v8",
        "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
    }
    data = json.dumps(config).encode()
    assert parse_config_platform(data, "c") == Platform("arm64", "linux", variant="v8")
    assert parse_config_diff_ids(data, "c") == (DIGEST,)
    assert parse_config_platform(b"{}", "c") == Platform("", "")
    assert parse_config_diff_ids(b"{}", "c") == ()
    # Configs may be larger than manifests.
    assert parse_config_diff_ids(data + b" " * (5 * 1024 * 1024), "c") == (DIGEST,)
    with pytest.raises(InvalidDataError, match="c: rootfs: diff_ids: not a digest"):
        parse_config_diff_ids(b'{"rootfs":{"diff_ids":["x"]}}', "c")
    with pytest.raises(InvalidDataError, match="c: rootfs: expected an object"):
        parse_config_diff_ids(b'{"rootfs":[]}', "c")
    with pytest.raises(InvalidDataError, match="c: expected an object"):
        parse_config_platform(b"[]", "c")


KEYS = [
    "mediaType", "artifactType", "config", "layers", "manifests", "subject", "annotations",
    "fsLayers", "schemaVersion", "rootfs", "os", "os.features",
]  # fmt: skip


@given(st.binary(max_size=40) | st.dictionaries(st.sampled_from(KEYS), json_values, max_size=4))
def test_nothing_but_soci_errors(value: bytes | dict[str, object]) -> None:
    if isinstance(value, bytes):
        documents = [value]
    else:
        documents = [
            json.dumps(base | value).encode()
            for base in ({}, {"schemaVersion": 2}, {"schemaVersion": 2, "config": DESCRIPTOR})
        ]
    for data in documents:
        for parse in (parse_manifest, parse_index, parse_config_platform, parse_config_diff_ids):
            try:
                parse(data, "x")
            except SociError as error:
                assert str(error).startswith("x: ")
                assert "\n" not in str(error)
