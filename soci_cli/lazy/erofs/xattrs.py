"""Extended attributes as EROFS has them, and which of them the kernel can be given.

What the kernel would take wrongly is left out: attributes that steer an overlayfs above, access control
lists and capabilities that are none, with which nobody could open the file, and names that cannot be asked
for.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

from soci_cli.lazy.erofs.format import xattr_body
from soci_cli.ztoc.attributes import STEERING

_MAX_NAME = 255  # XATTR_NAME_MAX, with the prefix
_MAX_VALUE = 0xFFFF
_MAX_BODY = 60 << 10  # of all of a file, below XATTR_LIST_MAX
_ACCESS, _DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
_TRUSTED = 4
_PREFIXES = ((b"user.", 1), (b"trusted.", _TRUSTED), (b"security.", 6))
_HEADER = 12  # bytes of a body before its first attribute
_CAPABILITY = b"security.capability"
_ACL_ENTRY = Struct("<HHI")  # tag, permissions, id
_ACL_VERSION = b"\2\0\0\0"
_USER_OBJECT, _USER, _GROUP_OBJECT, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
_CAPABILITY_SIZES = (12, 20, 24)  # of revisions 1 to 3


def body_of(xattrs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """What follows an inode for xattrs with full names; b"" when none is left."""
    found: dict[tuple[int, bytes], bytes] = {}
    for name, value in xattrs:
        key = _key(name, value)
        if key is not None:
            found[key] = value
    if not found:
        return b""
    body = xattr_body((prefix, rest, value) for (prefix, rest), value in sorted(found.items()))
    return body if len(body) <= _MAX_BODY else b""


def marked(body: bytes) -> bytes:
    """The body with overlayfs' mark of a directory that hides all below."""
    mark = xattr_body([(_TRUSTED, b"overlay.opaque", b"y")])
    return body + mark[_HEADER:] if body else mark


def _key(name: bytes, value: bytes) -> tuple[int, bytes] | None:
    """The prefix's number and the rest of a name; None for what is left out."""
    if (
        len(name) > _MAX_NAME
        or len(value) > _MAX_VALUE
        or b"\0" in name
        or name.startswith(STEERING)
    ):
        return None
    if name in (_ACCESS, _DEFAULT):
        return (2 if name == _ACCESS else 3, b"") if is_acl(value) else None
    if name == _CAPABILITY and not _is_capability(value):
        return None
    for prefix, number in _PREFIXES:
        if name.startswith(prefix) and len(name) > len(prefix):
            return number, name[len(prefix) :]
    return None


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


def _is_capability(value: bytes) -> bool:
    """Whether the kernel takes this for capabilities of a file, of any revision."""
    return len(value) in _CAPABILITY_SIZES and value[3] == 1 + _CAPABILITY_SIZES.index(len(value))
