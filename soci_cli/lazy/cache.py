"""The cache of what was fetched and inflated: on disk, for all processes and images.

An entry is a file of its own. It is written aside, under a lock, and then renamed, so nothing unfinished
ever has a final name; its header gives length and CRC-32, so that what a crash of the machine left of it
is taken as absent (nothing is synced: a cache may lose entries). Entries that are used stay open and are
read from their files, so the kernel's page cache is the cache in memory; they outlive their eviction.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zlib_ng import zlib_ng

from soci_cli.closing import Closing
from soci_cli.errors import InvalidDataError, StorageError
from soci_cli.oci import encoded_of, parse_digest
from soci_cli.user_folders import own_folder

DEFAULT_LIMIT = 10 << 30
"""Bytes on disk, where a tenth of the disk is not less."""
MAX_HELD = 64 << 20
"""Bytes in memory, where the disk takes none."""
MAX_OPEN = 256
"""Entries that are kept open."""

_HEADER = struct.Struct("<8sQI")  # magic, length, CRC-32 of the data
_MAGIC = b"soci-1\0\0"
_PART = ".part"
_USAGE = "usage"
_LEFTOVER_AGE = 24 * 60 * 60
_ATTEMPTS = 10
_PAUSE = 0.01
_CHECKED_AT_ONCE = 256 << 10
_SWEPT_EVERY = 64  # entries opened
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def cache_root(environ: Mapping[str, str]) -> Path:
    """`$SOCI_CACHE`, else `$XDG_CACHE_HOME/soci`, else `~/.cache/soci`. ConfigError without any."""
    return own_folder(environ, "CACHE", "SOCI_CACHE", "the cache")


def default_limit(root: Path) -> int:
    """10 GiB, or a tenth of the disk that `root` is on, whichever is less."""
    there = root.absolute()
    while not there.exists():
        there = there.parent
    try:
        return min(DEFAULT_LIMIT, shutil.disk_usage(there).total // 10)
    except OSError:
        return DEFAULT_LIMIT


def span_key(layer: str, ztoc: str, span: int) -> str:
    """The key of a span's uncompressed bytes: another zTOC of the same layer has other spans."""
    return f"spans/{encoded_of(layer)}/{encoded_of(ztoc)}/{span}"


def blob_key(digest: str) -> str:
    """The key of a small blob, such as a zTOC."""
    return f"blobs/{encoded_of(digest)}"


def archive_key(layer: str) -> str:
    """The key of a layer's whole uncompressed archive."""
    return f"archives/{encoded_of(layer)}"


class Entry:
    """An entry that is open. The file is closed when nobody has this object any more."""

    __slots__ = ("_fd", "is_used", "size")

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self.size = size
        self.is_used = False

    @property
    def held(self) -> int:
        """Bytes of memory that it takes."""
        return 0

    def read(self, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length), fewer where the file was cut or cannot be read."""
        self.is_used = True
        try:
            return os.pread(self._fd, length, _HEADER.size + offset)
        except OSError:
            return b""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """As `read`, into a buffer; how many bytes."""
        self.is_used = True
        try:
            return os.preadv(self._fd, [buffer], _HEADER.size + offset)
        except OSError:
            return 0

    def checksum(self) -> int | None:
        """The CRC-32 of the data; None where the file is cut off or cannot be read."""
        buffer = memoryview(bytearray(min(self.size, _CHECKED_AT_ONCE) or 1))
        checksum, done = 0, 0
        while done < self.size:
            try:
                count = os.preadv(self._fd, [buffer[: self.size - done]], _HEADER.size + done)
            except OSError:
                return None
            if not count:
                return None
            checksum = zlib_ng.crc32(buffer[:count], checksum)
            done += count
        return checksum

    def tend(self) -> bool:
        """Tells the cache that it was used; whether it is still there."""
        if self.is_used:
            self.is_used = False
            with suppress(OSError):
                os.utime(self._fd)
        return os.fstat(self._fd).st_nlink > 0

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self._fd)


class HeldEntry:
    """In place of an entry, where the disk takes none."""

    __slots__ = ("_data", "size")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    @property
    def held(self) -> int:
        """Bytes of memory that it takes."""
        return self.size

    def read(self, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length)."""
        return self._data[offset : offset + length]

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """As `read`, into a buffer; how many bytes."""
        data = memoryview(self._data)[offset : offset + buffer.nbytes]
        buffer[: data.nbytes] = data
        return data.nbytes

    def tend(self) -> bool:
        """True."""
        return True


