"""Remarks: those of one kind are summed up, and together they fit into a pipe that nobody reads yet."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from soci_cli.commands.remarks import Remarks
from soci_cli.oci.media_types import OCI_LAYER_ZSTD
from tests.support.commands import SOCI, environment, on_terminal, process
from tests.support.images import LayoutMaker, gz, make_zstd_image, tar_of, zst

PIPE = 32 << 10
ALL = ("--soci", "--soci-min-layer-size", "0", "--all-platforms")


def lines_of(remarks: list[tuple[str, str]], *, limited: bool = True) -> list[str]:
    lines: list[str] = []
    remembered = Remarks(lines.append, lambda: limited)
    for text, kind in remarks:
        remembered.add(text, kind)
    remembered.close()
    return lines


def test_kinds_are_summed_up() -> None:
    remarks = [(f"layer {number} is zstd", "a layer is zstd") for number in range(5)]
    assert lines_of([*remarks, ("other", ""), ("alone", "b")]) == [
        "layer 0 is zstd",
        "layer 1 is zstd",
        "layer 2 is zstd",
        "other",
        "alone",
        "2 more of this kind: a layer is zstd",
    ]
    assert lines_of(remarks[:3]) == [text for text, _ in remarks[:3]]
    assert lines_of([("same", "a")] * 9 + [("same", "")]) == ["same"]


def test_all_remarks_fit_into_a_pipe() -> None:
    remarks = [(f"{number} {'é' * 100}", f"kind {number}") for number in range(1000)]
    assert lines_of(remarks, limited=False) == [text for text, _ in remarks]
    lines = lines_of(remarks)
    assert 20_000 < len("\n".join(lines).encode()) < PIPE
    assert lines[-1] == f"{1001 - len(lines)} more remarks are left out; --debug shows them all"
    huge = "x" * 100_000
    assert lines_of([("first", ""), (huge, ""), ("last", "")])[0] == "first"
    assert lines_of([(huge, "")]) == ["1 more remarks are left out; --debug shows them all"]


def test_a_long_error_fits_in_too() -> None:
    lines: list[str] = []
    Remarks(lines.append, lambda: True).error("é" * 100_000)
    assert len(lines[0]) == 1501
    Remarks(lines.append, lambda: False).error("é" * 100_000)
    assert len(lines[1]) == 100_000


@pytest.fixture(scope="module")
def zstd_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight platforms, each with 69 zstd layers, which they share, and ten of its own."""
    maker = LayoutMaker(tmp_path_factory.mktemp("zstd") / "image")

    def zstd_layer(name: str) -> dict[str, object]:
        return maker.blob(zst(tar_of({name: name.encode()})), OCI_LAYER_ZSTD)

    shared = [zstd_layer(f"shared-{number}") for number in range(69)]
    manifests = []
    for variant in range(8):
        own = [zstd_layer(f"{variant}-{number}") for number in range(10)]
        layers = [*shared, *own, maker.blob(gz(tar_of({"name": b"%d" % variant})))]
        config = maker.config(architecture="arm", variant=f"v{variant}")
        platform = {"os": "linux", "architecture": "arm", "variant": f"v{variant}"}
        manifests.append(maker.manifest(layers, config) | {"platform": platform})
    maker.tag(maker.index(manifests))
    return maker.root


def test_who_reads_stderr_last_does_not_wait_for_ever(zstd_image: Path, tmp_path: Path) -> None:
    place = f"oci:{zstd_image}"
    convert = ("image", "convert", *ALL)
    quiet = process(*convert, "-q", place, "oci:quiet:1", home=tmp_path).good()
    assert quiet.err == ""
    running = subprocess.Popen(
        [*SOCI, *convert, place, "oci:loud:1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=environment(tmp_path),
    )
    assert running.stdout is not None
    assert running.stderr is not None
    giving_up = threading.Timer(60, running.kill)
    giving_up.start()
    out, err = running.stdout.read(), running.stderr.read().decode()
    giving_up.cancel()
    assert running.wait() == 0
    assert out.splitlines()[-1] == quiet.out.splitlines()[-1]
    assert len(err) < PIPE
    lines = err.splitlines()
    assert len(lines) == 4
    assert lines[-1] == (
        "146 more of this kind: a layer is not indexed: its compression cannot be indexed: zstd; "
        "--zstd-layers recompress turns it into gzip"
    )

    debug = process(*convert, "--debug", place, "oci:debug:1", home=tmp_path).good()
    assert debug.err.count("is not indexed") == 149


def test_remarks_on_a_terminal(zstd_image: Path, tmp_path: Path) -> None:
    status, seen = on_terminal(
        "image", "convert", *ALL, f"oci:{zstd_image}", "oci:out:1", home=tmp_path
    )
    assert status == 0
    assert "146 more of this kind: a layer is not indexed" in seen
    make_zstd_image(tmp_path / "one")
    status, seen = on_terminal("image", "convert", *ALL, "oci:one", "oci:out:2", home=tmp_path)
    assert status == 0
    assert seen.count("is not indexed") == 1
    assert "of this kind" not in seen
