"""Extended attributes as EROFS has them, and which of them the kernel can be given.

What the kernel would take wrongly is left out: attributes that steer an overlayfs above, access control
lists and capabilities that are none, with which nobody could open the file, and names that cannot be asked
for.
"""

from __future__ import annotations

from collections.abc import Iterable

from soci_cli.lazy.acls import ACCESS, DEFAULT, is_acl
from soci_cli.lazy.erofs.format import xattr_body
from soci_cli.ztoc.attributes import STEERING

_MAX_NAME = 255  # XATTR_NAME_MAX, with the prefix
_MAX_VALUE = 0xFFFF
_MAX_BODY = 60 << 10  # of all of a file, below XATTR_LIST_MAX
_TRUSTED = 4
_PREFIXES = ((b"user.", 1), (b"trusted.", _TRUSTED), (b"security.", 6))
_HEADER = 12  # bytes of a body before its first attribute
_CAPABILITY = b"security.capability"
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
    if name in (ACCESS, DEFAULT):
        return (2 if name == ACCESS else 3, b"") if is_acl(value) else None
    if name == _CAPABILITY and not _is_capability(value):
        return None
    for prefix, number in _PREFIXES:
        if name.startswith(prefix) and len(name) > len(prefix):
            return number, name[len(prefix) :]
    return None


def _is_capability(value: bytes) -> bool:
    """Whether the kernel takes this for capabilities of a file, of any revision."""
    return len(value) in _CAPABILITY_SIZES and value[3] == 1 + _CAPABILITY_SIZES.index(len(value))
