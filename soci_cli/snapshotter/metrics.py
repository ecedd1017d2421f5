"""Metrics in Prometheus' text format: those of the reference by their names, and ours beside them.

The reference's counters do not end in `_total`, so the text is made here and not by a library that would
add that (prometheus.io, "Text-based format").
"""

from __future__ import annotations

import os
import socket
import socketserver
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from soci_cli.closing import Closing
from soci_cli.errors import ConfigError, SociError, StorageError
from soci_cli.lazy.cache import Cache
from soci_cli.lazy.mounts.records import Mount
from soci_cli.lazy.mounts.request import StatisticsQuestion
from soci_cli.lazy.mounts.unmounting import ask_server
from soci_cli.lazy.stats import SOURCES
from soci_cli.snapshotter.sockets import ListeningSocket

_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = tuple(2**power for power in range(15))  # 1 to 16384 ms
_DURATIONS = "soci_fs_operation_duration_milliseconds"
_COUNTS = "soci_fs_operation_count"
_PATIENCE = 10.0
_ANSWER = 2.0  # seconds

MOUNT = "mount"
MOUNT_FAILURES = "fuse_mount_failure_count"
WHOLE_FAILURES = "local_mount_failure_count"


@dataclass(frozen=True)
class Sample:
    """One value of a family of metrics."""

    family: str
    kind: str
    value: float
    labels: Mapping[str, str]


class Metrics:
    """Counts what happens. Several threads may use it; `samples` of who is asked come beside."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._counts: dict[tuple[str, str], int] = {}
        self._durations: dict[tuple[str, str], list[float]] = {}  # sum, count, then one per bucket

    def count(self, operation: str, layer: str = "") -> None:
        """One more of an operation, of a layer by its digest."""
        with self._mutex:
            key = operation, layer
            self._counts[key] = self._counts.get(key, 0) + 1

    def observe(self, operation: str, layer: str, seconds: float) -> None:
        """An operation took so long."""
        value = seconds * 1000
        with self._mutex:
            found = self._durations.setdefault((operation, layer), [0.0] * (2 + len(_BUCKETS)))
            found[0] += value
            found[1] += 1
            for number, bound in enumerate(_BUCKETS):
                found[2 + number] += value <= bound

    def text(self, samples: Iterable[Sample] = ()) -> str:
        """All that is known, with the `samples` of others."""
        lines = [f"# TYPE {_DURATIONS} histogram"]
        with self._mutex:
            counts, durations = dict(self._counts), dict(self._durations)
        for (operation, layer), (total, count, *buckets) in sorted(durations.items()):
            labels = {"operation_type": operation, "layer": layer}
            for bound, value in zip((*map(str, _BUCKETS), "+Inf"), (*buckets, count), strict=True):
                lines.append(_line(f"{_DURATIONS}_bucket", {**labels, "le": bound}, value))
            lines.append(_line(f"{_DURATIONS}_sum", labels, total))
            lines.append(_line(f"{_DURATIONS}_count", labels, count))
        lines.append(f"# TYPE {_COUNTS} counter")
        for (operation, layer), value in sorted(counts.items()):
            lines.append(_line(_COUNTS, {"operation_type": operation, "layer": layer}, value))
        family = ""
        for sample in sorted(samples, key=lambda one: one.family):
            if sample.family != family:
                family = sample.family
                lines.append(f"# TYPE {family} {sample.kind}")
            lines.append(_line(family, sample.labels, sample.value))
        return "\n".join(lines) + "\n"


class MetricsServer(Closing):
    """Answers GET /metrics with what `text` gives, at `ADDRESS:PORT` or at a socket's path."""

    def __init__(self, network: str, address: str, text: Callable[[], str]) -> None:
        """`network` is "tcp" or "unix". ConfigError and StorageError."""
        handler = type("_Handler", (_Handler,), {"text": staticmethod(text)})
        self._socket: ListeningSocket | None = None
        self._server: socketserver.BaseServer
        if network == "unix":

            def bind(path: str) -> None:
                self._server = _UnixServer(path, handler)

            self._socket = ListeningSocket(Path(address.removeprefix("unix://")), bind)
        else:
            host, colon, port = address.rpartition(":")
            if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
                raise ConfigError(f"metrics_address {address!r} is no HOST:PORT")
            try:
                self._server = _TcpServer((host.strip("[]"), int(port)), handler)
            except OSError as error:
                raise StorageError(f"metrics_address {address}: {error.strerror}") from error
        self.address = self._server.server_address
        threading.Thread(
            target=self._server.serve_forever, name="soci-metrics", daemon=True
        ).start()

    def close(self) -> None:
        """Listens no more."""
        self._server.shutdown()
        self._server.server_close()
        if self._socket is not None:
            self._socket.close()


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    text: Callable[[], str]
    timeout = _PATIENCE

    def do_GET(self) -> None:
        """Answers it."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404)
            return
        data = self.text().encode()
        self.send_response(200)
        self.send_header("Content-Type", _TYPE)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def address_string(self) -> str:
        """Who asks; a client of a socket file has no address."""
        return ""


class _TcpServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


class _UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    number = f"{value:.0f}" if value == int(value) else repr(value)
    return f"{name}{{{shown}}} {number}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def mount_samples(mounts: Sequence[Mount], cache: Cache) -> list[Sample]:
    """What is known of mounted layers, from their records and of who serves them, and of the cache."""
    samples: list[Sample] = []
    engines: Counter[str] = Counter()
    fetched: Counter[str] = Counter(dict.fromkeys(SOURCES, 0))
    for mount in mounts:
        folder, record = mount
        engines[record.engine] += 1
        if not record.served:
            continue
        try:
            found = ask_server(mount, StatisticsQuestion(folder.name), _ANSWER)
            for source in SOURCES:
                fetched[source] += int(found[source]["fetched"])
            layer = found["layers"][-1]
            labels = {"digest": str(layer["digest"]), "mountpoint": record.target}
            here, size = float(layer["size_here"]), float(layer["size"])
        except (SociError, KeyError, IndexError, TypeError, ValueError):
            continue  # one that ends just now
        samples.append(Sample("soci_fs_layer_fetched_size_bytes", "counter", here, labels))
        samples.append(Sample("soci_fs_layer_size_bytes", "counter", size, labels))
    for engine, count in engines.items():
        samples.append(Sample("soci_snapshotter_layers", "gauge", count, {"engine": engine}))
    for source, size in fetched.items():
        samples.append(Sample("soci_snapshotter_fetched_bytes", "gauge", size, {"source": source}))
    taken = sum(record.restarts for _, record in mounts)
    samples.append(Sample("soci_snapshotter_takeovers", "gauge", taken, {}))
    kept = sum(one.size for one in cache.entries())
    return [*samples, Sample("soci_snapshotter_cache_bytes", "gauge", kept, {})]


def process_samples() -> Sequence[Sample]:
    """What this process uses: resident bytes and open files."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return [
        Sample("process_resident_memory_bytes", "gauge", pages * os.sysconf("SC_PAGE_SIZE"), {}),
        Sample("process_open_fds", "gauge", len(list(Path("/proc/self/fd").iterdir())), {}),
    ]
