"""Having all of an image here: each layer a complete device of the cache."""

from __future__ import annotations

from collections.abc import Sequence

from soci_cli.errors import InvalidDataError, StorageError
from soci_cli.index.layers import short
from soci_cli.lazy.lazy_layer import LazyLayer
from soci_cli.parallel import Stop, StoppableTask, run_all
from soci_cli.progress import Observer, Work

_AT_ONCE = 4


def complete_all(layers: Sequence[LazyLayer], observer: Observer) -> None:
    """Fetches all of the layers, several side by side, and makes complete devices of them.

    Raises the first error of fetching, and IntegrityError for a layer that is not that of its diff ID. What
    the cache cannot take is served as before, and noted.
    """

    def complete(layer: LazyLayer, stop: Stop) -> None:
        digest = layer.descriptor.digest
        try:
            with Work(observer, short(digest), layer.descriptor.size) as work:
                layer.archive.complete(StoppableTask(work, stop).advance)
                work.outcome = "complete"
        except (StorageError, InvalidDataError) as error:
            observer.note(f"layer {digest} is served, and not kept as a whole: {error.message}")

    run_all(complete, layers, _AT_ONCE)
