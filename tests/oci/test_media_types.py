from __future__ import annotations

import pytest

from soci_cli.oci import media_types as mt


def test_kinds() -> None:
    assert mt.is_index(mt.OCI_INDEX)
    assert mt.is_index(mt.DOCKER_MANIFEST_LIST)
    assert mt.is_manifest(mt.OCI_MANIFEST)
    assert mt.is_manifest(mt.DOCKER_MANIFEST)
    assert not mt.is_manifest(mt.DOCKER_MANIFEST_SCHEMA1_SIGNED)
    for other in ("", mt.OCI_CONFIG, mt.OCI_LAYER_GZIP):
        assert not mt.is_index(other)
        assert not mt.is_manifest(other)


@pytest.mark.parametrize(
    ("media_type", "compression"),
    [
        (mt.OCI_LAYER, "uncompressed"),
        (mt.OCI_LAYER_GZIP, "gzip"),
        (mt.OCI_LAYER_ZSTD, "zstd"),
        (mt.OCI_LAYER_NONDISTRIBUTABLE, "uncompressed"),
        (mt.OCI_LAYER_NONDISTRIBUTABLE_GZIP, "gzip"),
        (mt.OCI_LAYER_NONDISTRIBUTABLE_ZSTD, "zstd"),
        (mt.OCI_LAYER + "+lz4", "lz4"),
        (mt.OCI_LAYER + "+encrypted", "encrypted"),
        (mt.OCI_LAYER_GZIP + "+encrypted", "encrypted"),
        (mt.OCI_LAYER + "+encrypted+gzip", "encrypted"),
        (mt.DOCKER_LAYER, "unknown"),
        (mt.DOCKER_LAYER_GZIP, "gzip"),
        (mt.DOCKER_LAYER_ZSTD, "zstd"),
        (mt.DOCKER_LAYER_FOREIGN, "unknown"),
        (mt.DOCKER_LAYER_FOREIGN_GZIP, "gzip"),
        (mt.DOCKER_LAYER_GZIP + "+encrypted", "encrypted"),
        ("application/vnd.oci.image.layer.v9.erofs", "unsupported"),
    ],
)
def test_layers(media_type: str, compression: str) -> None:
    assert mt.is_layer(media_type)
    assert mt.layer_compression(media_type) == compression


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "gzip",
        "application/octet-stream",
        "application/vnd.oci.image.layer",
        mt.OCI_CONFIG,
        mt.DOCKER_CONFIG,
        mt.DOCKER_LAYER + ".gz",
        "application/vnd.in-toto+json",
    ],
)
def test_not_layers(media_type: str) -> None:
    assert not mt.is_layer(media_type)
    assert mt.layer_compression(media_type) == "unsupported"
