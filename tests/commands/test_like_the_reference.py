"""What scripts written for the reference, and people who know it, type: help, numbers, dashes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from soci_cli.commands.go_flags import with_two_dashes
from tests.support.commands import Soci
from tests.support.images import LayoutMaker, gz, layer_tar


@pytest.mark.parametrize(
    ("words", "like"),
    [
        ("", ""),
        ("index", "index"),
        ("ztoc", "ztoc"),
        ("image", "image"),
        ("help", ""),
        ("h", ""),
        ("help push", "push"),
        ("help index", "index"),
        ("index help", "index"),
        ("index help ls", "index ls"),
        ("help index ls", "index ls"),
        ("-help", ""),
        ("push -help", "push"),
    ],
)
def test_help(soci: Soci, words: str, like: str) -> None:
    expected = soci(*like.split(), "--help").good()
    done = soci(*words.split()).good()
    assert done.text == expected.text
    assert not done.err


@pytest.mark.parametrize("words", ["nosuch", "image nosuch", "help nosuch", "help index nosuch"])
def test_a_command_that_does_not_exist(soci: Soci, words: str) -> None:
    done = soci(*words.split())
    assert done.status == 3
    assert not done.out
    assert "No such command" in done.err


def test_one_dash(soci: Soci, tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    maker.tag(maker.manifest([maker.blob(gz(layer_tar(1, 3_000_000)))]))

    def convert(*flags: str) -> str:
        out = tmp_path / "out.tar"
        return soci("convert", "--standalone", *flags, maker.root, out).good().last

    plain = convert("--span-size", "1048576", "--min-layer-size", "0")
    assert plain != convert("--min-layer-size", "0")
    for flags in (
        "-span-size 1048576 -min-layer-size 0",
        "-span-size=0x100000 -min-layer-size=0x0 -platform linux/amd64",
        "--span-size 0X10_0000 --min-layer-size 0b0",
        "-span-size 1_048_576 -min-layer-size 0o0 -all-platforms -force -p linux/amd64",
    ):
        assert convert(*flags.split()) == plain
    for flags in ("-span-sizes 1", "-pspan-size", "--span-size 0x", "--span-size _1"):
        assert soci("convert", "--standalone", *flags.split(), maker.root, "out").status == 2


def test_what_stays_as_it_is() -> None:
    words = ["-q", "-p", "linux/amd64", "-plinux/arm64", "-fq", "--", "-force", "-platform"]
    assert list(with_two_dashes(words)) == words


@pytest.mark.parametrize(
    ("made", "asked", "is_found"),
    [
        ("linux/arm64", "linux/arm64/v8", True),
        ("linux/arm64/v8", "arm64", True),
        ("linux/arm64/v8", "linux/aarch64", True),
        ("linux/arm64", "linux/arm", False),
        ("linux/arm64", "windows/arm64", False),
        ("linux/arm64", "linux/x86_64,aarch64", True),
    ],
)
def test_platforms_of_indexes(
    soci: Soci, tmp_path: Path, made: str, asked: str, is_found: bool
) -> None:
    maker = LayoutMaker(tmp_path / "image")
    manifest = maker.manifest([maker.blob(gz(layer_tar(1)))], maker.config(architecture="arm64"))
    maker.tag(maker.index([{**manifest, "platform": {"os": "linux", "architecture": "arm64"}}]))
    create = ("--content-store", "soci", "create", "--min-layer-size", "0", "--platform", made)
    soci(*create, f"oci:{maker.root}").good()
    rows = soci("index", "ls", "--format", "json", "--platform", asked).good().text.splitlines()
    assert len([json.loads(row)["digest"] for row in rows]) == is_found
