"""Writing down which files of an image are read, in the order of their first read."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from pathlib import Path

from soci_cli.closing import Closing
from soci_cli.errors import StorageError
from soci_cli.lazy.merged import LazyImage
from soci_cli.new_file import replacing
from soci_cli.ztoc.reader import clean_path

_PERIOD = 1.0
_LAYER = 40  # bits of an entry's number


class Recorder(Closing):
    """Keeps a JSON list of paths up to date, as a conversion takes it for its prefetch artifacts."""

    def __init__(self, image: LazyImage, path: Path) -> None:
        """Writes an empty list at once. StorageError where `path` cannot be written."""
        self._image = image
        self._path = path
        self._seen: dict[int, None] = {}
        self._written = 0
        self._ended = threading.Event()
        self._write([])
        self._thread = threading.Thread(target=self._keep, name="soci-record", daemon=True)
        self._thread.start()

    def __call__(self, layer: int, entry: int) -> None:
        """A file of a layer is read. Any thread may say so."""
        self._seen[layer << _LAYER | entry] = None

    def close(self) -> None:
        """Writes what is missing. StorageError."""
        self._ended.set()
        self._thread.join()
        self._update()

    def _keep(self) -> None:
        while not self._ended.wait(_PERIOD):
            with suppress(StorageError):  # said at the end, if it is still so
                self._update()

    def _update(self) -> None:
        seen = list(self._seen)
        if len(seen) > self._written:
            self._write(seen)
            self._written = len(seen)

    def _write(self, seen: list[int]) -> None:
        paths = [self._name(key >> _LAYER, key & (1 << _LAYER) - 1) for key in seen]
        # ASCII, so that names that are no UTF-8 come back as they were.
        text = json.dumps(list(dict.fromkeys(paths)), indent=1) + "\n"
        try:
            with replacing(self._path) as file:
                file.write(text.encode("ascii"))
        except OSError as error:
            raise StorageError(
                f"{self._path}: the list of files cannot be written: {error.strerror}"
            ) from error

    def _name(self, layer: int, entry: int) -> str:
        name = clean_path(b"/" + self._image.layers[layer].files.name(entry))
        return "/" + name.lstrip(b"/").decode("utf-8", "surrogateescape")
