"""POSIX access control lists, as Linux has them in extended attributes (linux/posix_acl_xattr.h)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import Struct

ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
_ACL_ENTRY = Struct("<HHI")  # tag, permissions, id
_ACL_VERSION = b"\2\0\0\0"
_USER_OBJECT, _USER, _GROUP_OBJECT, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32


def is_acl(value: bytes) -> bool:
    """Whether the kernel takes this for a POSIX access control list (acl(5), posix_acl_valid)."""
    if len(value) % _ACL_ENTRY.size != len(_ACL_VERSION) or not value.startswith(_ACL_VERSION):
        return False
    entries = list(_ACL_ENTRY.iter_unpack(value[len(_ACL_VERSION) :]))
    tags = [tag for tag, _, _ in entries]
    named = tags.count(_USER) + tags.count(_GROUP)
    return (
        tags == sorted(tags)
        and all(bits <= 7 for _, bits, _ in entries)
        and all(tags.count(tag) == 1 for tag in (_USER_OBJECT, _GROUP_OBJECT, _OTHER))
        and tags.count(_MASK) in ((1,) if named else (0, 1))
        and len(tags) == 3 + named + tags.count(_MASK)
    )


def usable(
    xattrs: Iterable[tuple[bytes, bytes]], owners: Callable[[int, int], tuple[int, int]]
) -> tuple[tuple[bytes, bytes], ...]:
    """Extended attributes, of which lists are such that the kernel can obey them.

    It refuses all access to a file with a list that is none, or that has an id which its user namespace
    does not have. The former are left out, and the entries of users and groups that `owners` changes, which
    nobody there can be.
    """
    found = []
    for name, value in xattrs:
        if name in (ACCESS, DEFAULT):
            if not is_acl(value):
                continue
            value = _without_strangers(value, owners)
        found.append((name, value))
    return tuple(found)


def _without_strangers(value: bytes, owners: Callable[[int, int], tuple[int, int]]) -> bytes:
    kept = [_ACL_VERSION]
    for tag, bits, number in _ACL_ENTRY.iter_unpack(value[len(_ACL_VERSION) :]):
        if tag not in (_USER, _GROUP) or owners(number, number)[tag == _GROUP] == number:
            kept.append(_ACL_ENTRY.pack(tag, bits, number))
    return b"".join(kept)
