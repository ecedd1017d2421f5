"""Writing down which files of an image are read, in the order of their first read."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from soci_cli.closing import Closing
from soci_cli.errors import StorageError
from soci_cli.new_file import replacing
from soci_cli.ztoc.layer import LayerFiles

_PERIOD = 1.0
_SHARE = 20  # of the time at most this part goes into writing
_LAYER = 40  # bits of an entry's number


class _Layer(Protocol):
    @property
    def files(self) -> LayerFiles: ...


class ReadList(Closing):
    """Keeps a JSON list of paths up to date, as a conversion takes it for its prefetch artifacts.

    Each path is put into words once, however long the list becomes; the file is always whole.
    """

    def __init__(self, layers: Sequence[_Layer], path: Path, *, is_new: bool = True) -> None:
        """Writes an empty list at once. StorageError where `path` cannot be written.

        One that is not new goes on with the list in `path`, and writes nothing before `take_up`.
        """
        self._layers = layers
        self._path = path
        self._seen: dict[int, None] = {}
        self._taken = 0
        self._names: set[str] = set()
        self._text = bytearray(b"[")
        self._written = 0
        self._ended = threading.Event()
        self._is_ours = is_new
        if is_new:
            self._write()
        self._thread = threading.Thread(target=self._keep, name="soci-record", daemon=True)
        self._thread.start()

    def __call__(self, layer: int, entry: int) -> None:
        """A file of a layer is read. Any thread may say so."""
        self._seen[layer << _LAYER | entry] = None

    def take_up(self) -> None:
        """Goes on with the list that is there: who wrote it so far writes no more."""
        with suppress(OSError, ValueError):
            names = json.loads(self._path.read_bytes())
            for name in names if isinstance(names, list) else ():
                self._add(str(name))
        self._is_ours = True

    def close(self) -> None:
        """Writes what is missing. StorageError."""
        self._ended.set()
        self._thread.join()
        self._update()

    def _keep(self) -> None:
        pause = _PERIOD
        while not self._ended.wait(pause):
            began = time.monotonic()
            with suppress(StorageError):  # said at the end, if it is still so
                self._update()
            pause = max(_PERIOD, _SHARE * (time.monotonic() - began))

    def _update(self) -> None:
        if not self._is_ours:
            return
        for key in list(self._seen)[self._taken :]:
            self._taken += 1
            self._add(self._name(key))
        if len(self._names) > self._written:
            self._write()

    def _add(self, name: str) -> None:
        if name not in self._names:  # as one of another layer may be
            self._names.add(name)
            # ASCII, so that names that are no UTF-8 come back as they were.
            comma = "," if len(self._names) > 1 else ""
            self._text += f"{comma}\n {json.dumps(name)}".encode("ascii")

    def _write(self) -> None:
        try:
            with replacing(self._path) as file:
                file.write(self._text)
                file.write(b"\n]\n" if self._names else b"]\n")
        except OSError as error:
            raise StorageError(
                f"{self._path}: the list of files cannot be written: {error.strerror}"
            ) from error
        self._written = len(self._names)

    def _name(self, key: int) -> str:
        files = self._layers[key >> _LAYER].files
        path = files.path_of(key & (1 << _LAYER) - 1)
        return "/" + path.decode("utf-8", "surrogateescape")
