"""The kernel's FUSE protocol as numbers and structs, for ABI 7.31 to 7.38 (include/uapi/linux/fuse.h).

Only what a file system needs that nobody writes to. All numbers are in the byte order of the machine.
"""

from __future__ import annotations

import stat
from struct import Struct

MAJOR = 7
OLDEST_MINOR = 31  # Linux 5.4
NEWEST_MINOR = 38

# Opcodes.
LOOKUP = 1
FORGET = 2
GETATTR = 3
SETATTR = 4
READLINK = 5
SYMLINK = 6
MKNOD = 8
MKDIR = 9
UNLINK = 10
RMDIR = 11
RENAME = 12
LINK = 13
OPEN = 14
READ = 15
WRITE = 16
STATFS = 17
RELEASE = 18
SETXATTR = 21
GETXATTR = 22
LISTXATTR = 23
REMOVEXATTR = 24
INIT = 26
OPENDIR = 27
READDIR = 28
RELEASEDIR = 29
CREATE = 35
INTERRUPT = 36
DESTROY = 38
BATCH_FORGET = 42
FALLOCATE = 43
READDIRPLUS = 44
RENAME2 = 45
COPY_FILE_RANGE = 47
TMPFILE = 51

WRITING = (
    SETATTR,
    SYMLINK,
    MKNOD,
    MKDIR,
    UNLINK,
    RMDIR,
    RENAME,
    LINK,
    WRITE,
    SETXATTR,
    REMOVEXATTR,
    CREATE,
    FALLOCATE,
    RENAME2,
    COPY_FILE_RANGE,
    TMPFILE,
)
"""The opcodes that would change something."""

# Flags of INIT.
ASYNC_READ = 1 << 0
DO_READDIRPLUS = 1 << 13
NO_OPEN_SUPPORT = 1 << 17
PARALLEL_DIROPS = 1 << 18
POSIX_ACL = 1 << 20  # the kernel obeys access control lists, and checks permissions itself
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
NO_OPENDIR_SUPPORT = 1 << 24
EXPLICIT_INVAL_DATA = 1 << 25
INIT_EXT = 1 << 30  # there are more flags: 32 bits behind these
HAS_RESEND = 1 << 39

# Flags of an opened file or folder.
DIRECT_IO = 1 << 0
KEEP_CACHE = 1 << 1
CACHE_DIR = 1 << 3

FOREVER = 1_000_000_000
"""Seconds that the kernel may remember what it was told: an image never changes."""

MAX_NAME = 255
"""Bytes of a name, as Linux's NAME_MAX."""

MAX_LINK = 4095
"""Bytes of where a symbolic link leads, as Linux's PATH_MAX without the NUL."""

READ_BUFFER = 64 << 10
"""Bytes to receive a request in; the kernel wants room for the largest that it may send, 8 KiB here."""

