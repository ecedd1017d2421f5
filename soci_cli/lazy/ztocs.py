"""The zTOCs by which the layers of a process are read."""

from __future__ import annotations

import threading
from weakref import WeakValueDictionary

from soci_cli.lazy.blobs import open_blob
from soci_cli.lazy.cache import Cache
from soci_cli.oci import Descriptor
from soci_cli.targets import Source
from soci_cli.ztoc import decode_ztoc
from soci_cli.ztoc.codec import MAX_ZTOC_SIZE
from soci_cli.ztoc.layer import LayerFiles

_PATIENCE = 2.0  # seconds


class Ztocs:
    """Opens each zTOC once, whichever images name it. Several threads may use it.

    Whoever opens one from a place that hangs is not waited for long: another image may have it elsewhere.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._turns: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._files: WeakValueDictionary[str, LayerFiles] = WeakValueDictionary()

    def get(self, source: Source, blob: Descriptor, cache: Cache) -> LayerFiles:
        """The files of the layer that a zTOC is of. Raises what reading it raises, and InvalidDataError."""
        with self._mutex:
            turn = self._turns.setdefault(blob.digest, threading.Lock())
        is_mine = turn.acquire(timeout=_PATIENCE)
        try:
            files = self._files.get(blob.digest)
            if files is None:
                data = open_blob(source, blob, cache, MAX_ZTOC_SIZE)
                files = self._files.setdefault(blob.digest, LayerFiles(decode_ztoc(*data)))
        finally:
            if is_mine:
                turn.release()
        return files