class OpenEntries:
    """The entries that were used last. Several threads may use it.

    An entry that leaves is closed when its last reader is done.
    """

    def __init__(self, count: int = MAX_OPEN, held: int = MAX_HELD) -> None:
        self._count = count
        self._limit = held
        self._held = 0
        self._added = 0
        self._entries: OrderedDict[str, Entry | HeldEntry] = OrderedDict()
        self._mutex = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_holding(self) -> bool:
        """Whether some are in memory, because the disk takes none."""
        return self._held > 0

    def get(self, key: str) -> Entry | HeldEntry | None:
        """An entry, which counts as used now."""
        with self._mutex:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            return entry

    def put(self, key: str, entry: Entry | HeldEntry) -> None:
        """Keep an entry."""
        with self._mutex:
            self._take_out(key)
            self._entries[key] = entry
            self._held += entry.held
            # One that is larger than all that may be held stays: without it each read would fetch it anew.
            while len(self._entries) > max(1, self._count if self._held <= self._limit else 1):
                self._take_out(next(iter(self._entries))).tend()
            self._added += 1
            if self._added % _SWEPT_EVERY == 0:
                # Evicted ones would take room on the disk for as long as they are open.
                gone = [key for key, one in self._entries.items() if not one.tend()]
                for one in gone:
                    self._take_out(one)

    def drop(self, key: str) -> None:
        """Keep an entry no longer."""
        with self._mutex:
            self._take_out(key)

    def clear(self) -> None:
        """Keep none."""
        with self._mutex:
            for key in list(self._entries):
                self._take_out(key).tend()

    def _take_out(self, key: str) -> Entry | HeldEntry:
        entry = self._entries.pop(key, _NOTHING)
        self._held -= entry.held
        return entry


_NOTHING = HeldEntry(b"")


@dataclass(frozen=True)
class LayerEntries:
    """What the cache has of one layer or blob: `kind` is "spans", "archives" or "blobs".

    `last_used` are seconds since 1970, `entries` the number of files.
    """

    kind: str
    digest: str
    entries: int
    size: int
    last_used: float


