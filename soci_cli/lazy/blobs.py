"""Small blobs of an image, such as zTOCs. Large ones are mapped files: only what is read is in memory.

A mapped file that somebody makes shorter ends the process that reads it (SIGBUS), and one that somebody
changes no longer has its digest. So only files of the cache and of the local store are mapped, which are
written aside, renamed, and never written again; and of these only files that nobody else can write, that
have no other name, and that are on no network file system, which can go away while they are open. Other
large blobs, of layouts too, come into the cache first and, where that is no better, into memory.
"""

from __future__ import annotations

import mmap
import os
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
_LOCAL = set("bcachefs btrfs ext2 ext3 ext4 f2fs jfs overlay ramfs tmpfs xfs zfs".split())  # noqa: SIM905


class Blob(NamedTuple):
    """The bytes of a blob: all of `buffer` from `start` on."""

    buffer: FlatBuffer
    start: int = 0


def open_blob(source: Source, blob: Descriptor, cache: Cache, limit: int) -> Blob:
    """A blob of at most `limit` bytes, which has its digest. Raises as `read_blob` does."""
    if blob.size <= limit and (source.folder is None or blob.size >= _MAPPED):
        for find in (_stored, _cached, _fetched):
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


def _stored(source: Source, blob: Descriptor, cache: Cache) -> Entry | None:
    """A blob of the local store, where it can be mapped."""
    opened = source.folder.open_blob(blob.digest) if source.store and source.folder else None
    entry = Entry(opened[0], opened[1].st_size, 0) if opened else None
    return entry if entry and _is_safe(entry.fileno()) else None


def _cached(source: Source, blob: Descriptor, cache: Cache) -> Entry | None:
    return cache.find_unchecked(blob_key(blob.digest))


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
    """Whether nobody but this user can change the file, it has no other name, and it is on this machine."""
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or status.st_mode & _OTHERS_WRITE or status.st_nlink > 1:
        return False
    with suppress(OSError, ValueError, IndexError):
        number = calls.mount_id(fd)
        return any(one.number == number and one.kind in _LOCAL for one in mount_points())
    return False
