"""Images as files of the cache: what comes back is what went in, and what is damaged is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.errors import InvalidDataError
from soci_cli.lazy.erofs.image import decode, encode, key_of
from soci_cli.lazy.erofs.tree import merged_tree
from soci_cli.ztoc import decode_ztoc
from tests.lazy.erofs.checker import check
from tests.lazy.tools import entry
from tests.support.layers import tar_ztoc


def encoded() -> tuple[bytes, list[list[tuple[int, int]]]]:
    """A file, and what the whole of each of its devices is."""
    ztocs = []
    for count in (3, 0, 5):
        files = []
        for number in range(count):
            one = entry(f"{count}-{number}", size=5000)
            files.append(type(one)(one.name, one.type, 512 + number * 6000, 5000, mode=0o644))
        ztocs.append(decode_ztoc(tar_ztoc(files)))
    tree = merged_tree(ztocs, [b"a", b"b", b"c"])
    return b"".join(encode(tree)), [list(one.segments(0, one.size)) for one in tree.layouts]


def decoded(data: bytes, folder: Path) -> list[list[tuple[int, int]]]:
    path = folder / "image"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return [list(one.segments(0, one.size)) for one in decode(fd).layouts]
    finally:
        os.close(fd)


def test_layouts_come_back(tmp_path: Path) -> None:
    data, devices = encoded()
    assert decoded(data, tmp_path) == devices
    assert len(check(data[: len(data) // 4096 * 4096]).files) == 9


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "longer"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    data, _ = encoded()
    flipped = bytearray(data)
    flipped[5000] ^= 1
    broken = {"cut": data[:-1], "empty": b"", "flipped": bytes(flipped), "longer": data + b"\0"}
    with pytest.raises(InvalidDataError):
        decoded(broken[damage], tmp_path)


@given(st.lists(st.sampled_from(["sha256:a", "sha256:b"]), max_size=3))
def test_names_tell_images_apart(ztocs: list[str]) -> None:
    assert key_of("merged", ztocs) != key_of("layer", ztocs)
    assert key_of("merged", ztocs) != key_of("merged", [*ztocs, "sha256:a"])