class Claim(Closing):
    """The right to write an entry, which nobody else has until `commit` or `close`.

    Without a file, because the cache cannot be written, everything that is put is forgotten.
    """

    def __init__(self, cache: Cache, path: Path, fd: int) -> None:
        self._cache = cache
        self._path = path
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
        size = memoryview(data).nbytes
        header = _HEADER.pack(_MAGIC, size, zlib_ng.crc32(data))
        try:
            if self._fd < 0:
                return None
            written = os.writev(self._fd, (header, data))
            self._size += written
            if written < len(header) + size:
                if written < len(header):
                    return None
                self.write(memoryview(data)[written - len(header) :])
            fd = self._show()
            return None if fd is None else Entry(fd, size)
        except OSError:
            return None

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes of an entry without a header. Raises OSError."""
        if self._fd < 0:
            return
        view = memoryview(data)
        self._size += view.nbytes
        while view.nbytes:
            view = view[os.write(self._fd, view) :]

    def restart(self) -> None:
        """Forget what was written so far. Raises OSError."""
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
        self._size = 0

    def commit(self) -> None:
        """Show what was written. Raises OSError."""
        fd = self._show()
        if fd is not None:
            os.close(fd)

    def _show(self) -> int | None:
        """Gives the entry its name; the descriptor, which is the caller's now."""
        if self._fd < 0:
            return None
        # The lock is on the file, which its final name does not end.
        _part_of(self._path).replace(self._path)
        fd, self._fd = self._fd, -1
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)
        self._cache.grew(self._size)
        return fd

    def close(self) -> None:
        """Drop what was not committed."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(OSError):
                _part_of(self._path).unlink()
            os.close(fd)


class Cache:
    """Entries below `root`, by key. Any number of threads and processes may use it at once.

    When all entries together have more than `limit` bytes, those that were not read for the longest time
    are removed.
    """

    def __init__(self, root: Path, limit: int | None = None) -> None:
        self.root = root
        self.limit = default_limit(root) if limit is None else limit
        self._mutex = threading.Lock()
        self._unreported = 0

    def has(self, key: str) -> bool:
        """Whether there is an entry, good or not."""
        return (self.root / key).exists()

    def load(self, key: str) -> bytes | None:
        """The bytes of an entry; None when it is absent or damaged."""
        entry, checksum = self._begin(key)
        if entry is None:
            return None
        data = entry.read(0, entry.size)
        if len(data) == entry.size and zlib_ng.crc32(data) == checksum:
            return data
        self.drop(key)
        return None

    def find(self, key: str) -> Entry | None:
        """An entry, opened and checked; None when it is absent or damaged."""
        entry, checksum = self._begin(key)
        if entry is None or entry.checksum() == checksum:
            return entry
        self.drop(key)
        return None

    def _begin(self, key: str) -> tuple[Entry | None, int]:
        """An entry whose header is right, and the CRC-32 of its data."""
        fd = self.open(key)
        if fd is None:
            return None, 0
        entry = Entry(fd, 0)  # which closes it
        try:
            head = os.pread(fd, _HEADER.size, 0)
            size = os.fstat(fd).st_size - _HEADER.size
        except OSError:
            return None, 0
        if len(head) == _HEADER.size:
            magic, length, checksum = _HEADER.unpack(head)
            if magic == _MAGIC and length == size:
                entry.size = size
                return entry, checksum
        self.drop(key)
        return None, 0

    def names(self, folder: str) -> set[str]:
        """The last parts of the keys that begin with `folder`, which ends in a slash."""
        try:
            return {name for name in os.listdir(self.root / folder) if name[:1] != "."}  # noqa: PTH208
        except OSError:
            return set()

    def open(self, key: str) -> int | None:
        """A file descriptor of an entry, which counts as read now; None when it is absent."""
        try:
            fd = os.open(self.root / key, _READ)
        except OSError:
            return None
        with suppress(OSError):
            os.utime(fd)
        return fd

    def drop(self, key: str) -> None:
        """Remove an entry, because it is damaged."""
        with suppress(OSError):
            (self.root / key).unlink()

    def claim(self, key: str) -> Claim | None:
        """The right to write an entry; None when somebody else is writing it now.

        Look again whether it is there: somebody may have written it just before.
        """
        path = self.root / key
        part = _part_of(path)
        for _ in range(_ATTEMPTS):
            try:
                fd = os.open(part, _NEW_FILE, 0o600)
            except FileNotFoundError:
                try:
                    self._make_folders(path.parent)
                except OSError:
                    break
                continue
            except OSError:
                break
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever had the lock before has renamed or removed the file since.
                if _is_same(fd, part):
                    os.ftruncate(fd, 0)
                    return Claim(self, path, fd)
            except BlockingIOError:
                os.close(fd)
                return None
            except OSError:
                os.close(fd)
                break
            os.close(fd)
        # A cache that cannot be written costs speed, not content.
        return Claim(self, path, -1)

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write an entry, unless somebody else is doing so."""
        claim = self.claim(key)
        if claim is not None:
            with claim:
                claim.put(data)

    def grew(self, size: int) -> None:
        """Count what was written; removes entries when there is too much."""
        with self._mutex:
            self._unreported += size
        with suppress(OSError):
            self._count()

    def entries(self) -> list[LayerEntries]:
        """What there is, by layer and blob, the last used first."""
        found: dict[tuple[str, str], tuple[int, int, float]] = {}
        for path, status in self._files():
            about = _about(path.relative_to(self.root).parts)
            if about is not None:
                count, size, used = found.get(about, (0, 0, 0.0))
                found[about] = count + 1, size + status.st_size, max(used, status.st_mtime)
        listed = [
            LayerEntries(kind, digest, count, size, used)
            for (kind, digest), (count, size, used) in found.items()
        ]
        return sorted(listed, key=lambda one: (-one.last_used, one.kind, one.digest))

    def prune(self, limit: int = 0, older_than: float | None = None) -> int:
        """Removes the entries used longest ago until at most `limit` bytes are left; the bytes freed.

        With `older_than` only those not used for so many seconds go. What other processes write now is
        left alone, what killed ones left is removed. Raises StorageError.
        """
        if not self.root.is_dir():
            return 0
        newest = None if older_than is None else time.time() - older_than
        try:
            fd = os.open(self.root / _USAGE, _NEW_FILE, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                before, after = self._remove(limit, newest, 0.0)
                os.pwrite(fd, after.to_bytes(8, "little"), 0)
            finally:
                os.close(fd)
        except OSError as error:
            raise StorageError(f"the cache {self.root}: {error.strerror or error}") from error
        return before - after

    def _make_folders(self, folder: Path) -> None:
        # What is in private images is nobody else's business.
        self.root.parent.mkdir(parents=True, exist_ok=True)
        self.root.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)

    def _count(self) -> None:
        """Keeps the sum of all sizes in a file: scanning the folder for each entry would take too long.

        It is a little wrong after a crash, and right again after the next eviction.
        """
        fd = os.open(self.root / _USAGE, _NEW_FILE, 0o600)
        try:
            if not self._lock_usage(fd):
                return  # told next time
            with self._mutex:
                grown, self._unreported = self._unreported, 0
            known = os.pread(fd, 8, 0)
            total = int.from_bytes(known, "little") + grown if len(known) == 8 else -1
            if not 0 <= total <= self.limit:
                total = self._evict()
            os.pwrite(fd, total.to_bytes(8, "little"), 0)
        finally:
            os.close(fd)

    def _lock_usage(self, fd: int) -> bool:
        """Waits a moment for who is evicting now, where much was written since."""
        for _ in range(_ATTEMPTS):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if self._unreported < self.limit // 20:
                    return False
                time.sleep(_PAUSE)
        return False

    def _evict(self) -> int:
        """Removes what was read longest ago, when there is too much; the bytes that are left."""
        return self._remove(self.limit, None, _LEFTOVER_AGE, self.limit - self.limit // 10)[1]

    def _remove(
        self, limit: int, newest: float | None, leftover_age: float, goal: int | None = None
    ) -> tuple[int, int]:
        """Removes down to `goal` bytes, by default `limit`, where there are more than `limit`.

        Only what was used last before `newest` goes, and leftovers of at least `leftover_age` seconds.
        The bytes before and after.
        """
        entries = []
        total = 0
        for path, status in self._files():
            if path.name.endswith(_PART):
                if time.time() - status.st_mtime >= leftover_age:
                    _remove_leftover(path)
                continue
            total += status.st_size
            entries.append((status.st_mtime_ns, status.st_size, path))
        before = total
        goal = limit if goal is None else goal
        if total <= limit:
            return before, total
        entries.sort(key=lambda entry: entry[:2])
        for used, size, path in entries:
            if total <= goal or (newest is not None and used >= newest * 1e9):
                break
            with suppress(OSError):
                path.unlink()
                total -= size
            with suppress(OSError):
                path.parent.rmdir()  # only when it is empty
                path.parent.parent.rmdir()
        return before, total

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                with suppress(OSError):
                    if name != _USAGE:
                        yield path, path.lstat()


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}{_PART}")


def _is_same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _about(parts: tuple[str, ...]) -> tuple[str, str] | None:
    """Kind and digest of the layer or blob that an entry belongs to; None for what is no entry."""
    lengths = {"spans": 4, "archives": 2, "blobs": 2}
    if lengths.get(parts[0]) != len(parts) or parts[-1].endswith(_PART):
        return None
    encoded = parts[1].removesuffix(".ztoc")
    digest = f"{_ALGORITHMS.get(len(encoded))}:{encoded}"
    try:
        return parts[0], parse_digest(digest)
    except InvalidDataError:
        return None


_ALGORITHMS = {64: "sha256", 128: "sha512"}  # by hex digits


def _remove_leftover(path: Path) -> None:
    """Removes what a killed process was writing; not what a living one still writes."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_same(fd, path):
                path.unlink()
        finally:
            os.close(fd)
