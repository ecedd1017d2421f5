"""The ztoc commands."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from tests.support.commands import SOCI, Soci, environment, process
from tests.support.images import GOLDEN, REFERENCE_TOOL, gz, noise, sha256, tar_of
from tests.support.machine import PROJECT

ROWS = json.loads((GOLDEN / "ztocs.json").read_text())
LAYER = GOLDEN / "layers" / "gnu-big-l6.tar.gz"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_build(soci: Soci, tmp_path: Path) -> None:
    out = tmp_path / "z"
    done = soci("ztoc", "build", "-o", out, LAYER).good()
    assert done.last == sha256(out.read_bytes())
    assert done.err == ""
    assert soci("ztoc", "build", LAYER).good().out == out.read_bytes()
    assert soci("ztoc", "build", "-q", "--output", out, LAYER).good().out == done.out


def test_build_as_the_reference_does(soci: Soci, tmp_path: Path) -> None:
    rows = [row for row in ROWS if row["layer"] == LAYER.name and "ztoc_digest" in row]
    assert rows
    for row in rows:
        done = soci(
            *("ztoc", "build", "--span-size", str(row["span_size"]), "-o", tmp_path / "z"),
            *("--build-tool-identifier", REFERENCE_TOOL, LAYER),
        ).good()
        assert done.last == row["ztoc_digest"]


@pytest.mark.parametrize("name", ["gnu-big-l6.tar.gz", "plain.tar", "multi-member.tar.gz"])
def test_build_from_a_stream(tmp_path: Path, name: str) -> None:
    layer = GOLDEN / "layers" / name
    expected = process("ztoc", "build", layer, home=tmp_path).good().out
    data = layer.read_bytes()
    assert process("ztoc", "build", "-", home=tmp_path, stdin=data).good().out == expected
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(data,))
    writer.start()
    assert process("ztoc", "build", fifo, home=tmp_path).good().out == expected
    writer.join()


def test_the_file_is_replaced_whole_or_not_at_all(soci: Soci, tmp_path: Path) -> None:
    out = tmp_path / "z"
    out.write_text("as before")
    bad = GOLDEN / "layers" / "bad-crc.tar.gz"
    soci("ztoc", "build", "-o", out, bad).bad(1, "bad-crc.tar.gz", "gzip")
    assert out.read_text() == "as before"
    assert names(tmp_path) == ["z"]
    soci("ztoc", "build", "-o", out, LAYER).good()
    assert names(tmp_path) == ["z"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(out.stat().st_mode) == 0o666 & ~mask


def test_what_is_no_file_is_written_to(soci: Soci, tmp_path: Path) -> None:
    soci("ztoc", "build", "-o", "/dev/null", LAYER).good()
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    link = tmp_path / "link"
    link.symlink_to("/dev/null")
    soci("ztoc", "build", "-o", link, LAYER).good()
    assert link.is_symlink()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    done = soci("ztoc", "build", "-o", fifo, LAYER).good()
    reader.join()
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert sha256(got[0]) == done.last


@pytest.mark.parametrize("name", sorted(path.name for path in (GOLDEN / "layers").glob("bad-*")))
def test_bad_layers(soci: Soci, tmp_path: Path, name: str) -> None:
    if "pax-global" in name:
        soci("ztoc", "build", "-o", tmp_path / "z", GOLDEN / "layers" / name).good()
        return
    soci("ztoc", "build", "-o", tmp_path / "z", GOLDEN / "layers" / name).bad(1, name)
    assert names(tmp_path) == []


def test_wrong_arguments(soci: Soci, tmp_path: Path) -> None:
    soci("ztoc", "build", GOLDEN / "layers" / "ustar.tar.zst").bad(1, "zstd")
    soci("ztoc", "build", tmp_path / "none").bad(1, "none")
    soci("ztoc", "build", tmp_path).bad(1, "folder")
    soci("ztoc", "build", "-o", tmp_path / "no" / "z", LAYER).bad(1, str(tmp_path / "no" / "z"))
    soci("ztoc", "build", "--span-size", "x", LAYER).bad(2, "'x'")
    soci("ztoc", "info", tmp_path / "none").bad(1, "none")
    soci("ztoc", "info", LAYER).bad(1, LAYER.name)
    soci("ztoc", "info", "/dev/null").bad(1, "/dev/null")


@pytest.fixture
def ztoc(soci: Soci, tmp_path: Path) -> Path:
    out = tmp_path / "ztoc"
    soci("ztoc", "build", "--span-size", "64KiB", "-o", out, LAYER).good()
    return out


def test_info(soci: Soci, ztoc: Path) -> None:
    text = soci("ztoc", "info", ztoc).good().text
    rows = dict(line.split("   ", 1) for line in text.splitlines())
    assert rows["version"].strip() == "0.9"
    assert rows["build tool"].strip() == "soci-cli"
    listed = soci("ztoc", "info", "--files", ztoc).good().text
    assert "opt/big.txt" in listed
    value = json.loads(soci("ztoc", "info", "--format", "json", ztoc).good().out)
    assert value["num_files"] == len(value["files"]) == int(rows["files"])
    assert value["num_spans"] == int(rows["spans"])
    assert value["size"] == ztoc.stat().st_size
    with tarfile.open(LAYER) as tar:
        for member, entry in zip(tar, value["files"], strict=True):
            assert entry["filename"].rstrip("/") == member.name
            assert entry["offset"] == member.offset_data
            assert entry["start_span"] <= entry["end_span"] < value["num_spans"]


def test_info_from_stdin(ztoc: Path, tmp_path: Path) -> None:
    done = process("ztoc", "info", "-", home=tmp_path, stdin=ztoc.read_bytes()).good()
    assert done.out == process("ztoc", "info", ztoc, home=tmp_path).good().out
    process("ztoc", "info", "-", home=tmp_path, stdin=b"x").bad(1, "stdin")


def content(name: str) -> bytes:
    with tarfile.open(LAYER) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


@pytest.mark.parametrize("name", ["opt/big.txt", "opt/big2.txt", "etc/conf.d/001/file-1.txt"])
def test_get_file(soci: Soci, ztoc: Path, tmp_path: Path, name: str) -> None:
    done = soci("ztoc", "get-file", ztoc, LAYER, name).good()
    assert done.out == content(name)
    assert done.err == ""
    assert soci("ztoc", "get-file", ztoc, LAYER, f"/./{name}").good().out == done.out
    soci("ztoc", "get-file", "-o", tmp_path / "out", ztoc, LAYER, name).good()
    assert (tmp_path / "out").read_bytes() == done.out


def test_get_file_through_links(soci: Soci, ztoc: Path) -> None:
    expected = content("etc/conf.d/001/file-1.txt")
    for link in ("etc/link", "etc/hard"):
        assert soci("ztoc", "get-file", ztoc, LAYER, link).good().out == expected


@pytest.mark.parametrize("name", ["no/such", "", "/", "etc", "dev/null", "run/fifo", "x\x1b[0m"])
def test_get_what_is_no_file(soci: Soci, ztoc: Path, tmp_path: Path, name: str) -> None:
    done = soci("ztoc", "get-file", "-o", tmp_path / "out", ztoc, LAYER, name).bad(1)
    assert "\x1b" not in done.err
    assert not (tmp_path / "out").exists()


def test_get_file_from_streams(ztoc: Path, tmp_path: Path) -> None:
    expected = content("opt/big2.txt")
    data = LAYER.read_bytes()
    arguments = ("ztoc", "get-file", ztoc, "-", "opt/big2.txt")
    assert process(*arguments, home=tmp_path, stdin=data).good().out == expected
    arguments = ("ztoc", "get-file", Path("-"), str(LAYER), "opt/big2.txt")
    assert process(*arguments, home=tmp_path, stdin=ztoc.read_bytes()).good().out == expected
    process("ztoc", "get-file", "-", "-", "x", home=tmp_path).bad(2, "stdin")
    cut = ("ztoc", "get-file", ztoc, "-", "opt/big2.txt")
    process(*cut, home=tmp_path, stdin=data[: len(data) // 2]).bad(1, "stdin")


def test_names_that_are_no_text(soci: Soci, tmp_path: Path) -> None:
    raw = b"caf\xe9"
    archive = bytearray(tar_of({"cafX": b"coffee"}))
    archive[:4] = raw
    archive[148:156] = b" " * 8
    archive[148:156] = b"%06o\0 " % sum(archive[:512])
    layer = tmp_path / "layer"
    layer.write_bytes(gz(bytes(archive)))
    soci("ztoc", "build", "-o", tmp_path / "z", layer).good()
    done = soci("ztoc", "get-file", tmp_path / "z", layer, os.fsdecode(raw)).good()
    assert done.out == b"coffee"
    assert json.loads(soci("ztoc", "info", "--format", "json", tmp_path / "z").good().out)
    soci("ztoc", "info", "--files", tmp_path / "z").good()
    soci("ztoc", "get-file", tmp_path / "z", layer, os.fsdecode(b"caf\xff")).bad(1)


@pytest.mark.parametrize("damage", ["bit", "cut", "other"])
def test_a_layer_that_is_not_the_ztocs(soci: Soci, ztoc: Path, tmp_path: Path, damage: str) -> None:
    data = bytearray(LAYER.read_bytes())
    if damage == "bit":
        data[-5000] ^= 1
    elif damage == "cut":
        del data[-5000:]
    else:
        data[:] = gz(tar_of({"opt/big2.txt": noise(1, len(data))}))
    layer = tmp_path / "layer"
    layer.write_bytes(data)
    out = tmp_path / "out"
    out.write_text("as before")
    soci("ztoc", "get-file", "-o", out, ztoc, layer, "opt/big2.txt").bad(1, str(layer), "span")
    assert out.read_text() == "as before"
    assert names(tmp_path) == ["layer", "out", "ztoc"]


def test_a_closed_pipe_is_no_error(ztoc: Path, tmp_path: Path) -> None:
    for command in (
        f"ztoc get-file {ztoc} {LAYER} opt/big.txt",
        f"ztoc info --files {ztoc}",
        f"ztoc info --format json {ztoc}",
        f"ztoc build --span-size 10k {LAYER}",
    ):
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {' '.join(SOCI)} {command} | head -c 1 >/dev/null"],
            capture_output=True,
            text=True,
            cwd=PROJECT,
            env=environment(tmp_path),
        )
        assert done.stderr == ""
        assert done.returncode in (0, 141)


def test_a_full_device(ztoc: Path, tmp_path: Path) -> None:
    """Where output cannot be written the command fails, and says why."""
    for command in (
        f"ztoc info {ztoc} > /dev/full",
        f"ztoc get-file {ztoc} {LAYER} opt/big.txt > /dev/full",
        f"ztoc get-file -o /dev/full {ztoc} {LAYER} opt/big.txt",
        f"ztoc build {LAYER} > /dev/full",
    ):
        done = subprocess.run(
            ["bash", "-c", f"{' '.join(SOCI)} {command}"],
            capture_output=True,
            text=True,
            cwd=PROJECT,
            env=environment(tmp_path),
        )
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "No space left" in done.stderr


def test_the_same_bytes_everywhere(tmp_path: Path) -> None:
    """The zTOC does not depend on the library that inflates."""
    digests = set()
    for library in ("zlib-ng", "zlib"):
        done = process("ztoc", "build", LAYER, home=tmp_path, env={"SOCI_ZLIB": library}).good()
        digests.add(hashlib.sha256(done.out).hexdigest())
    assert len(digests) == 1
