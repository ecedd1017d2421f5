"""Making a layer's device of its spans: those in the cache go there, and all others are fetched."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from soci_cli.errors import StorageError, UnsupportedLayerError
from soci_cli.lazy.cached_spans import CachedSpans
from soci_cli.lazy.devices.growing import SpanDevice
from soci_cli.lazy.devices.layout import DeviceLayout
from soci_cli.lazy.span_queue import PendingSpan
from soci_cli.lazy.span_table import SpanTable
from soci_cli.ztoc import Ztoc

_AT_ONCE = 32  # spans that are asked for together
_PAUSE = 0.05
_AHEAD = 128 << 20  # uncompressed bytes that are asked for before the first of them is here


def make_device(
    cached: CachedSpans,
    table: SpanTable,
    ztoc: Ztoc,
    diff_id: str,
    fetch: Callable[[Sequence[int]], Sequence[PendingSpan]],
    tail: Callable[[], Iterable[bytes]],
    advance: Callable[[int], None],
) -> None:
    """Makes the device of a layer, unless it is there; waits for who makes it already.

    `fetch` begins to fetch spans, `tail` gives what follows the archive in the layer, `advance` is told of
    compressed bytes, and raises when there is no more need of it. Raises StorageError where the cache takes
    none, IntegrityError where the archive is not that of its diff ID, UnsupportedLayerError for one that
    cannot be laid out, and what fetching raises. The layer can be read meanwhile, and afterwards.
    """
    if cached.device() is not None:
        return
    layout = DeviceLayout.of_files(ztoc)
    if layout.size > cached.limit:
        raise StorageError(f"it is larger, unpacked, than the {cached.limit} bytes of the cache")
    if not len(table):
        raise UnsupportedLayerError("it has no spans")
    cached.make_room(layout.size)
    while (claim := cached.claim_device()) is None:
        advance(0)
        time.sleep(_PAUSE)
    with claim:
        if cached.device() is not None:
            return
        if not claim.is_real:
            raise StorageError("the cache cannot be written")
        with SpanDevice(claim, layout, table, diff_id) as growing, cached.growing(growing):
            try:
                # What was on its way before came into the cache.
                while missing := growing.missing:
                    _fill(growing, missing, cached, table, fetch, advance)
                cached.complete(growing.commit(tail()))
            except OSError as error:
                raise StorageError(f"the cache: {error.strerror or error}") from error


def _fill(
    growing: SpanDevice,
    missing: Sequence[int],
    cached: CachedSpans,
    table: SpanTable,
    fetch: Callable[[Sequence[int]], Sequence[PendingSpan]],
    advance: Callable[[int], None],
) -> None:
    ahead = max(_AT_ONCE, table.count_in(_AHEAD))
    pending: deque[PendingSpan] = deque()
    for first in range(0, len(missing), _AT_ONCE):
        batch = missing[first : first + _AT_ONCE]
        advance(sum(map(table.packed_size, batch)))
        pending += fetch([number for number in batch if not cached.move(number, growing)])
        is_last = first + _AT_ONCE >= len(missing)
        while len(pending) > (0 if is_last else ahead):
            if not pending.popleft().future.result().is_kept:
                raise StorageError("the disk of the cache takes no more")
