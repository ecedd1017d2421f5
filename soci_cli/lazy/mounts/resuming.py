"""What a server must know to go on with a mount of another one: plain data and descriptors.

The data is in a file in memory, for it holds the request with its secrets; see `holder`.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from soci_cli.lazy.cache import Cache, blob_key
from soci_cli.lazy.entries import HEADER
from soci_cli.lazy.fuse.journal import new_file
from soci_cli.lazy.fuse.mounted import JOURNAL, Handover
from soci_cli.lazy.lazy_layer import LazyLayer
from soci_cli.lazy.mounts.holder import MAX_DESCRIPTORS, MAX_PACKET
from soci_cli.lazy.mounts.keeping import HOST_NAME, in_memory, read_all
from soci_cli.lazy.mounts.records import MountRecord
from soci_cli.lazy.mounts.request import MountRequest
from soci_cli.lazy.remembering import Answers, RememberingSource
from soci_cli.processes.encoding import decode, encode
from soci_cli.targets import BlobReader, Source

_STATE, _LOCK = "state", "lock"  # the first two descriptors
_BLOB = "blob "


@dataclass(frozen=True)
class MountState:
    """What is known of a mount; `names` are those of its descriptors, in their order."""

    request: MountRequest
    record: MountRecord
    handover: Handover
    answers: Answers
    names: tuple[str, ...]


@dataclass
class Inherited:
    """A mount that another server left; `descriptors` are by what they are, and belong to who has this.

    With `is_shared` that server still serves it.
    """

    name: str
    state: MountState
    lock: int
    descriptors: dict[str, int]
    is_shared: bool = False

    def remembering(self, source: Source) -> RememberingSource:
        """The place of its image, as it was when the image was opened first."""
        files = {
            name.removeprefix(_BLOB): _opener(fd)
            for name, fd in self.descriptors.items()
            if name.startswith(_BLOB)
        }
        return RememberingSource(source, self.state.answers, files)

    def mount_descriptors(self) -> dict[str, int]:
        """Copies of those that `MountedImage` needs."""
        found = {
            name: os.dup(fd)
            for name, fd in self.descriptors.items()
            if not name.startswith(_BLOB) and not (self.is_shared and name == JOURNAL)
        }
        if self.is_shared and JOURNAL in self.descriptors:
            found[JOURNAL] = new_file()
        return found

    def shared_journal(self) -> int | None:
        """Takes the one that the other server uses still."""
        return self.descriptors.pop(JOURNAL, None) if self.is_shared else None

    @property
    def is_mounted(self) -> bool:
        """Whether anybody still has the mount."""
        poll = select.poll()
        poll.register(self.descriptors["connection"], 0)
        return not poll.poll(0)

    def close(self) -> None:
        """Closes the descriptors that are left."""
        while self.descriptors:
            os.close(self.descriptors.popitem()[1])


@dataclass
class Inheritance:
    """All that a holder gives a successor. `kept` are the same descriptors as it keeps them, by name."""

    connection: socket.socket
    lock: int = -1
    is_replacing: bool = False
    """Whether the server before still serves."""
    mounts: list[Inherited] = field(default_factory=list)
    kept: dict[str, list[int]] = field(default_factory=dict)


def receive(connection: socket.socket) -> Inheritance:
    """Takes what a holder gives. OSError, and InvalidDataError for what is no state of a mount."""
    found = Inheritance(connection)
    while True:
        packet, fds, _, _ = socket.recv_fds(
            connection, MAX_PACKET, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        word, _, name = packet.decode().partition(" ")
        if word != "give":
            found.is_replacing = name == "replacing"
            for one in found.mounts:
                one.is_shared = found.is_replacing
            return found
        found.kept[name] = fds
        if name == HOST_NAME:
            found.lock = os.dup(fds[0])
        else:
            state = decode(MountState, read_all(fds[0]), "the state of a mount")
            copies = {one: os.dup(fd) for one, fd in zip(state.names, fds, strict=False)}
            os.close(copies.pop(_STATE))
            found.mounts.append(Inherited(name, state, copies.pop(_LOCK), copies))


def descriptors_of(
    request: MountRequest,
    record: MountRecord,
    lock: int,
    handover: tuple[Handover, dict[str, int]],
    source: RememberingSource,
    blobs: Mapping[str, int],
) -> list[int]:
    """What a holder is to keep of a mount; the first is the caller's to close. OSError.

    `blobs` are files of the cache, by their digests.
    """
    what, copies = handover
    named = {_LOCK: lock, **copies, **{_BLOB + digest: fd for digest, fd in blobs.items()}}
    names = (_STATE, *named)[:MAX_DESCRIPTORS]
    state = MountState(request, record, what, source.answers, names)
    return [in_memory(encode(state)), *named.values()]


def ztoc_files(layers: Sequence[LazyLayer], cache: Cache) -> dict[str, int]:
    """Descriptors of the cache's files of layers' zTOCs, by digest: they stay whatever is evicted."""
    return {layer.ztoc_digest: fd for layer in layers if (fd := _ztoc_file(layer, cache)) >= 0}


def _ztoc_file(layer: LazyLayer, cache: Cache) -> int:
    if layer.ztoc_digest:
        entry = cache.find_unchecked(blob_key(layer.ztoc_digest))
        with suppress(OSError):
            return os.dup(entry.fileno()) if entry else -1
    return -1


def _opener(fd: int) -> Callable[[], BlobReader]:
    def open_file() -> BlobReader:
        return _File(os.dup(fd))

    return open_file


class _File:
    """A file of the cache as a stream, without its header. Implements `BlobReader`."""

    skipped = 0

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = HEADER.size

    def read(self, size: int = -1, /) -> bytes:
        """See `BlobReader.read`."""
        data = os.pread(self._fd, size if size >= 0 else os.fstat(self._fd).st_size, self._at)
        self._at += len(data)
        return data

    def readinto(self, buffer: bytearray | memoryview, /) -> int:
        """See `BlobReader.readinto`."""
        count = os.preadv(self._fd, [buffer], self._at)
        self._at += count
        return count

    def close(self) -> None:
        """See `BlobReader.close`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
