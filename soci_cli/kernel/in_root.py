"""Opening files of a folder as a process would that has the folder as its root (openat2(2), Linux 5.6).

No symbolic link, `..` or absolute path leads out of it, whatever is in there.
"""

from __future__ import annotations

import os
import struct

from soci_cli.kernel import calls

_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_HOW = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve


def open_in_root(root: int, path: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a file; `root` is a descriptor of the folder. OSError."""
    how = _HOW.pack(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    return calls.syscall(_OPENAT2, root, os.fsencode(path), how, len(how))


def read_in_root(root: int, path: str, limit: int) -> bytes:
    """The first `limit` bytes of a file; b"" where there is none. OSError for what cannot be read."""
    try:
        # Not blocking: what is there may be a pipe that nobody writes to.
        fd = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    with os.fdopen(fd, "rb") as file:
        return file.read(limit) or b""
