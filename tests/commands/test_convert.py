"""`soci image convert` and `soci image inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from soci_cli.targets import Layout
from tests.support.commands import Soci
from tests.support.images import (
    GOLDEN,
    REFERENCE_TOOL,
    LayoutMaker,
    blob_json,
    check_complete,
    make_zstd_image,
    read_index,
    soci_entries,
)

CONVERT = ("image", "convert", "--soci", "--soci-min-layer-size", "0")
SPAN_SIZE = "com.amazon.soci.span-size"


def span_sizes(root: Path) -> set[str]:
    layers = blob_json(root, soci_entries(read_index(root))[0])["layers"]
    return {
        layer["annotations"][SPAN_SIZE] for layer in layers if SPAN_SIZE in layer["annotations"]
    }


def test_the_last_line_is_the_digest(soci: Soci, image: Path, tmp_path: Path) -> None:
    done = soci(*CONVERT, f"oci:{image}", f"oci:{tmp_path}/d").good()
    entries = json.loads((tmp_path / "d" / "index.json").read_bytes())["manifests"]
    assert done.text == f"{entries[0]['digest']}\n"
    assert done.err == ""


def test_a_second_time_says_so(soci: Soci, image: Path, tmp_path: Path) -> None:
    first = soci(*CONVERT, f"oci:{image}", f"oci:{tmp_path}/d").good()
    again = soci(*CONVERT, f"oci:{image}", f"oci:{tmp_path}/d").good()
    assert again.out == first.out
    assert again.err == f"oci:{tmp_path}/d is converted already; nothing changed\n"
    quiet = soci(*CONVERT, "-q", f"oci:{image}", f"oci:{tmp_path}/d").good()
    assert (quiet.out, quiet.err) == (first.out, "")
    forced = soci(*CONVERT, "--force", f"oci:{image}", f"oci:{tmp_path}/d").good()
    assert (forced.out, forced.err) == (first.out, "")


def test_the_golden_digest(soci: Soci, tmp_path: Path) -> None:
    rows = json.loads((GOLDEN / "conversions.json").read_text())
    row = next(row for row in rows if row["case"] == "mp-two")
    done = soci(
        *CONVERT,
        *("--build-tool-identifier", REFERENCE_TOOL, "--oci"),
        *("--platform", "linux/arm64/v8", "-p", "linux/arm/v7"),
        f"oci:{GOLDEN}/images/multi-platform",
        f"oci:{tmp_path}/d",
    ).good()
    assert done.last == row["digest"]


@pytest.mark.parametrize(
    ("written", "size"),
    [("65536", 65536), ("64KiB", 65536), ("64k", 65536), ("1MiB", 1 << 20), ("0.5m", 1 << 19)],
)
def test_sizes(soci: Soci, image: Path, tmp_path: Path, written: str, size: int) -> None:
    soci(*CONVERT, "--soci-span-size", written, f"oci:{image}", f"oci:{tmp_path}/d").good()
    assert span_sizes(tmp_path / "d") == {str(size)}


def test_all_platforms(soci: Soci, tmp_path: Path) -> None:
    source = f"oci:{GOLDEN}/images/multi-platform"
    soci(*CONVERT, "--all-platforms", source, f"oci:{tmp_path}/d").good()
    assert len(soci_entries(read_index(tmp_path / "d"))) == 3


def test_optimizations_and_prefetch(soci: Soci, tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text('["opt/big2.txt"]')
    done = soci(
        *CONVERT,
        *("--optimizations", "xattr", "--prefetch-file", "/nope", "--prefetch-files-json", names),
        *("--prefetch-file", "etc/conf.d/001/file-1.txt"),
        f"oci:{GOLDEN}/images/single-gzip",
        f"oci:{tmp_path}/d",
    ).good()
    assert done.err == "prefetch file /nope is in no indexed layer\n"
    inspected = json.loads(soci("image", "inspect", "--format", "json", f"oci:{tmp_path}/d").out)
    layers = inspected["manifests"][0]["layers"]
    assert [layer["prefetch_spans"] for layer in layers if layer["prefetch_spans"]]


def test_zstd(soci: Soci, tmp_path: Path) -> None:
    image = make_zstd_image(tmp_path / "image").root
    skipped = soci(*CONVERT, f"oci:{image}", f"oci:{tmp_path}/d").good()
    assert len(skipped.err.splitlines()) == 1
    assert "zstd" in skipped.err
    explicit = soci(*CONVERT, "--zstd-layers", "skip", f"oci:{image}", f"oci:{tmp_path}/d").good()
    assert explicit.out == skipped.out
    done = soci(*CONVERT, "--zstd-layers", "recompress", f"oci:{image}", f"oci:{tmp_path}/e").good()
    assert done.err == ""
    assert done.out != skipped.out
    check_complete(tmp_path / "e")


def test_the_default_minimum(soci: Soci, image: Path, tmp_path: Path) -> None:
    arguments = ("image", "convert", "--soci", f"oci:{image}", f"oci:{tmp_path}/d")
    soci(*arguments).bad(1, str(image), "10485760")
    assert not (tmp_path / "d").exists() or not (tmp_path / "d" / "index.json").exists()


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--soci-span-size", "many"], 2, "'many'"),
        (["--soci-span-size", "0"], 2, "span size"),
        (["--soci-span-size", "-1"], 2, "'-1'"),
        (["--soci-min-layer-size", "1.3"], 2, "whole number"),
        (["--soci-min-layer-size", "9999999999GiB"], 2, "2**62"),
        (["--platform", "a/b/c/d"], 2, "a/b/c/d"),
        (["--platform", "linux/s390x"], 1, "linux/s390x"),
        (["--prefetch-files-json", "/no/such/file"], 2, "/no/such/file"),
        (["--build-tool-identifier", "a\nb"], 2, "identifier"),
    ],
)
def test_wrong_flags(
    soci: Soci, image: Path, tmp_path: Path, flags: list[str], status: int, words: str
) -> None:
    soci(*CONVERT, *flags, f"oci:{image}", f"oci:{tmp_path}/d").bad(status, words)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("source", "target", "status", "words"),
    [
        ("oci:{}/none", "oci:{}/d", 1, "none"),
        ("oci:{}/image:none", "oci:{}/d", 1, "latest"),
        ("oci-archive:{}/none.tar", "oci:{}/d", 1, "none.tar"),
        ("nosuch", "oci:{}/d", 1, "docker.io/library/nosuch:latest"),
        ("docker-daemon:alpine", "oci:{}/d", 2, "docker-daemon:alpine"),
        ("docker://127.0.0.1:1/UPPER", "oci:{}/d", 2, "lower case"),
        ("oci:", "oci:{}/d", 2, "no path"),
        ("", "oci:{}/d", 2, "place is missing"),
        ("UPPER", "oci:{}/d", 2, "UPPER"),
        ("oci:{}/image", "oci:{}/d@sha256:" + "0" * 64, 2, "digest"),
        ("oci:{}/image", "oci:{}/file", 1, "file"),
        ("oci:{}/image", "oci:{}/file/below", 1, "file"),
        ("oci:{}/image", "oci:{}/full", 1, "full"),
        ("oci:{}/image", "oci-archive:{}/full", 1, "full"),
        ("oci:{}/image", "oci:/proc/none", 1, "/proc/none"),
        ("oci:{}/image", "app@sha256:" + "0" * 64, 2, "sha256:0000"),
        ("oci:{}/file", "oci:{}/d", 1, "file"),
        ("oci:{}/full", "oci:{}/d", 1, "full"),
        ("oci-archive:{}/file", "oci:{}/d", 1, "file"),
        ("oci-archive:{}", "oci:{}/d", 1, "no regular file"),
    ],
)
def test_wrong_places(
    soci: Soci, image: Path, tmp_path: Path, source: str, target: str, status: int, words: str
) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other").write_text("another file")
    done = soci(*CONVERT, source.format(tmp_path), target.format(tmp_path))
    done.bad(status, words)
    assert not (tmp_path / "d").exists()
    assert (tmp_path / "full" / "other").read_text() == "another file"


def test_what_to_convert_to_must_be_said(soci: Soci, image: Path, tmp_path: Path) -> None:
    soci("image", "convert", f"oci:{image}", f"oci:{tmp_path}/d").bad(2, "--soci")


@pytest.mark.parametrize(
    "arguments",
    [
        ["image", "convert", "--soci", "oci:a"],
        ["image", "convert", "--soci", "oci:a", "oci:b", "oci:c"],
        ["image", "convert", "--soci", "--optimizations", "speed", "oci:a", "oci:b"],
        ["image", "convert", "--soci", "--zstd-layers", "keep", "oci:a", "oci:b"],
        ["image", "convert", "--no-such-flag", "oci:a", "oci:b"],
        ["image", "inspect", "--format", "xml", "oci:a"],
        ["image", "rm"],
        ["ztoc", "build"],
    ],
)
def test_wrong_command_lines(soci: Soci, arguments: list[str]) -> None:
    done = soci(*arguments)
    assert done.status == 2
    assert done.out == b""
    assert "Error: " in done.err
    assert "Traceback" not in done.err


def test_an_error_names_layer_and_place(soci: Soci, tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    layer = maker.blob((GOLDEN / "layers" / "bad-crc.tar.gz").read_bytes())
    maker.tag(maker.manifest([layer]))
    done = soci(*CONVERT, f"oci:{maker.root}", f"oci:{tmp_path}/d")
    done.bad(1, layer["digest"], str(maker.root))


def test_only_a_defect_has_a_traceback(
    soci: Soci, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (("--debug", "image", "inspect"), ("image", "inspect", "--debug")):
        soci(*arguments, f"oci:{tmp_path}/none").bad(1, "there is no folder")

    def broken(*_: object) -> None:
        raise ValueError("odd\nvalue")

    monkeypatch.setattr(Layout, "resolve", broken)
    soci("image", "inspect", f"oci:{tmp_path}/none").bad(
        1, "internal error: ValueError: odd", "--debug"
    )
    done = soci("--debug", "image", "inspect", f"oci:{tmp_path}/none")
    assert done.status == 1 and "Traceback" in done.err and "in broken" in done.err
    assert done.err.splitlines()[-1].startswith("soci: internal error: ValueError: odd")


# inspect


def test_the_tree(soci: Soci, tmp_path: Path) -> None:
    soci(*CONVERT, f"oci:{GOLDEN}/images/with-attestation", f"oci:{tmp_path}/d").good()
    lines = soci("image", "inspect", f"oci:{tmp_path}/d").good().text.splitlines()
    assert "SOCI v2" in lines[0]
    assert "linux/amd64" in lines[1]
    assert "1 of 1 layers indexed" in lines[1]
    assert "38 files" in lines[2]
    assert "artifact" in lines[3]
    assert "no zTOC" in lines[4]
    assert len(lines) == 5
    plain = soci("image", "inspect", f"oci:{GOLDEN}/images/single-gzip").good()
    assert "no SOCI index" in plain.text


def test_inspect_for_scripts(soci: Soci, tmp_path: Path) -> None:
    digest = soci(*CONVERT, f"oci:{GOLDEN}/images/single-gzip", f"oci:{tmp_path}/d").good().last
    value = json.loads(soci("image", "inspect", "--format", "json", f"oci:{tmp_path}/d").good().out)
    assert value["digest"] == digest
    assert value["soci"] == "v2"
    layer = value["manifests"][0]["layers"][0]
    assert layer["ztoc"]["span_size"] == 4 << 20
    assert layer["ztoc"]["files"] > 30


def test_names_cannot_write_to_the_terminal(soci: Soci, tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    layer = maker.blob(b"x" * 100, "application/\x1b[31mred")
    maker.tag(maker.manifest([layer], maker.config(architecture="\x1b]0;title\x07")))
    for arguments in (["image", "inspect"], [*CONVERT, "--all-platforms"]):
        places = [f"oci:{maker.root}", f"oci:{tmp_path}/d"]
        done = soci(*arguments, *places[: 2 if "convert" in arguments else 1])
        assert b"\x1b" not in done.out
        assert "\x1b" not in done.err
