"""Small blobs of an image, such as zTOCs. Large ones are mapped files: only what is read is in memory.

A mapped file that somebody makes shorter ends the process that reads it (SIGBUS), and one that somebody
changes no longer has its digest. So only files are mapped that this user owns and nobody else can
write, and that are never written in place: those of the cache and of the local store are written aside and
renamed. Nor are files of network file systems, which can go away while they are open. All other blobs come
into the cache first and, where that is no better, into memory.
"""

from __future__ import annotations

import mmap
import os
import stat
from contextlib import suppress
from typing import NamedTuple

from soci_cli.kernel import calls
from soci_cli.kernel.points import mount_points
from soci_cli.lazy.cache import Cache, blob_key
from soci_cli.lazy.entries import Entry
from soci_cli.oci import Descriptor, VerifyingReader, encoded_of
from soci_cli.oci.digest import new_hash
from soci_cli.targets import Source, read_blob
from soci_cli.ztoc.flatbuffer import FlatBuffer, release

_MAPPED = 1 << 20  # bytes from which on mapping is worth it
_PIECE = 8 << 20
_OTHERS_WRITE = 0o022
_LOCAL = frozenset(
    [
        "bcachefs",
        "btrfs",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "jfs",
        "overlay",
        "ramfs",
        "reiserfs",
        "tmpfs",
        "xfs",
        "zfs",
    ]
)


class Blob(NamedTuple):
    """The bytes of a blob: all of `buffer` from `start` on."""

    buffer: FlatBuffer
    start: int = 0


def open_blob(source: Source, blob: Descriptor, cache: Cache, limit: int) -> Blob:
    """A blob of at most `limit` bytes, which has its digest. Raises as `read_blob` does."""
    own = _own_file(source, blob)
    is_small = blob.size < _MAPPED
    if own and (is_small or _is_safe(own.fileno())) and (found := _checked(own, blob)):
        return found
    if blob.size <= limit and not (own and is_small):
        for find in (_cached, _fetched):
            if (entry := find(source, blob, cache)) and (found := _checked(entry, blob)):
                return found
    return Blob(read_blob(source, blob, limit))


def contents(file: Entry) -> Blob:
    """All of a file, mapped where that is safe and worth it. What cannot be read is missing."""
    if file.size >= _MAPPED and _is_safe(file.fileno()):
        with suppress(OSError, ValueError):
            return Blob(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), file.start)
    return Blob(file.read(0, file.size))


def _checked(file: Entry, blob: Descriptor) -> Blob | None:
    """A file's bytes, if they are those of the blob."""
    found = contents(file) if file.size == blob.size else Blob(b"")
    if len(found.buffer) - found.start != blob.size:
        return None
    digest = new_hash(blob.digest)
    with memoryview(found.buffer) as view:
        for start in range(found.start, len(view), _PIECE):
            digest.update(view[start : start + _PIECE])
            release(found.buffer)
    return found if digest.hexdigest() == encoded_of(blob.digest) else None


def _own_file(source: Source, blob: Descriptor) -> Entry | None:
    """The file in which a place has a blob."""
    opened = source.folder.open_blob(blob.digest) if source.folder else None
    return Entry(opened[0], opened[1].st_size, 0) if opened else None


def _cached(source: Source, blob: Descriptor, cache: Cache) -> Entry | None:
    return cache.open_blob(blob.digest)


def _fetched(source: Source, blob: Descriptor, cache: Cache) -> Entry | None:
    """A blob in the cache, where it comes now; None where that has no room, or another is fetching it."""
    claim = cache.claim(blob_key(blob.digest))
    if claim is None or not claim.is_real:
        return None
    with claim, source.fetch(blob) as stream:
        what = f"blob {blob.digest} of {source.name}"
        whole = VerifyingReader(stream, blob.digest, blob.size, what)
        with suppress(OSError):
            return claim.fill(blob.size, iter(lambda: whole.read(_PIECE), b""))
    return None


def _is_safe(fd: int) -> bool:
    """Whether nobody but this user can change the file, and no other machine has it."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        return False
    if status.st_mode & _OTHERS_WRITE:
        return False
    with suppress(OSError, ValueError, IndexError):
        number = calls.mount_id(fd)
        return any(one.number == number and one.kind in _LOCAL for one in mount_points())
    return False
