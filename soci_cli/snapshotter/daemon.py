"""The daemon: everything put together, from its start until a signal ends it."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import grpc

from soci_cli.errors import ConfigError, SociError, StorageError
from soci_cli.kernel import calls
from soci_cli.lazy.cache import Cache
from soci_cli.snapshotter.config import Config
from soci_cli.snapshotter.images import Images, ImageSettings
from soci_cli.snapshotter.layers import LayerSettings, LazyLayers
from soci_cli.snapshotter.metrics import Metrics, MetricsServer, process_samples
from soci_cli.snapshotter.service import add_to
from soci_cli.snapshotter.snapshots import Snapshotter
from soci_cli.snapshotter.sockets import ListeningSocket, Pump, notify, passed_socket, path_of
from soci_cli.targets.registry.options import RegistryOptions
from soci_cli.targets.registry.retry import RetryPolicy

_THREADS = 64
_DOWNLOADS = 6  # of whole layers at once, where the configuration sets no limit
_FAREWELL = 10.0  # seconds for calls that are under way
_MESSAGE_LIMIT = 16 << 20

Log = Callable[..., None]
"""Is given a level, a message, and fields."""


@dataclass(frozen=True)
class DaemonOptions:
    """What the command line says: where to listen, where everything is, and the configuration.

    `cache_limit` is in bytes.
    """

    address: str
    root: Path
    config: Config
    environ: Mapping[str, str] = field(repr=False)
    cache_limit: int | None = None


def serve(options: DaemonOptions, log: Log, version: Mapping[str, str]) -> None:
    """Serves until SIGTERM or SIGINT, in the main thread. Raises StorageError and ConfigError at the start.

    Calls that are under way are answered then; what is mounted stays with its servers.
    """
    log("info", "starting soci-snapshotter-grpc", **version)
    ending = threading.Event()

    def end(_: int, __: FrameType | None) -> None:
        ending.set()

    with ExitStack() as stack:
        snapshotter = _open(options, log, stack)
        server = grpc.server(
            ThreadPoolExecutor(_THREADS, "soci-call"),
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
                ("grpc.max_send_message_length", _MESSAGE_LIMIT),
            ],
        )
        add_to(server, snapshotter, log)
        _listen(options, server, log, stack)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        log("info", "soci-snapshotter-grpc successfully started", address=options.address)
        notify(options.environ, "READY=1")
        ending.wait()
        log("info", "ending soci-snapshotter-grpc")
        notify(options.environ, "STOPPING=1")
        server.stop(_FAREWELL).wait()


def _open(options: DaemonOptions, log: Log, stack: ExitStack) -> Snapshotter:
    config, root = options.config, options.root
    home = root / "snapshotter"
    if (home / "metadata.db").exists():
        raise StorageError(
            f"{home}/metadata.db is of another soci-snapshotter-grpc, whose snapshots are not for "
            "this one; remove the images with that first, or give another --root"
        )
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = root / "mounts"
        state.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}") from error
    if not config.skip_check_snapshotter_supported:
        check_overlay(home)
    cache = stack.enter_context(Cache(root / "cache", options.cache_limit))
    registry = _registry_options(config)
    images = Images(
        ImageSettings(
            v1=config.pull_modes.soci_v1.enable,
            v2=config.pull_modes.soci_v2.enable,
            containerd=config.content_store.containerd_address,
            registry=registry,
            environ=options.environ,
            trusted=config.soci.trusted if config.soci.verify else None,
        ),
        cache,
        log,
    )
    background = config.background_fetch
    parallel = config.pull_modes.parallel_pull_unpack
    downloads = parallel.max_concurrent_downloads
    is_fallback = parallel.experimental_parallel_pull_as_fallback
    settings = LayerSettings(
        state=state,
        store=root / "store",
        cache=root / "cache",
        environ=options.environ,
        registry=registry,
        cache_limit=options.cache_limit,
        reader_deadline=float(config.soci.reader_deadline_sec),
        mount_timeout=float(config.mount_timeout_sec),
        background=not background.disable,
        silence_period=background.silence_period_msec / 1000,
        fetch_period=background.fetch_period_msec / 1000,
        max_queue_size=background.max_queue_size,
        prefetch=config.prefetch.enable,
        engine=config.soci.engine,
        whole="always" if parallel.enable else "images" if is_fallback else "layers",
        downloads=_DOWNLOADS if downloads < 0 else downloads,
        min_layer_size=config.snapshotter.min_layer_size,
    )
    metrics = Metrics()
    layers = stack.enter_context(LazyLayers(settings, images, cache, metrics, log))
    snapshotter = stack.enter_context(Snapshotter(home, layers, lambda line: log("warning", line)))
    if config.metrics_address and not config.no_prometheus:

        def text() -> str:
            return metrics.text([*layers.samples(), *process_samples()])

        server = MetricsServer(config.metrics_network, config.metrics_address, text)
        stack.enter_context(server)
        log("info", "metrics are served", address=config.metrics_address)
    found = [one for one in snapshotter.metadata.all() if one.layer]
    try:
        layers.sweep(found)
    except SociError as error:
        log("warning", "the cache cannot be swept", error=str(error))
    layers.restore([snapshotter.metadata.chain(one.name) for one in found], snapshotter.files)
    return snapshotter


def _registry_options(config: Config) -> RegistryOptions:
    http = config.http
    retries = RetryPolicy(
        attempts=1 + http.max_retries, first=http.min_wait / 1000, longest=http.max_wait / 1000
    )
    return RegistryOptions(
        timeout=max(http.dial_timeout, http.header_timeout) / 1000, retries=retries
    )


def _listen(options: DaemonOptions, server: grpc.Server, log: Log, stack: ExitStack) -> None:
    from soci_cli.snapshotter.sockets import DEFAULT_ADDRESS

    def bind(address: str) -> None:
        server.add_insecure_port(f"unix:{address}")
        server.start()

    path = path_of(options.address)
    if path is None:
        passed = passed_socket(options.environ)
        if passed is not None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="soci-"))
            bind(f"{folder}/s")
            stack.enter_context(Pump(passed, f"{folder}/s"))
            return
        log("warning", "no socket was passed", address=DEFAULT_ADDRESS)
        path = Path(DEFAULT_ADDRESS)
    stack.enter_context(ListeningSocket(path, bind))


def check_overlay(folder: Path) -> None:
    """Mounts an overlay of two folders for a trial. ConfigError where that cannot be done."""
    with tempfile.TemporaryDirectory(prefix=".check-", dir=folder) as name:
        trial = Path(name)
        for part in ("lower1", "lower2", "upper", "work", "merged"):
            (trial / part).mkdir()
        data = "lowerdir=lower2:lower1,upperdir=upper,workdir=work"
        target = trial / "merged"
        try:
            calls.in_directory(trial, lambda: calls.mount("overlay", "overlay", target, 0, data))
        except OSError as error:
            raise ConfigError(
                f"overlayfs cannot be mounted in {folder}: {error.strerror}; is this root, and is that a "
                "local file system? skip_check_snapshotter_supported = true leaves this check out"
            ) from error
        calls.umount2(target, 0)
