"""Images of metadata: whatever tree goes in is what a reader that believes nothing finds in them."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.errors import UnsupportedLayerError
from soci_cli.lazy.acls import is_acl
from soci_cli.lazy.erofs import format as erofs
from soci_cli.lazy.erofs.metadata import (
    Attributes,
    Device,
    Directory,
    Inodes,
    Metadata,
    device_starts,
)
from soci_cli.lazy.erofs.xattrs import body_of
from tests.lazy.erofs.checker import check

ACL = bytes.fromhex("02000000 01000600ffffffff 04000400ffffffff 20000400ffffffff".replace(" ", ""))
NAMED_ACL = bytes.fromhex(
    "0200000001000600ffffffff02000600e803000004000400ffffffff10000600ffffffff20000400ffffffff"
)
DEVICES = [Device(b"first", 40), Device(b"second", 9)]
STARTS = device_starts(DEVICES)
names = st.binary(min_size=1, max_size=255).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
xattr_names = st.builds(
    lambda prefix, rest: prefix + rest,
    st.sampled_from([b"user.", b"trusted.", b"security.x"]),
    st.binary(min_size=1, max_size=60).filter(lambda rest: b"\0" not in rest),
)
xattrs = st.dictionaries(xattr_names, st.binary(max_size=200), max_size=3)
attributes = st.builds(
    lambda mode, owner, seconds, nanoseconds, found: Attributes(
        mode, (owner, owner >> 3), (seconds, nanoseconds), body_of(found.items())
    ),
    st.integers(0, 0o7777), st.integers(0, 2**32 - 2), st.integers(-(2**40), 2**40),
    st.integers(0, 10**9 - 1), xattrs,
)  # fmt: skip


@dataclass
class Tree:
    """A random tree that is built up, and what is to be found of it."""

    root: Directory
    inodes: Inodes = field(default_factory=Inodes)
    expected: dict[bytes, tuple[object, ...]] = field(default_factory=dict)


def add_inode(tree: Tree, data: st.DataObject) -> int:
    number = len(tree.inodes)
    kind = data.draw(st.sampled_from(sorted(erofs.FILE_TYPES.keys() - {stat.S_IFDIR})))
    about = data.draw(attributes)
    size = place = 0
    if kind == stat.S_IFREG:
        at = data.draw(st.integers(0, 1))
        size = data.draw(st.integers(0, DEVICES[at].blocks * erofs.BLOCK))
        blocks = -(-size // erofs.BLOCK)
        place = STARTS[at] + data.draw(st.integers(0, DEVICES[at].blocks - blocks)) if size else 0
    if kind == stat.S_IFLNK:
        target = data.draw(st.binary(min_size=1, max_size=4095)).replace(b"\0", b"-")
        tree.inodes.targets[number] = target
        size = len(target)
    mode = kind | about.mode
    tree.inodes.heads.extend(
        erofs.inode(erofs.PLAIN, 0, mode, size, place, number, about.owner, about.mtime, 1)
    )
    tree.inodes.types.append(erofs.FILE_TYPES[kind])
    if about.xattrs:
        tree.inodes.xattrs[number] = about.xattrs
    return number


@given(st.data())
def test_trees_are_found_again(data: st.DataObject) -> None:
    tree = Tree(Directory(None, data.draw(attributes)))
    directories = {b"": tree.root}
    paths: dict[bytes, int] = {}
    for _ in range(data.draw(st.integers(0, 25))):
        above = data.draw(st.sampled_from(sorted(directories)))
        name = data.draw(names)
        path = above + b"/" + name if above else name
        if path in directories or path in paths:
            continue
        if data.draw(st.booleans()):
            child = Directory(directories[above], data.draw(attributes))
            directories[path] = directories[above].children[name] = child
            continue
        if paths and data.draw(st.integers(0, 3)) == 0:
            number = paths[data.draw(st.sampled_from(sorted(paths)))]
            tree.inodes.shared.add(number)
        else:
            number = add_inode(tree, data)
        paths[path] = directories[above].children[name] = number

    metadata = Metadata(tree.root, tree.inodes, DEVICES)
    found = check(metadata.data)
    assert found.files.keys() == directories.keys() | paths.keys()
    assert metadata.inodes == len(directories) + len(set(paths.values()))
    assert found.devices == [
        (start, one.blocks) for start, one in zip(STARTS, DEVICES, strict=True)
    ]
    for path, number in paths.items():
        one = found.files[path]
        _, _, mode, _, size, place, *_ = tree.inodes.head(number)
        assert (one.mode, one.size) == (mode, size)
        if stat.S_ISREG(mode):
            assert one.place == place
        assert one.links == list(paths.values()).count(number)
        assert found.targets.get(path) == tree.inodes.targets.get(number)
        assert (one.xattrs != ()) == (number in tree.inodes.xattrs)
    for path, directory in directories.items():
        one = found.files[path]
        about = directory.attributes
        assert (one.mode & 0o7777, one.owner, one.mtime) == (about.mode, about.owner, about.mtime)


@pytest.mark.parametrize(
    ("count", "length"),
    [
        (0, 1),
        (1, 1),
        (200, 1),
        (1, 8),
        (203, 8),
        (204, 8),
        (5000, 8),
        (15, 255),
        (16, 255),
        (900, 255),
    ],
)
def test_directories_of_every_size(count: int, length: int) -> None:
    root = Directory(None, Attributes())
    below = root.children[b"below"] = Directory(
        root, Attributes(xattrs=body_of([(b"user.a", b"b")]))
    )
    inodes = Inodes()
    for number in range(count):
        name = bytes([number + 48]) if length == 1 else b"%0*d" % (length, number)
        below.children[name] = number
        inodes.heads.extend(
            erofs.inode(erofs.PLAIN, 0, stat.S_IFREG | 0o644, 0, 0, number, (0, 0), (0, 0), 1)
        )
        inodes.types.append(1)
    found = check(Metadata(root, inodes, []).data)
    assert len(found.files) == count + 2
    assert found.files[b"below"].xattrs == ((b"user.a", b"b"),)


def test_devices_beyond_the_address_space_are_refused() -> None:
    with pytest.raises(UnsupportedLayerError, match="more bytes"):
        device_starts([Device(b"a", 1 << 31), Device(b"b", 1 << 31)])


@pytest.mark.parametrize(
    ("value", "good"),
    [
        (ACL, True),
        (NAMED_ACL, True),
        (b"", False),
        (ACL[:-1], False),
        (ACL[:4], False),
        (b"\1" + ACL[1:], False),
        (ACL + ACL[4:12], False),
        (ACL[:4] + ACL[12:] + ACL[4:12], False),
        (NAMED_ACL[:28] + NAMED_ACL[36:], False),  # a named entry needs a mask
    ],
)
def test_access_control_lists(value: bytes, good: bool) -> None:
    assert is_acl(value) is good
    assert (body_of([(b"system.posix_acl_access", value)]) != b"") is good


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"trusted.overlay.opaque", b"y"),
        (b"user.overlay.whiteout", b"y"),
        (b"security.capability", b"none"),
        (b"user.", b""),
        (b"user.\0", b""),
        (b"other.name", b""),
        (b"user." + b"n" * 251, b""),
        (b"user.large", bytes(1 << 16)),
    ],
)
def test_attributes_that_are_left_out(name: bytes, value: bytes) -> None:
    assert body_of([(name, value)]) == b""


def test_capabilities_are_kept() -> None:
    value = bytes.fromhex("0100000200040000000000000000000000000000")
    assert body_of([(b"security.capability", value)])
