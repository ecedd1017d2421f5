"""SOCI indexes v1, and what `inspect` says of images of all kinds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from soci_cli.errors import InvalidDataError, NotFoundError, SociError
from soci_cli.index.build import IndexOptions, PlatformReport, index_image
from soci_cli.index.inspect import ImageFacts, inspect, summarize
from soci_cli.index.model import make_index
from soci_cli.oci import Descriptor
from soci_cli.oci.media_types import OCI_MANIFEST
from soci_cli.targets import Layout, WritableLayout, open_source, parse_place
from tests.support.images import (
    GOLDEN,
    LINUX_AMD64,
    LayoutMaker,
    blob_json,
    gz,
    layer_tar,
    make_image,
    options,
    read_index,
    run_convert,
    sha256,
    soci_entries,
)

V1 = "application/vnd.amazon.soci.index.v1+json"


def indexed(source: Path, target: Path, **more: object) -> tuple[PlatformReport, ...]:
    chosen = IndexOptions(
        platforms=() if more.get("all_platforms") else (LINUX_AMD64,),
        min_layer_size=0,
        span_size=1 << 16,
        **more,  # type: ignore[arg-type]
    )
    with Layout(source) as opened, WritableLayout(target, "index") as written:
        return index_image(opened, written, chosen)


def facts_of(place: str | Path) -> ImageFacts:
    text = f"oci:{place}" if isinstance(place, Path) else place
    with open_source(parse_place(text), Path("no-store")) as source:
        return inspect(source)


def test_an_index_v1(tmp_path: Path) -> None:
    source = GOLDEN / "images" / "single-gzip"
    (report,) = indexed(source, tmp_path / "d")
    manifest = Layout(source).resolve()
    assert report.index is not None
    assert report.index.artifact_type == V1
    index = blob_json(tmp_path / "d", report.index.to_json())
    assert list(index) == [
        "schemaVersion",
        "mediaType",
        "config",
        "layers",
        "subject",
        "annotations",
    ]
    assert index["config"] == {"mediaType": V1, "digest": sha256(b"{}"), "size": 2}
    assert index["subject"] == {
        "mediaType": OCI_MANIFEST,
        "digest": manifest.digest,
        "size": manifest.size,
    }
    # The zTOCs are those of a conversion, and no layer was copied.
    run_convert(source, tmp_path / "e")
    converted = blob_json(tmp_path / "e", soci_entries(read_index(tmp_path / "e"))[0])
    assert index["layers"] == converted["layers"]
    blobs = {path.name for path in (tmp_path / "d" / "blobs" / "sha256").iterdir()}
    assert blobs == {
        report.index.digest[7:],
        sha256(b"{}")[7:],
        *(layer["digest"][7:] for layer in index["layers"]),
    }
    assert not (tmp_path / "d" / "index.json").exists()


def test_an_index_v1_for_each_platform(tmp_path: Path) -> None:
    source = GOLDEN / "images" / "multi-platform"
    reports = indexed(source, tmp_path / "d", all_platforms=True)
    image = read_index(source)
    subjects = []
    for report in reports:
        assert report.index is not None
        subjects.append(blob_json(tmp_path / "d", report.index.to_json())["subject"]["digest"])
    assert subjects == [entry["digest"] for entry in image["manifests"]]


def test_nothing_to_index(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    maker.tag(maker.manifest([maker.blob(b"{}", "application/json")]))
    with pytest.raises(SociError, match="no layer that can be indexed"):
        indexed(maker.root, tmp_path / "d")


def test_a_subject_is_reduced_to_what_identifies_it() -> None:
    subject = Descriptor(
        OCI_MANIFEST, sha256(b"x"), 1, annotations={"a": "b"}, platform=LINUX_AMD64
    )
    index = make_index([], "tool", subject)
    assert index.manifest.subject == Descriptor(OCI_MANIFEST, sha256(b"x"), 1)
    assert index.descriptor.digest == sha256(index.data)


def test_a_soci_index_is_no_image(tmp_path: Path) -> None:
    source = GOLDEN / "images" / "single-gzip"
    (report,) = indexed(source, tmp_path / "d")
    assert report.index is not None
    with WritableLayout(tmp_path / "d", "index") as target:
        target.tag(report.index)
    with pytest.raises(InvalidDataError, match="is a SOCI index, not an image"):
        run_convert(tmp_path / "d", tmp_path / "e")


def test_inspecting_a_plain_image() -> None:
    facts = facts_of(GOLDEN / "images" / "multi-platform")
    assert facts.soci == ""
    names = [manifest.platform for manifest in facts.manifests]
    assert names == ["linux/amd64", "linux/arm64", "linux/arm/v7"] or names[1] == "linux/arm64/v8"
    assert all(layer.ztoc is None for manifest in facts.manifests for layer in manifest.layers)


def test_inspecting_a_converted_image(tmp_path: Path) -> None:
    source = GOLDEN / "images" / "with-attestation"
    chosen = options(prefetch_files=("etc/conf.d/001/file-1.txt",), optimize_xattrs=True)
    result = run_convert(source, tmp_path / "d", chosen)
    facts = facts_of(tmp_path / "d")
    assert facts.digest == result.descriptor.digest
    assert facts.soci == "v2"
    image, attestation = facts.manifests
    assert (image.kind, image.soci, image.problem) == ("image", "v2", "")
    assert attestation.kind == "artifact"
    (layer,) = image.layers
    assert layer.ztoc is not None
    report = result.platforms[0].layers[0]
    assert (layer.ztoc.spans, layer.ztoc.files) == (report.spans, report.files)
    assert layer.ztoc.span_size == 1 << 16
    assert layer.ztoc.uncompressed_size > layer.size
    assert layer.ztoc.disable_xattrs is (layer.ztoc.disable_xattrs and not layer.ztoc.problem)
    assert layer.prefetch_spans


def test_inspecting_an_image_with_an_index_v1_beside_it(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image").root
    (report,) = indexed(image, image)
    assert report.index is not None
    with WritableLayout(image, "index") as target:
        target.tag(report.index)
    facts = facts_of(f"oci:{image}:latest")
    assert facts.soci == "v1"
    assert facts.manifests[0].soci_digest == report.index.digest
    assert all(layer.ztoc for layer in facts.manifests[0].layers)


def test_inspecting_damage(tmp_path: Path) -> None:
    """What is below the manifests is told, not raised."""
    run_convert(make_image(tmp_path / "image").root, tmp_path / "d")
    entry = soci_entries(read_index(tmp_path / "d"))[0]
    layers = blob_json(tmp_path / "d", entry)["layers"]
    folder = tmp_path / "d" / "blobs" / "sha256"
    (folder / layers[0]["digest"][7:]).unlink()
    (folder / layers[1]["digest"][7:]).write_bytes(bytes(layers[1]["size"]))
    first, second = facts_of(tmp_path / "d").manifests[0].layers
    assert first.ztoc is not None
    assert layers[0]["digest"] in first.ztoc.problem
    assert second.ztoc is not None
    assert layers[1]["digest"] in second.ztoc.problem
    (folder / entry["digest"][7:]).unlink()
    facts = facts_of(tmp_path / "d")
    assert entry["digest"] in facts.manifests[0].problem
    assert not any(layer.ztoc for layer in facts.manifests[0].layers)
    manifest = read_index(tmp_path / "d")["manifests"][0]
    (folder / manifest["digest"][7:]).unlink()
    with pytest.raises(NotFoundError):
        facts_of(tmp_path / "d")


def test_the_size_counts_each_blob_once(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    layer = maker.blob(gz(layer_tar(1)))
    manifest = maker.manifest([layer, layer])
    maker.tag(manifest)
    config = json.loads(maker.path(manifest["digest"]).read_bytes())["config"]
    with Layout(maker.root) as source:
        summary = summarize(source)
    assert summary.platforms == ["linux/amd64"]
    assert summary.size == manifest["size"] + layer["size"] + config["size"]
