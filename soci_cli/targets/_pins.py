"""Images of the local store that somebody uses for long: sweeps keep them, and remove all else.

Each is a file in `.pins` that lists descriptors. Its user holds it locked (flock): one that is not was left
by a process that was killed. Made under the store's shared lock, looked at under the exclusive one.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from soci_cli.closing import Closing
from soci_cli.errors import InvalidDataError
from soci_cli.oci.canonical import loads
from soci_cli.oci.descriptor import Descriptor
from soci_cli.targets._disk import disk_errors
from soci_cli.targets._folder import write_all

_FOLDER = ".pins"
_MAX_PIN = 1 << 16
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Pin(Closing):
    """Keeps descriptors, with all that they need, until it is closed or its process ends."""

    def __init__(self, root: Path, descriptors: Iterable[Descriptor]) -> None:
        """The store is in the folder `root`. StorageError."""
        self._path = root / _FOLDER / os.urandom(8).hex()
        self._fd = -1
        text = json.dumps([one.to_json() for one in descriptors])
        with disk_errors("write", self._path):
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            self._fd = os.open(self._path, _NEW, 0o600)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX)
                write_all(self._fd, text.encode())
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Keeps them no longer."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(OSError):
                self._path.unlink()
            os.close(fd)


def pinned(root: Path) -> list[Descriptor]:
    """What living processes keep; removes what others left.

    StorageError, and InvalidDataError for a file that does not say what it keeps.
    """
    found: list[Descriptor] = []
    with disk_errors("read", root / _FOLDER):
        for path in sorted((root / _FOLDER).glob("*")):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found += _parse(os.read(fd, _MAX_PIN), str(path))
            else:
                path.unlink()
            finally:
                os.close(fd)
    return found


def _parse(data: bytes, what: str) -> list[Descriptor]:
    value = loads(data, what)
    if not isinstance(value, list):
        raise InvalidDataError(f"{what} is no list of descriptors")
    return [Descriptor.from_json(one, what) for one in value]
