"""The cache of what was fetched and inflated: on disk, for all processes and images.

An entry is a file of its own. It is written aside, under a lock, and then renamed, so nothing unfinished
ever has a final name; its header gives length and CRC-32, so that what a crash of the machine left of it
is taken as absent (nothing is synced: a cache may lose entries). What others could have written is not
used: directory and entries belong to this user, and blobs are checked against their digests.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from zlib_ng import zlib_ng

from soci_cli.closing import Closing
from soci_cli.errors import StorageError
from soci_cli.lazy.cache_directory import PART, CacheDirectory
from soci_cli.lazy.entries import HEADER, MAGIC, Entry
from soci_cli.lazy.eviction import Eviction, LayerEntries
from soci_cli.oci import encoded_of

DEFAULT_LIMIT = 10 << 30
"""Bytes on disk, where a tenth of the disk is not less."""

_ATTEMPTS = 10


def span_key(layer: str, ztoc: str, span: int) -> str:
    """The key of a span's uncompressed bytes: another zTOC of the same layer has other spans."""
    return f"spans/{encoded_of(layer)}/{encoded_of(ztoc)}/{span}"


def blob_key(digest: str) -> str:
    """The key of a small blob, such as a zTOC."""
    return f"blobs/{encoded_of(digest)}"


def device_key(layer: str, ztoc: str) -> str:
    """The key of a layer's complete device: another zTOC may see other files. `ztoc` may be ""."""
    return f"devices/{encoded_of(layer)}/{encoded_of(ztoc) if ztoc else 'whole'}"


def metadata_key(name: str) -> str:
    """The key of the metadata of an image's layers, by a digest of what they are."""
    return f"metadata/{name}"


