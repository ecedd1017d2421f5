"""What was fetched for a mount, as `soci stats` shows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from soci_cli.lazy.fetching import Fetching
from soci_cli.lazy.lazy_layer import LazyLayer
from soci_cli.processes.log import Log


def statistics(
    layers: Sequence[LazyLayer], fetching: Fetching, log: Log, seconds: float
) -> dict[str, object]:
    """The fields of `stats.Report`, how much of each layer is here, and the log's last lines."""
    return {
        **dataclasses.asdict(fetching.stats.report()),
        "layers": [_presence(layer) for layer in layers],
        "log_lines": log.count,
        "log_recent": log.recent,
        "seconds": seconds,
    }


def _presence(layer: LazyLayer) -> dict[str, object]:
    """How much of a layer is on this machine, in uncompressed bytes."""
    found = dataclasses.asdict(layer.archive.presence())
    return {"digest": layer.descriptor.digest, "lazy": layer.indexed, **found}
