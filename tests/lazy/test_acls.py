"""Access control lists that the kernel can obey."""

from __future__ import annotations

import struct

from soci_cli.lazy.acls import usable
from soci_cli.lazy.fuse.owners import same_owners


def acl(*entries: tuple[int, int, int]) -> bytes:
    return b"\2\0\0\0" + b"".join(struct.pack("<HHI", *one) for one in entries)


def test_lists_that_are_none_are_left_out() -> None:
    good = acl((1, 6, 0), (2, 4, 4711), (4, 0, 0), (16, 4, 0), (32, 0, 0))
    name = b"system.posix_acl_access"
    other = (b"user.a", b"\2\0\0\0")
    assert usable([(name, good), other], same_owners) == ((name, good), other)
    for bad in (b"", good[:-1], good[4:], good[:12], b"\3" + good[1:]):
        assert usable([(name, bad), other], same_owners) == (other,)


def test_ids_that_are_not_in_the_namespace() -> None:
    """Nobody there has them, and the kernel would refuse all access."""

    def owners(user: int, group: int) -> tuple[int, int]:
        return (user if user < 1000 else 0), (group if group < 100 else 0)

    name = b"system.posix_acl_default"
    value = acl(
        (1, 7, 9999),
        (2, 1, 500),
        (2, 2, 1500),
        (4, 7, 9999),
        (8, 3, 50),
        (8, 4, 500),
        (16, 7, 9999),
        (32, 0, 9999),
    )
    kept = acl((1, 7, 9999), (2, 1, 500), (4, 7, 9999), (8, 3, 50), (16, 7, 9999), (32, 0, 9999))
    assert usable([(name, value)], owners) == ((name, kept),)