class Claim(Closing):
    """The right to write an entry, which is exclusive until `commit` or `close`.

    When it is not real, because the cache cannot be written, what is put is forgotten.
    """

    def __init__(
        self, directory: CacheDirectory, eviction: Eviction, key: str, part: str, fd: int
    ) -> None:
        """`part` is the name of the file until it is committed."""
        self._directory = directory
        self._eviction = eviction
        self._key = key
        self._part = part
        self._fd = fd
        self._size = 0

    @property
    def is_real(self) -> bool:
        """Whether what is written will be kept."""
        return self._fd >= 0

    def put(self, data: bytes | memoryview) -> Entry | None:
        """Write a whole entry and show it; the entry, open.

        None, which is no error, when the disk refuses it.
        """
        if self._fd < 0:
            return None
        size = memoryview(data).nbytes
        header = HEADER.pack(MAGIC, size, zlib_ng.crc32(data))
        try:
            written = os.writev(self._fd, (header, data))
            self._size += written
            if written < len(header) + size:
                if written < len(header):
                    return None
                self.write(memoryview(data)[written - len(header) :])
            return Entry(self._show(), size)
        except OSError:
            return None

    def fill(self, size: int, pieces: Iterable[bytes | memoryview]) -> Entry:
        """As `put`, of `size` bytes that come in pieces. Raises OSError, and what the pieces raise."""
        self.write(HEADER.pack(MAGIC, size, 0))
        checksum = 0
        for piece in pieces:
            self.write(piece)
            checksum = zlib_ng.crc32(piece, checksum)
        os.pwrite(self._fd, HEADER.pack(MAGIC, size, checksum), 0)
        return Entry(self._show(), size)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes of an entry without a header. Raises OSError."""
        view = memoryview(data)
        self._size += view.nbytes
        while view.nbytes:
            view = view[os.write(self._fd, view) :]

    def restart(self) -> None:
        """Forget what was written so far. Raises OSError."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._size = 0

    def commit(self) -> Entry:
        """Show what was written without a header; the entry, open. Raises OSError."""
        size = self._size
        return Entry(self._show(), size, 0)

    def fileno(self) -> int:
        """The descriptor of the file, for another process to write to."""
        return self._fd

    def commit_written(self) -> Entry:
        """As `commit`, of what was written by way of the descriptor. Raises OSError."""
        self._size = os.fstat(self._fd).st_size
        return self.commit()

    def _show(self) -> int:
        """Gives the entry its name; the descriptor, which is the caller's now."""
        self._directory.rename(self._part, self._key)
        fd, self._fd = self._fd, -1
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)  # renaming does not release it
        self._eviction.account(self._size)
        return fd

    def close(self) -> None:
        """Drop what was not committed."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(OSError):
                self._directory.remove(self._part)
            os.close(fd)


class Cache(Closing):
    """Entries by key, in the directory `root`. Any number of threads and processes may use it at once.

    When all entries together have more than `limit` bytes, those that were not read for the longest time
    are removed.
    """

    def __init__(self, root: Path, limit: int | None = None) -> None:
        """`limit` is by default 10 GiB, or a tenth of the disk where that is less.

        Opens the directory, which is made if it is not there; where that cannot be done, nothing is kept.
        StorageError when it is closed to this user, or when others own it or can write it.
        """
        self.root = root
        self._directory = CacheDirectory(root)
        self.limit = _default_limit(self._directory.fd) if limit is None else limit
        self._eviction = Eviction(self._directory, self.limit)

    def close(self) -> None:
        """Close the directory. What is open stays so."""
        self._directory.close()

    # Reading.

    def has(self, key: str) -> bool:
        """Whether there is an entry, good or not."""
        try:
            self._directory.stat(key)
        except OSError:
            return False
        return True

    def names(self, folder: str) -> set[str]:
        """The last parts of the keys that begin with `folder`, which ends in a slash."""
        try:
            return {name for name in self._directory.names(folder) if name[:1] != "."}
        except OSError:
            return set()

    def find(self, key: str) -> Entry | None:
        """An entry, opened and checked; None when it is absent or damaged."""
        entry, checksum = self._begin(key)
        if entry is None or entry.checksum() == checksum:
            return entry
        self.remove(key)
        return None

    def find_unchecked(self, key: str) -> Entry | None:
        """As `find`, for bytes that the caller checks, or that this process checked before."""
        return self._begin(key)[0]

    def open(self, key: str) -> Entry | None:
        """An entry without a header, which counts as read now; None when it is absent."""
        entry = self.open_unread(key)
        if entry is not None:
            with suppress(OSError):
                os.utime(entry.fileno())
        return entry

    def open_unread(self, key: str) -> Entry | None:
        """As `open`, and its times stay as they are."""
        try:
            fd = self._directory.open(key)
        except OSError:
            return None
        status = os.fstat(fd)
        entry = Entry(fd, status.st_size, 0)
        if status.st_uid != os.geteuid():
            self.remove(key)
            return None
        return entry

    def _begin(self, key: str) -> tuple[Entry | None, int]:
        """An entry whose header is right, and the CRC-32 of its data."""
        entry = self.open(key)
        if entry is None:
            return None, 0
        head = entry.read(0, HEADER.size)
        if len(head) == HEADER.size:
            magic, length, checksum = HEADER.unpack(head)
            if magic == MAGIC and length == entry.size - HEADER.size:
                entry.skip(HEADER.size)
                return entry, checksum
        self.remove(key)
        return None, 0

    # Writing.

    def claim(self, key: str) -> Claim | None:
        """The right to write an entry; None while another thread or process has it.

        Look again whether the entry is there: it may have been written just before.
        """
        return self._claim(key, _part_of(key))

    def claim_beside(self, key: str) -> Claim | None:
        """The same right beside another writer, which takes too long: the last one counts."""
        return self._claim(key, _part_of(f"{key}.{os.urandom(4).hex()}"))

    def _claim(self, key: str, part: str) -> Claim | None:
        for _ in range(_ATTEMPTS):
            try:
                fd = self._directory.create(part)
            except FileNotFoundError:
                try:
                    self._directory.make_parents(key)
                except OSError:
                    break
                continue
            except OSError:
                break
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The holder of the lock before this may have renamed or removed the file.
                if self._directory.is_same(fd, part):
                    os.ftruncate(fd, 0)
                    return Claim(self._directory, self._eviction, key, part, fd)
            except BlockingIOError:
                os.close(fd)
                return None
            except OSError:
                os.close(fd)
                break
            os.close(fd)
        return self.no_claim(key)

    def no_claim(self, key: str) -> Claim:
        """A claim that is not real. A cache that cannot be written costs speed, not content."""
        return Claim(self._directory, self._eviction, key, "", -1)

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write an entry, unless another thread or process is writing it."""
        claim = self.claim(key)
        if claim is not None:
            with claim:
                claim.put(data)

    def remove(self, key: str) -> None:
        """Remove an entry, for example because it is damaged."""
        with suppress(OSError):
            self._directory.remove(key)

    # As a whole.

    def occupied(self, layer: str) -> tuple[int, int]:
        """The bytes, and the number of entries, that are here of a layer by its digest."""
        return self._eviction.occupied(layer)

    def forget(self, digests: Collection[str]) -> int:
        """Removes all entries of these layers and blobs; the bytes freed. What is open stays readable.

        StorageError.
        """
        return self._eviction.forget(digests)

    def entries(self) -> list[LayerEntries]:
        """What there is, by layer and blob, the last used first."""
        return self._eviction.entries()

    def make_room(self, size: int, spared: str) -> None:
        """Removes the entries used longest ago, but for the layer `spared`, until so many bytes fit."""
        with suppress(StorageError):  # shown where it matters
            self._eviction.prune(max(0, self.limit - size), None, [spared])

    def prune(
        self, limit: int = 0, older_than: float | None = None, spared: Collection[str] = ()
    ) -> int:
        """Removes the entries used longest ago until at most `limit` bytes are left; the bytes freed.

        With `older_than` only those not used for so many seconds go, and never those of the layers and
        blobs `spared`, which are digests. What other processes write now is
        left alone, what killed ones left is removed. Raises StorageError.
        """
        return self._eviction.prune(limit, older_than, spared)


def _default_limit(directory: int) -> int:
    if directory < 0:
        return DEFAULT_LIMIT
    disk = os.fstatvfs(directory)
    return min(DEFAULT_LIMIT, disk.f_blocks * disk.f_frsize // 10)


def _part_of(key: str) -> str:
    folder, slash, name = key.rpartition("/")
    return f"{folder}{slash}.{name}{PART}"
