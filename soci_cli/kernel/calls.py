"""The system calls that Python lacks, through ctypes. All raise OSError with the kernel's number."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")

MS_RDONLY, MS_NOSUID, MS_NODEV = 1, 2, 4
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
CLONE_FS = 0x200

_AT_FDCWD = -100
_AT_SYMLINK_NOFOLLOW, _AT_NO_AUTOMOUNT, _AT_STATX_DONT_SYNC = 0x100, 0x800, 0x4000
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_SIZE, _STATX_MNT_ID_AT = 256, 144  # struct statx, linux/stat.h
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_LARGE = 128 << 10  # bytes: what glibc begins with
_SYNC_FILE_RANGE_WRITE = 2
_INT64 = ctypes.c_int64
_PR_SET_CHILD_SUBREAPER = 36


def mount(kind: str, source: str, target: Path, flags: int, data: str) -> None:
    """mount(2)."""
    _check(_libc().mount(source.encode(), os.fsencode(target), kind.encode(), flags, data.encode()))


def umount2(target: Path, flags: int) -> None:
    """umount2(2)."""
    _check(_libc().umount2(os.fsencode(target), flags))


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc().unshare(flags))


def become_subreaper() -> None:
    """Makes orphans below this process its children (PR_SET_CHILD_SUBREAPER, prctl(2))."""
    _check(_libc().prctl(_PR_SET_CHILD_SUBREAPER, *map(ctypes.c_ulong, (1, 0, 0, 0))))


def begin_writing(fd: int, offset: int, length: int) -> None:
    """Has the system begin to write a range of a file to its disk (sync_file_range(2)); does not wait."""
    with suppress(OSError, AttributeError):
        _check(_libc().sync_file_range(fd, _INT64(offset), _INT64(length), _SYNC_FILE_RANGE_WRITE))


def in_directory(path: Path, work: Callable[[], _T]) -> _T:
    """Does something in a thread whose current directory is `path`; what that returns or raises."""

    def run() -> None:
        try:
            unshare(CLONE_FS)
            os.chdir(path)
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            future.set_exception(error)

    future: Future[_T] = Future()
    threading.Thread(target=run, name="soci-mount").start()
    return future.result()


def syscall(number: int, *arguments: int | bytes | None) -> int:
    """syscall(2), for calls that the C library does not have."""
    # Numbers as long, or the upper half of a register is left to chance.
    passed = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result: int = _libc().syscall(ctypes.c_long(number), *passed)
    if result < 0:
        _check(result)
    return result


def mount_id(fd: int) -> int:
    """The number of the mount that an open file is in, as in /proc/self/mountinfo; used again."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_bytes()
    return int(lines.partition(b"mnt_id:")[2].split()[0])


def unique_mount_id(path: Path) -> int:
    """The number of the mount at a path, which no other gets until the next boot; 0 before Linux 6.8.

    No file system is asked, so one that hangs does not matter.
    """
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    flags = _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT | _AT_STATX_DONT_SYNC
    # Without the call in the C library, and where a FUSE file system is closed to this user.
    with suppress(AttributeError, OSError):
        _check(_libc().statx(_AT_FDCWD, os.fsencode(path), flags, _STATX_MNT_ID_UNIQUE, buffer))
        if int.from_bytes(buffer.raw[:4], sys.byteorder) & _STATX_MNT_ID_UNIQUE:
            found = buffer.raw[_STATX_MNT_ID_AT : _STATX_MNT_ID_AT + 8]
            return int.from_bytes(found, sys.byteorder)
    return 0


def limit_heaps() -> None:
    """Makes a process with many threads give memory back.

    glibc gives each thread a heap, which keeps what is free there from the others: one for all. And it
    takes ever larger pieces from the heap once such were freed: large ones are mapped, now and later.
    """
    with suppress(AttributeError):
        _libc().mallopt(_M_ARENA_MAX, 1)
        _libc().mallopt(_M_MMAP_THRESHOLD, _LARGE)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@lru_cache(maxsize=1)
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)
