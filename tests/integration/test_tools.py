"""skopeo, umoci, pigz, gzip and zstd: what they write is converted, what we write they read."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from soci_cli.oci.media_types import OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from soci_cli.ztoc import FileTree, LayerReader, decode_ztoc
from tests.support.images import (
    GOLDEN,
    LayoutMaker,
    blob_json,
    check_complete,
    noise,
    options,
    read_index,
    run_convert,
    sha256,
    soci_entries,
)
from tests.support.tools import CONVERT, layers_of, only_image_manifest, run, skopeo, soci, tree

IMAGES = GOLDEN / "images"


@pytest.mark.parametrize("name", ["single-gzip", "annotated", "multi-platform", "with-attestation"])
@pytest.mark.parametrize("flags", [[], ["--preserve-digests"]])
def test_what_skopeo_copied(tmp_path: Path, need_skopeo: str, name: str, flags: list[str]) -> None:
    """A layout and an archive from skopeo convert to the same as the original."""
    expected = run_convert(IMAGES / name, tmp_path / "expected", options(all_platforms=True))
    for place in (f"oci:{tmp_path}/copy:x", f"oci-archive:{tmp_path}/copy.tar:x"):
        skopeo(f"oci:{IMAGES / name}:latest", place, "--all", *flags)
        result = run_convert(place, tmp_path / "d", options(all_platforms=True))
        assert result.descriptor.digest == expected.descriptor.digest


def test_an_image_in_dockers_format(tmp_path: Path, need_skopeo: str) -> None:
    skopeo(f"oci:{IMAGES}/single-gzip:latest", f"dir:{tmp_path}/v2s2", "--format", "v2s2")
    document = json.loads((tmp_path / "v2s2" / "manifest.json").read_bytes())
    assert document["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    maker = LayoutMaker(tmp_path / "image")
    for part in (document["config"], *document["layers"]):
        maker.blob((tmp_path / "v2s2" / part["digest"][7:]).read_bytes())
    data = (tmp_path / "v2s2" / "manifest.json").read_bytes()
    maker.tag(maker.blob(data, document["mediaType"]))
    run_convert(maker.root, tmp_path / "d")
    check_complete(tmp_path / "d")
    types = {layer["mediaType"] for layer in layers_of(tmp_path / "d")}
    assert types == {"application/vnd.oci.image.layer.v1.tar+gzip"}
    # skopeo reads the result, and makes an OCI image of it again.
    skopeo(f"oci:{tmp_path}/d:latest", f"oci:{tmp_path}/e:x")


def test_zstd_from_skopeo(tmp_path: Path, need_skopeo: str) -> None:
    """skopeo compresses with zstd; recompressing gives back what can be indexed."""
    flags = ("--dest-compress", "--dest-compress-format=zstd", "--dest-compress-level=9")
    skopeo(f"oci:{IMAGES}/single-gzip:latest", f"dir:{tmp_path}/plain", "--dest-decompress")
    skopeo(f"dir:{tmp_path}/plain", f"oci:{tmp_path}/z:x", *flags)
    manifest = json.loads((tmp_path / "z" / "index.json").read_bytes())["manifests"][0]
    layers = blob_json(tmp_path / "z", manifest)["layers"]
    assert {layer["mediaType"] for layer in layers} == {OCI_LAYER_ZSTD}
    run_convert(tmp_path / "z", tmp_path / "d", options(recompress_zstd=True))
    check_complete(tmp_path / "d")
    assert {layer["mediaType"] for layer in layers_of(tmp_path / "d")} == {OCI_LAYER_GZIP}
    one = only_image_manifest(f"{tmp_path}/d:x", tmp_path / "one")
    assert one.endswith(":one")


@pytest.mark.parametrize("name", ["multi-platform", "with-attestation", "annotated"])
def test_skopeo_copies_the_result_whole(tmp_path: Path, need_skopeo: str, name: str) -> None:
    """Every manifest and blob keeps its digest on the way through skopeo.

    Its older versions do not know the artifact type of an index's entry and write the index anew
    without it; all that the index lists stays the same.
    """
    run_convert(IMAGES / name, tmp_path / "d", options(all_platforms=True))
    before = check_complete(tmp_path / "d")
    skopeo(f"oci:{tmp_path}/d:latest", f"oci:{tmp_path}/e:x", "--all")
    skopeo(f"oci:{tmp_path}/e:x", f"oci-archive:{tmp_path}/f.tar:x", "--all")
    for place in (f"oci:{tmp_path}/e:x", f"oci-archive:{tmp_path}/f.tar:x"):
        after = check_complete(place)
        ours, theirs = read_index(tmp_path / "d"), read_index(place)
        assert [entry["digest"] for entry in theirs["manifests"]] == [
            entry["digest"] for entry in ours["manifests"]
        ]
        assert len(set(before) - set(after)) <= 1
        # Converting it again gives the index with all fields, and no second SOCI index.
        again = run_convert(place, tmp_path / "g", options(all_platforms=True))
        assert again.descriptor.digest in before


@pytest.fixture
def umoci_image(tmp_path: Path, need_umoci: str) -> Path:
    """A layout of umoci with an image of two layers of real files."""
    source = tmp_path / "files"
    (source / "etc" / "deep").mkdir(parents=True)
    (source / "etc" / "text").write_text("some text\n" * 5000)
    (source / "etc" / "deep" / "noise").write_bytes(noise(1, 300_000))
    (source / "etc" / "empty").touch()
    (source / "etc" / "link").symlink_to("deep/noise")
    os.link(source / "etc" / "text", source / "etc" / "hard")
    (source / "etc" / "text").chmod(0o640)
    (source / "etc" / "deep").chmod(0o1750)
    (source / "etc" / "ünï côde").write_text("name")
    (source / ("x" * 200)).write_text("a long name")
    os.mkfifo(source / "fifo")
    second = tmp_path / "more"
    second.mkdir()
    (second / "other").write_bytes(noise(2, 100_000))
    root = tmp_path / "umoci"
    run("umoci", "init", "--layout", root)
    run("umoci", "new", "--image", f"{root}:v1")
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    run("umoci", "insert", *rootless, "--image", f"{root}:v1", source, "/opt")
    run("umoci", "insert", *rootless, "--image", f"{root}:v1", second, "/opt/second")
    return root


def unpack(image: str, target: Path) -> dict[str, tuple[int, int, int, str]]:
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    run("umoci", "unpack", *rootless, "--image", image, target)
    return tree(target / "rootfs")


def test_umoci_unpacks_the_result_unchanged(
    tmp_path: Path, umoci_image: Path, need_skopeo: str
) -> None:
    result = run_convert(f"oci:{umoci_image}:v1", tmp_path / "d")
    assert [layer.outcome for layer in result.platforms[0].layers] == ["built", "built"]
    original = unpack(f"{umoci_image}:v1", tmp_path / "a")
    assert len(original) > 9
    # umoci wants a manifest, where the converted image has an index.
    one = only_image_manifest(f"{tmp_path}/d:v1", tmp_path / "one")
    assert unpack(one, tmp_path / "b") == original


def test_files_read_through_ztocs_are_those_that_umoci_unpacks(
    tmp_path: Path, umoci_image: Path
) -> None:
    run_convert(f"oci:{umoci_image}:v1", tmp_path / "d")
    unpack(f"{umoci_image}:v1", tmp_path / "a")
    blobs = check_complete(tmp_path / "d")
    index = blob_json(tmp_path / "d", soci_entries(read_index(tmp_path / "d"))[0])
    count = 0
    for blob in index["layers"]:
        layer = blobs[blob["annotations"]["com.amazon.soci.image-layer-digest"]]
        ztoc = decode_ztoc(blobs[blob["digest"]])
        reader = LayerReader(
            ztoc,
            lambda offset, length, data=layer: data[offset : offset + length],  # type: ignore[misc]
        )
        for entry in ztoc.files:
            if entry.type == b"reg":
                data = b"".join(reader.read_file(FileTree(ztoc).find(entry.name)))
                path = tmp_path / "a" / "rootfs" / os.fsdecode(entry.name)
                assert path.read_bytes() == data
                count += 1
    assert count >= 6


def test_umoci_goes_on_working_with_a_layout_of_ours(tmp_path: Path, umoci_image: Path) -> None:
    run_convert(f"oci:{umoci_image}:v1", f"oci:{umoci_image}:soci")
    assert run("umoci", "ls", "--layout", umoci_image).split() == ["v1", "soci"]
    run("umoci", "tag", "--image", f"{umoci_image}:v1", "again")
    run("umoci", "gc", "--layout", umoci_image)
    for tag in ("v1", "soci", "again"):
        check_complete(f"oci:{umoci_image}:{tag}")


@pytest.fixture(scope="module")
def files_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive that tar made of files of about 3 MB."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "root").mkdir()
    for number in range(60):
        text = f"line {number} of a file\n" * (20 * number)
        (folder / "root" / f"text-{number}").write_text(text)
        (folder / "root" / f"noise-{number}").write_bytes(noise(number, 500 * number))
    (folder / "root" / "link").symlink_to("text-5")
    (folder / "root" / "target").write_bytes(noise(99, 200_000))
    run("tar", "--sort=name", "-C", folder / "root", "-cf", folder / "files.tar", ".")
    return folder / "files.tar"


COMPRESSORS = [
    ["gzip", "-9"],
    ["gzip", "-1"],
    ["pigz", "-p2"],
    ["pigz", "-p2", "-i", "-b", "128"],
    ["pigz", "-p2", "-R"],
    ["zstd", "-q", "-19", "--long", "-c"],
    ["zstd", "-q", "-1", "-c"],
]


@pytest.mark.parametrize("command", COMPRESSORS, ids=" ".join)
@pytest.mark.parametrize("span_size", [1 << 16, 1 << 22])
def test_layers_of_real_compressors(
    tmp_path: Path,
    files_tar: Path,
    need_pigz: str,
    need_zstd: str,
    command: Sequence[str],
    span_size: int,
) -> None:
    archive = files_tar.read_bytes()
    packed = subprocess.run(command, input=archive, capture_output=True, check=True).stdout
    maker = LayoutMaker(tmp_path / "image")
    kind = OCI_LAYER_ZSTD if command[0] == "zstd" else OCI_LAYER_GZIP
    maker.tag(maker.manifest([maker.blob(packed, kind)], maker.config([sha256(archive)])))
    chosen = options(recompress_zstd=True, span_size=span_size)
    result = run_convert(maker.root, tmp_path / "d", chosen)
    blobs = check_complete(tmp_path / "d")
    (layer,) = layers_of(tmp_path / "d")
    data = blobs[layer["digest"]]
    assert gzip.decompress(data) == archive
    ((report,),) = (platform.layers for platform in result.platforms)
    assert report.ztoc is not None
    ztoc = decode_ztoc(blobs[report.ztoc.digest])
    assert len(ztoc.spans) == 1 if span_size > len(archive) else len(ztoc.spans) > 5
    reader = LayerReader(ztoc, lambda offset, length: data[offset : offset + length])
    for name, expected in (("target", noise(99, 200_000)), ("noise-59", noise(59, 29_500))):
        entry = FileTree(ztoc).find(f"./{name}".encode())
        assert b"".join(reader.read_file(entry)) == expected


def test_the_command_line_from_end_to_end(tmp_path: Path, umoci_image: Path) -> None:
    """Convert into the store, save, and read one file out of a layer of the archive's layout."""
    digest = soci(*CONVERT, f"oci:{umoci_image}:v1", "app:v1", home=tmp_path).split()[-1]
    soci("image", "save", "-o", "a.tar", "app:v1", home=tmp_path)
    shown = soci("image", "inspect", "--format", "json", "oci-archive:a.tar", home=tmp_path)
    facts = json.loads(shown)
    assert facts["digest"] == digest
    layer = facts["manifests"][0]["layers"][0]
    folder = tmp_path / ".local" / "share" / "soci" / "blobs" / "sha256"
    text = soci(
        *("ztoc", "get-file", folder / layer["ztoc"]["digest"][7:]),
        *(folder / layer["digest"][7:], "opt/etc/text"),
        home=tmp_path,
    )
    assert text == "some text\n" * 5000