IN_HEADER = Struct("=IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extensions, padding
OUT_HEADER = Struct("=IiQ")  # length, error, unique

INIT_IN = Struct("=IIII")  # major, minor, max_readahead, flags; since 7.36 more flags follow
READ_IN = Struct("=QQII")  # handle, offset, size, flags; more follows
XATTR_IN = Struct("=II")  # size, padding; for GETXATTR the name follows
INTERRUPT_IN = Struct("=Q")  # unique of the request that should end

_INIT_OUT = Struct("=IIIIHHIIHHI7I")
_ATTR = Struct("=QQQqqqIIIIIIIIII")
_MODE = 60  # where the mode is in it
_ATTR_OUT = Struct("=QII")
_ENTRY_OUT = Struct("=QQQQII")
_DIRENT = Struct("=QQII")
_DIRENT_PLUS = Struct("=QQQQII88sQQII")
_PADDING = tuple(map(bytes, range(8)))
UINT32 = Struct("=I")
_STATFS_OUT = Struct("=QQQQQIIII6I")
OPEN_OUT = Struct("=QII")  # handle, flags, padding
XATTR_OUT = Struct("=II")  # size, padding

_BLOCK = 512
_IO_SIZE = 4096
_NANO = 1_000_000_000
_MAX_SIZE = (1 << 63) - 1
_MAX_WRITE = 4096
_MAX_READAHEAD = 64 << 20
_MAX_PAGES = 256  # the most that kernels allow unless told otherwise
MAX_READ = _MAX_PAGES * 4096
"""Bytes that a READ asks for at most, where pages have 4 KiB."""
_MAX_BACKGROUND = 1024  # readahead under way: 12 by default, so a hung registry would soon hold all
_CONGESTED = 768


def init_flags(body: memoryview) -> int:
    """All flags that the kernel offers in INIT."""
    flags: int = INIT_IN.unpack_from(body)[3]
    if flags & INIT_EXT and len(body) >= INIT_IN.size + UINT32.size:
        flags |= UINT32.unpack_from(body, INIT_IN.size)[0] << 32
    return flags


def init_out(minor: int, flags: int) -> bytes:
    """The answer to INIT."""
    return _INIT_OUT.pack(
        MAJOR,
        min(minor, NEWEST_MINOR),
        _MAX_READAHEAD,
        flags,
        _MAX_BACKGROUND,
        _CONGESTED,
        _MAX_WRITE,
        1,  # times in nanoseconds
        _MAX_PAGES,
        0,
        0,
        *(0,) * 7,
    )


def attr(
    node: int,
    mode: int,
    size: int,
    links: int,
    owner: tuple[int, int],
    mtime_ns: int = 0,
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """The struct fuse_attr of a file; `mode` has its type too."""
    seconds, nanoseconds = divmod(mtime_ns, _NANO)
    major, minor = device
    size = min(max(size, 0), _MAX_SIZE)
    return _ATTR.pack(
        node,
        size,
        -(-size // _BLOCK),
        seconds,
        seconds,
        seconds,
        nanoseconds,
        nanoseconds,
        nanoseconds,
        mode,
        links,
        owner[0] & 0xFFFFFFFF,
        owner[1] & 0xFFFFFFFF,
        (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & 0xFFF00) << 12,
        _IO_SIZE,
        0,
    )


def mode_of(packed: bytes) -> int:
    """The mode in a struct fuse_attr."""
    mode: int = UINT32.unpack_from(packed, _MODE)[0]
    return mode


_ATTR_HEAD = _ATTR_OUT.pack(FOREVER, 0, 0)
NO_ENTRY = _ENTRY_OUT.pack(0, 0, FOREVER, FOREVER, 0, 0) + bytes(_ATTR.size)
"""The answer to LOOKUP for a name that is not there: the kernel remembers that too."""
_NO_NODE = bytes(_ENTRY_OUT.size + _ATTR.size)
PLUS_SIZE = len(_NO_NODE)
"""How much larger `dirent_plus` is than `dirent`."""


def attr_out(packed: bytes) -> bytes:
    """The answer to GETATTR, from a packed fuse_attr."""
    return _ATTR_HEAD + packed


def entry_out(node: int, packed: bytes) -> bytes:
    """The answer to LOOKUP, from a packed fuse_attr."""
    return _ENTRY_OUT.pack(node, 0, FOREVER, FOREVER, 0, 0) + packed


def dirent(node: int, offset: int, kind: int, name: bytes) -> bytes:
    """One name for READDIR; `offset` is where the next one begins, `kind` the file's type of st_mode."""
    padding = _PADDING[-len(name) & 7]
    return _DIRENT.pack(node, offset, len(name), stat.S_IFMT(kind) >> 12) + name + padding


def dirent_plus(node: int, offset: int, packed: bytes, name: bytes) -> bytes:
    """One name for READDIRPLUS, with a packed fuse_attr: as `entry_out` and `dirent` after each other."""
    length = len(name)
    (mode,) = UINT32.unpack_from(packed, _MODE)
    return (
        _DIRENT_PLUS.pack(node, 0, FOREVER, FOREVER, 0, 0, packed, node, offset, length, mode >> 12)
        + name
        + _PADDING[-length & 7]
    )


def dots_plus(node: int, offset: int, name: bytes) -> bytes:
    """As `dirent_plus` for a folder of which the kernel wants no attributes: itself, or the one above."""
    return _NO_NODE + dirent(node, offset, stat.S_IFDIR, name)


def dirent_size(name: bytes) -> int:
    """The size of `dirent`."""
    return _DIRENT.size + (len(name) + 7 & ~7)


def statfs_out(size: int) -> bytes:
    """The answer to STATFS for a file system of `size` bytes, all in use."""
    blocks = -(-size // _IO_SIZE)
    return _STATFS_OUT.pack(blocks, 0, 0, 0, 0, _IO_SIZE, MAX_NAME, _IO_SIZE, 0, *(0,) * 6)
