"""The documents of converted images: what is kept, and what takes the place of what."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from soci_cli.oci.media_types import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
)
from tests.support.images import (
    Json,
    LayoutMaker,
    blob_json,
    check_complete,
    gz,
    layer_tar,
    make_image,
    options,
    read_index,
    run_convert,
    sha256,
    soci_entries,
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "image").root


def test_annotations_of_the_root_and_of_descriptors_are_kept(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    layer = maker.blob(gz(layer_tar(1)), annotations={"layer": "kept"})
    manifest = maker.manifest([layer], annotations={"manifest": "kept"})
    platform = {"architecture": "amd64", "os": "linux"}
    entry = {**manifest, "platform": platform, "annotations": {"entry": "kept"}}
    maker.tag(maker.index([entry], annotations={"index": "kept"}), top="kept")
    run_convert(maker.root, tmp_path / "d")
    (root,) = json.loads((tmp_path / "d" / "index.json").read_bytes())["manifests"]
    assert root["annotations"]["top"] == "kept"
    index = read_index(tmp_path / "d")
    assert index["annotations"] == {"index": "kept"}
    new = index["manifests"][0]
    assert new["annotations"]["entry"] == "kept"
    document = blob_json(tmp_path / "d", new)
    assert document["annotations"]["manifest"] == "kept"
    assert document["layers"][0]["annotations"] == {"layer": "kept"}


def test_docker_types_become_oci_types(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    layers = [
        maker.blob(gz(layer_tar(1)), DOCKER_LAYER_GZIP),
        maker.blob(gz(layer_tar(2)), DOCKER_LAYER),  # the plain type, and gzip all the same
        maker.blob(layer_tar(3), DOCKER_LAYER),
    ]
    config = maker.config(media_type=DOCKER_CONFIG)
    maker.tag(maker.manifest(layers, config, mediaType=DOCKER_MANIFEST))
    result = run_convert(maker.root, tmp_path / "d")
    assert [layer.outcome for layer in result.platforms[0].layers] == ["built"] * 3
    new = read_index(tmp_path / "d")["manifests"][0]
    document = blob_json(tmp_path / "d", new)
    assert new["mediaType"] == document["mediaType"] == OCI_MANIFEST
    assert document["config"]["mediaType"] == OCI_CONFIG
    assert document["layers"] == layers


def test_an_attestation_follows_its_image(tmp_path: Path) -> None:
    """Both ways to say what is attested: the annotation, and a subject; also before the image."""
    maker = LayoutMaker(tmp_path / "image")
    image = maker.manifest([maker.blob(gz(layer_tar(1)))])
    statement = maker.blob(b"{}", "application/vnd.in-toto+json")
    by_subject = maker.manifest([statement], subject=image, artifactType="application/x")
    by_note = maker.manifest([statement], annotations={"by": "note"})
    unknown = {"architecture": "unknown", "os": "unknown"}
    maker.tag(
        maker.index(
            [
                {
                    **by_note,
                    "platform": unknown,
                    "annotations": {"vnd.docker.reference.digest": image["digest"]},
                },
                by_subject,
                {**image, "platform": {"architecture": "amd64", "os": "linux"}},
            ]
        )
    )
    run_convert(maker.root, tmp_path / "d", options(all_platforms=True))
    index = read_index(tmp_path / "d")
    first, second, new, _ = index["manifests"]
    assert new["digest"] != image["digest"]
    assert first["annotations"]["vnd.docker.reference.digest"] == new["digest"]
    subject = blob_json(tmp_path / "d", second)["subject"]
    assert subject == {key: new[key] for key in ("mediaType", "digest", "size")}
    assert len(soci_entries(index)) == 1
    assert not run_convert(tmp_path / "d", tmp_path / "d").changed
    check_complete(tmp_path / "d")


def test_a_nested_index_stays_as_it_is(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    inner = maker.manifest([maker.blob(gz(layer_tar(5)))])
    nested: Json = inner
    for _ in range(3):
        nested = maker.index([nested])
    image = maker.manifest([maker.blob(gz(layer_tar(1)))])
    platform = {"architecture": "amd64", "os": "linux"}
    maker.tag(maker.index([nested, {**image, "platform": platform}]))
    run_convert(maker.root, tmp_path / "d")
    index = read_index(tmp_path / "d")
    assert index["manifests"][0] == nested
    assert inner["digest"] in check_complete(tmp_path / "d")
    assert index["mediaType"] == OCI_INDEX


def change_index(root: Path, change: Callable[[list[Json]], object]) -> None:
    """Lets `change` edit the manifests of the image index of a layout."""
    index_json = json.loads((root / "index.json").read_bytes())
    index = blob_json(root, index_json["manifests"][0])
    change(index["manifests"])
    data = json.dumps(index).encode()
    (root / "blobs" / "sha256" / sha256(data)[7:]).write_bytes(data)
    index_json["manifests"][0].update(digest=sha256(data), size=len(data))
    (root / "index.json").write_text(json.dumps(index_json))


@pytest.mark.parametrize("span_size", [1 << 16, 1 << 14])
def test_an_index_without_its_artifact_type_is_replaced(
    tmp_path: Path, image: Path, span_size: int
) -> None:
    """Tools that do not know the field drop it from the entry."""
    run_convert(image, tmp_path / "d")
    change_index(tmp_path / "d", lambda manifests: manifests[1].pop("artifactType"))
    result = run_convert(tmp_path / "d", tmp_path / "e", options(span_size=span_size))
    expected = run_convert(image, tmp_path / "f", options(span_size=span_size))
    assert result.descriptor == expected.descriptor
    check_complete(tmp_path / "e")


def test_only_one_index_is_left_of_several(tmp_path: Path, image: Path) -> None:
    run_convert(image, tmp_path / "d")
    change_index(tmp_path / "d", lambda manifests: manifests.append(manifests[1]))
    result = run_convert(tmp_path / "d", tmp_path / "e", options(span_size=1 << 14))
    expected = run_convert(image, tmp_path / "f", options(span_size=1 << 14))
    assert result.descriptor == expected.descriptor
    check_complete(tmp_path / "e")


def test_a_platform_that_is_passed_over_keeps_its_index(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    entries = []
    for architecture, size in (("amd64", 60_000), ("arm64", 100)):
        layer = maker.blob(gz(layer_tar(1, size)))
        manifest = maker.manifest([layer], maker.config(architecture=architecture))
        entries.append({**manifest, "platform": {"architecture": architecture, "os": "linux"}})
    maker.tag(maker.index(entries))
    run_convert(maker.root, tmp_path / "d", options(all_platforms=True))
    old = soci_entries(read_index(tmp_path / "d"))
    chosen = options(all_platforms=True, min_layer_size=30_000, span_size=1 << 14)
    run_convert(tmp_path / "d", tmp_path / "e", chosen)
    new = soci_entries(read_index(tmp_path / "e"))
    assert new[0] != old[0]
    assert new[1] == old[1]
    check_complete(tmp_path / "e")
