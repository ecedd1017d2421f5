"""skopeo and umoci read what is written here, and the other way round."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from soci_cli.errors import InvalidDataError
from soci_cli.oci.references import parse_reference
from soci_cli.targets import (
    Archive,
    ArchiveTarget,
    Layout,
    Store,
    WritableLayout,
    copy_graph,
)
from tests.support.places import GOLDEN, ref_names

IMAGE = GOLDEN / "single-gzip"
needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
needs_umoci = pytest.mark.skipif(shutil.which("umoci") is None, reason="umoci is not installed")


def run(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def skopeo_copy(source: str, target: str) -> None:
    run("skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests", source, target)


@needs_skopeo
def test_skopeo_reads_ours(tmp_path: Path) -> None:
    source = Layout(IMAGE)
    root = source.resolve()
    with WritableLayout(tmp_path / "d", "v1") as layout:
        copy_graph(source, layout, root)
        layout.tag(root)
    with ArchiveTarget(tmp_path / "a.tar", "docker.io/library/a:1") as archive:
        copy_graph(source, archive, root)
        archive.tag(root)
    places = (f"oci:{tmp_path}/d:v1", f"oci-archive:{tmp_path}/a.tar:docker.io/library/a:1")
    for number, place in enumerate(places):
        skopeo_copy(place, f"oci:{tmp_path}/out{number}:x")
        assert Layout(tmp_path / f"out{number}", "x").resolve() == root


@needs_skopeo
@pytest.mark.parametrize("name", ["single-gzip", "multi-platform", "annotated"])
def test_we_read_what_skopeo_writes(tmp_path: Path, name: str) -> None:
    root = Layout(GOLDEN / name).resolve()
    skopeo_copy(f"oci:{GOLDEN / name}:latest", f"oci-archive:{tmp_path}/a.tar:x")
    skopeo_copy(f"oci:{GOLDEN / name}:latest", f"oci:{tmp_path}/d")
    for source in (Archive(tmp_path / "a.tar", "x"), Layout(tmp_path / "d")):
        with source, ArchiveTarget(tmp_path / "b.tar") as target:
            assert source.resolve().digest == root.digest
            copy_graph(source, target, source.resolve())


@needs_skopeo
def test_writing_into_each_others_layout(tmp_path: Path) -> None:
    source = Layout(IMAGE)
    root = source.resolve()
    for tag in ("ours1", "skopeo1", "ours2", "skopeo2"):
        if tag.startswith("skopeo"):
            skopeo_copy(f"oci:{GOLDEN}/annotated:latest", f"oci:{tmp_path}/d:{tag}")
            continue
        with WritableLayout(tmp_path / "d", tag) as target:
            copy_graph(source, target, root)
            target.tag(root)
    # Some versions of skopeo keep one entry for each digest, so its own first tag may be gone.
    assert {"ours1", "ours2", "skopeo2"} <= set(ref_names(tmp_path / "d"))
    for tag in ("ours1", "ours2"):
        assert Layout(tmp_path / "d", tag).resolve() == root


@needs_skopeo
def test_skopeo_reads_the_store(tmp_path: Path) -> None:
    source = Layout(IMAGE)
    root = source.resolve()
    with Store(tmp_path / "store").open(parse_reference("alpine:3")) as target:
        copy_graph(source, target, root)
        target.tag(root)
    skopeo_copy(f"oci:{tmp_path}/store:docker.io/library/alpine:3", f"oci:{tmp_path}/out:x")
    assert Layout(tmp_path / "out").resolve() == root


@needs_skopeo
def test_a_docker_archive_is_refused_with_advice(tmp_path: Path) -> None:
    run(
        *("skopeo", "--insecure-policy", "copy", f"oci:{IMAGE}:latest"),
        f"docker-archive:{tmp_path}/docker.tar:a:1",
    )
    with pytest.raises(InvalidDataError, match="skopeo copy docker-archive:"):
        Archive(tmp_path / "docker.tar")


@needs_umoci
def test_umoci(tmp_path: Path) -> None:
    run("umoci", "init", "--layout", tmp_path / "d")
    run("umoci", "new", "--image", f"{tmp_path}/d:empty")
    source = Layout(IMAGE)
    root = source.resolve()
    with WritableLayout(tmp_path / "d", "v1") as target:
        copy_graph(source, target, root)
        target.tag(root)
    assert run("umoci", "ls", "--layout", tmp_path / "d").split() == ["empty", "v1"]
    run("umoci", "tag", "--image", f"{tmp_path}/d:v1", "v2")
    run("umoci", "gc", "--layout", tmp_path / "d")
    with ArchiveTarget(tmp_path / "a.tar") as archive:
        image = Layout(tmp_path / "d", "v2")
        copy_graph(image, archive, image.resolve())
    assert Layout(tmp_path / "d", "v2").resolve() == root
