"""The documents of converted images: what is kept, and what takes the place of what."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from soci_cli.index.image import read_image
from soci_cli.index.model import INDEX_DIGEST, LAYER_MEDIA_TYPE, MANIFEST_DIGEST
from soci_cli.oci import platforms
from soci_cli.oci.media_types import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_LAYER_FOREIGN,
    DOCKER_LAYER_FOREIGN_GZIP,
    DOCKER_LAYER_GZIP,
    DOCKER_LAYER_ZSTD,
    DOCKER_MANIFEST,
    DOCKER_MANIFEST_LIST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_NONDISTRIBUTABLE_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
)
from soci_cli.targets import open_source, parse_place
from tests.support.images import (
    LINUX_AMD64,
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
    zst,
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
    new_types = [OCI_LAYER_GZIP, OCI_LAYER_GZIP, OCI_LAYER]  # as the bytes are
    assert document["layers"] == [
        {**layer, "mediaType": kind} for layer, kind in zip(layers, new_types, strict=True)
    ]
    (soci,) = soci_entries(read_index(tmp_path / "d"))
    ztocs = blob_json(tmp_path / "d", soci)["layers"]
    assert [one["annotations"][LAYER_MEDIA_TYPE] for one in ztocs] == new_types

    run_convert(maker.root, tmp_path / "e", options(keep_layer_types=True))
    new = read_index(tmp_path / "e")["manifests"][0]
    assert blob_json(tmp_path / "e", new)["layers"] == layers


def test_docker_types_of_all_platforms(tmp_path: Path) -> None:
    """Also of those that get no index, of foreign layers, and of types that lie."""
    maker = LayoutMaker(tmp_path / "image")
    docker_config = {"media_type": DOCKER_CONFIG}
    amd64 = maker.manifest([maker.blob(gz(layer_tar(1)), DOCKER_LAYER_GZIP)], maker.config())
    others = [
        maker.blob(zst(layer_tar(2)), DOCKER_LAYER_GZIP),
        maker.blob(zst(layer_tar(3)), DOCKER_LAYER_ZSTD),
        maker.blob(gz(layer_tar(4)), DOCKER_LAYER_FOREIGN),
        maker.blob(gz(layer_tar(5)), DOCKER_LAYER_FOREIGN_GZIP, urls=["https://example.com/l"]),
        maker.blob(b"x", "application/vnd.example.other"),
    ]
    maker.path(others[3]["digest"]).unlink()
    arm64 = maker.manifest(
        others, maker.config(architecture="arm64", **docker_config), mediaType=DOCKER_MANIFEST
    )
    entries = [
        {**one, "platform": {"architecture": name, "os": "linux"}}
        for name, one in (("amd64", amd64), ("arm64", arm64))
    ]
    maker.tag(maker.index(entries, mediaType=DOCKER_MANIFEST_LIST))
    run_convert(maker.root, tmp_path / "d", options(platforms=(LINUX_AMD64,)))
    index = read_index(tmp_path / "d")
    assert index["mediaType"] == OCI_INDEX
    document = blob_json(tmp_path / "d", index["manifests"][1])
    assert document["config"]["mediaType"] == OCI_CONFIG
    assert [layer["mediaType"] for layer in document["layers"]] == [
        OCI_LAYER_ZSTD,
        OCI_LAYER_ZSTD,
        OCI_LAYER_NONDISTRIBUTABLE_GZIP,
        OCI_LAYER_NONDISTRIBUTABLE_GZIP,
        "application/vnd.example.other",
    ]
    assert document["layers"][3]["urls"] == ["https://example.com/l"]


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


def test_nested_indexes_become_one(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    inner = maker.manifest([maker.blob(gz(layer_tar(5)))])
    other = maker.manifest([maker.blob(gz(layer_tar(6)))], maker.config(architecture="arm64"))
    hidden = maker.manifest([maker.blob(gz(layer_tar(7)))], maker.config(architecture="s390x"))
    amd64, arm64 = ({"architecture": name, "os": "linux"} for name in ("amd64", "arm64"))
    nested: Json = inner
    for _ in range(3):
        nested = maker.index([nested])
    artifact = maker.index([maker.manifest([maker.blob(b"a")])], artifactType="application/x")
    # What is below an entry for arm64 is for arm64 alone, as containerd looks for it.
    below = {**maker.index([hidden, {**other, "platform": arm64}]), "platform": arm64}
    maker.tag(maker.index([nested, below, artifact]))
    run_convert(maker.root, tmp_path / "d", options(all_platforms=True))
    index = read_index(tmp_path / "d")
    assert index["mediaType"] == OCI_INDEX
    assert [entry.get("platform") for entry in index["manifests"]] == [
        amd64,
        arm64,
        None,
        amd64,
        arm64,
    ]
    assert index["manifests"][2] == artifact
    assert artifact["digest"] in check_complete(tmp_path / "d")


def test_the_index_of_a_platform_is_never_more_exact(tmp_path: Path) -> None:
    """Clients look for the exact platform first, and must find the image."""
    maker = LayoutMaker(tmp_path / "image")
    manifest = maker.manifest([maker.blob(gz(layer_tar(1)))], maker.config(architecture="arm64"))
    v8 = {"architecture": "arm64", "os": "linux", "variant": "v8"}
    plain = {"architecture": "arm64", "os": "linux"}
    spelled = {"architecture": "aarch64", "os": "linux", "variant": "8"}
    for number, (own, asked, wanted) in enumerate(
        [
            (plain, "linux/arm64/v8", plain),
            (plain, "linux/aarch64", plain),
            (v8, "linux/arm64/v8", v8),
            (v8, "linux/arm64", plain),  # as the reference does it
            (spelled, "linux/arm64/v8", spelled),
            (None, "linux/arm64/v8", plain),
        ]
    ):
        entry = {**manifest, "platform": own} if own else manifest
        maker.tag(maker.index([entry], annotations={"number": str(number)}), f"t{number}")
        target = tmp_path / f"d{number}"
        chosen = options(platforms=(platforms.parse(asked),))
        run_convert(f"oci:{maker.root}:t{number}", f"oci:{target}:latest", chosen)
        image, soci = read_index(target)["manifests"]
        assert (image["platform"], soci["platform"]) == (own or plain, wanted)


def test_the_gzip_form_of_a_platform_is_indexed(tmp_path: Path) -> None:
    """Some builders list a zstd form of the image before it."""
    maker = LayoutMaker(tmp_path / "image")
    plain = {"architecture": "amd64", "os": "linux"}
    forms = [
        maker.manifest([maker.blob(zst(layer_tar(1)), OCI_LAYER_ZSTD)]),
        maker.manifest([maker.blob(gz(layer_tar(1)))]),
    ]
    maker.tag(maker.index([{**form, "platform": plain} for form in forms]))
    run_convert(maker.root, tmp_path / "d")
    first, second, soci = read_index(tmp_path / "d")["manifests"]
    assert INDEX_DIGEST not in first.get("annotations", {})
    assert soci["annotations"][MANIFEST_DIGEST] == second["digest"]
    assert second["annotations"][INDEX_DIGEST] == soci["digest"]
    with open_source(parse_place(f"oci:{tmp_path / 'd'}:latest"), tmp_path) as place:
        entry = read_image(place).get(LINUX_AMD64, "")
    assert entry.descriptor.digest == second["digest"]


def test_recompressing_drops_what_described_the_old_bytes(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    stale = {
        "io.github.containers.zstd-chunked.manifest-position": "1",
        "io.containers.zstd-chunked.manifest-position": "1",
        "containerd.io/snapshot/stargz/toc.digest": "1",
        "io.containers.estargz.uncompressed-size": "1",
        "containerd.io/distribution.source.example.com": "app",
    }
    data = zst(layer_tar(1))
    layer = maker.blob(
        data,
        OCI_LAYER_ZSTD,
        annotations={**stale, "com.example.note": "keep"},
        urls=["https://example.com/l"],
    )
    layer["data"] = base64.b64encode(data).decode()
    zstd_form = {"io.github.containers.compression.zstd": "true"}
    platform = {"architecture": "amd64", "os": "linux"}
    entry = {**maker.manifest([layer]), "platform": platform, "annotations": zstd_form}
    maker.tag(maker.index([{**entry, "data": "e30="}]))
    run_convert(maker.root, tmp_path / "d", options(recompress_zstd=True))
    image = read_index(tmp_path / "d")["manifests"][0]
    assert image.keys() == {"mediaType", "digest", "size", "platform", "annotations"}
    assert image["annotations"].keys() == {INDEX_DIGEST}
    (new,) = blob_json(tmp_path / "d", image)["layers"]
    assert new.keys() == {"mediaType", "digest", "size", "annotations"}
    assert new["annotations"] == {"com.example.note": "keep"}


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
