"""The layers of an image: each opened when somebody needs its files or its bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from soci_cli.closing import Closing
from soci_cli.lazy.layer_bytes import LayerBytes
from soci_cli.oci import Descriptor
from soci_cli.parallel import Stop
from soci_cli.ztoc.layer import LayerFiles


class Opener(Protocol):
    """Opens layers when they are needed."""

    def open(self, layer: Descriptor, stop: Stop) -> tuple[LayerFiles, LayerBytes]:
        """The files of a layer and its bytes; setting `stop` ends unpacking."""

    def prefetch_ranges(self, layer: Descriptor, count: int) -> tuple[tuple[int, int], ...]:
        """See `LazyLayer.prefetch_ranges`; the layer has `count` spans."""


_SMALL = 512 << 10  # bytes of a zTOC of which many can be fetched together


def _do_nothing(layer: LazyLayer) -> None:
    """The default of `LazyLayer.before_opening`."""


class LazyLayer(Closing):
    """One layer: its files, and its bytes where they are read.

    The first call that needs the files or the bytes opens it, while other threads wait; after a failure the
    next call tries again.
    """

    def __init__(
        self, descriptor: Descriptor, opener: Opener, ztoc_digest: str, ztoc_size: int = 0
    ) -> None:
        """`ztoc_digest` is "" for a layer that no SOCI index has a zTOC of; the size is in bytes."""
        self.descriptor = descriptor
        self.ztoc_digest = ztoc_digest
        self.is_small = bool(ztoc_digest) and ztoc_size <= _SMALL
        self.before_opening: Callable[[LazyLayer], None] = _do_nothing
        """What is done before the layer is opened because somebody needs its files."""
        self._opener = opener
        self._opened: tuple[LayerFiles, LayerBytes] | None = None
        self._mutex = threading.Lock()
        self._stop = Stop()
        self._closed = False

    @property
    def indexed(self) -> bool:
        """Whether a SOCI index has a zTOC of it."""
        return bool(self.ztoc_digest)

    @property
    def files(self) -> LayerFiles:
        """Its files. Raises what opening raises."""
        if self._opened is None:
            self.before_opening(self)
        return (self._opened or self.open())[0]

    @property
    def is_open(self) -> bool:
        """Whether its files are here."""
        return self._opened is not None

    @property
    def archive(self) -> LayerBytes:
        """Its bytes. Raises what opening raises."""
        return (self._opened or self.open())[1]

    def open(self, stop: Stop | None = None) -> tuple[LayerFiles, LayerBytes]:
        """Opens the layer, unless it is open. Raises as `open_image` does."""
        with self._mutex:
            if self._opened is None:
                self._opened = self._opener.open(self.descriptor, stop or self._stop)
                if self._closed:
                    self._opened[1].close()
            return self._opened

    def prefetch_ranges(self) -> tuple[tuple[int, int], ...]:
        """Ranges of spans to fetch soon, both ends included, as the SOCI index of the image wants it.

        Raises what fetching raises, and InvalidDataError for spans that the layer does not have.
        """
        if not self.indexed or not self.archive.span_count:
            return ()  # it is here as a whole
        return self._opener.prefetch_ranges(self.descriptor, len(self.files.ztoc.spans))

    def close(self) -> None:
        """Ends an opening that runs, at its next step, and closes what is open."""
        self._closed = True
        self._stop.set()
        if self._opened is not None:
            self._opened[1].close()
