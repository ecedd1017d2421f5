"""What is to be read or mounted, and what is asked of the process that does it: plain data.

It goes to that process as JSON (`processes.encoding`), secrets included, so never by its command line or
environment. All paths are absolute.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from soci_cli.errors import MountError
from soci_cli.lazy.known import KnownLayer
from soci_cli.lazy.mounts.records import PERSON
from soci_cli.targets.registry.options import RegistryOptions

if TYPE_CHECKING:
    from soci_cli.lazy import Fetcher, Fetching, LazyImage
    from soci_cli.progress import Observer
    from soci_cli.targets import Source

READAHEAD = 128 << 20
"""Uncompressed bytes that are fetched ahead where a layer is read in order."""

_SYSTEM = {"/dev": "the devices", "/etc": "the settings of this machine", "/proc": "/proc"}


@dataclass(frozen=True)
class ContainerdAddress:
    """Which containerd is meant; see `targets.places.connect`."""

    address: str | None = None
    namespace: str | None = None
    timeout: float | None = None


@dataclass(frozen=True)
class ImageRequest:
    """An image that is read: which, where it and its SOCI index are looked for, and how it is fetched.

    `names` is where names without a transport are, "store" or "containerd". `cache_limit` is in bytes, by
    default 10 GiB or a tenth of the disk; `requests` are under way at once for a layer, `image_requests` to
    `chunk_size` are those of `span_queue.ImageRequests`, and a reader waits for `reader_deadline` seconds
    of silence. `environ` is that of who asks. Where `layers` are known, the lowest first, `place` is only
    where their blobs are, and no manifest is read.
    """

    place: str
    names: str
    store: Path
    cache: Path
    environ: Mapping[str, str] = field(repr=False)
    platforms: tuple[str, ...] = ()
    index_digest: str | None = None
    soci_v1: bool = False
    soci_v2: bool = True
    cache_limit: int | None = None
    requests: int = 1
    image_requests: int = 0
    requests_in_all: int = 0
    chunk_size: int = 0
    reader_deadline: float = 30.0
    registry: RegistryOptions = field(default_factory=RegistryOptions)
    containerd: ContainerdAddress = field(default_factory=ContainerdAddress)
    layers: tuple[KnownLayer, ...] = ()


@dataclass(frozen=True)
class MountRequest:
    """An image that is mounted at `target`, for `owner`; what is known of the mount is below `state`.

    `writable` to `allow_other` are those of `MountOptions`, `background` to `max_queue_size` those of
    `BackgroundOptions`, whose layers with a `prefetch` artifact are fetched at once. The files that are
    read are written down in `record`; with `eager` all of it is fetched first. `engine` is one of
    `settings.ENGINES`. With `debug` the library's log is shown, too. With `topmost` only the last of the
    image's layers is mounted, for overlayfs to join; `is_stack` says whether the others are all that is
    below it. With `keep_config` the image's config is there as long as the mount; see `records.KeptConfig`.
    """

    image: ImageRequest
    target: Path
    state: Path
    owner: str = PERSON
    writable: bool = False
    suid: bool = False
    dev: bool = False
    allow_other: bool = False
    background: bool = True
    silence_period: float = 30.0
    fetch_period: float = 0.5
    max_queue_size: int = 300
    prefetch: bool = True
    record: Path | None = None
    engine: str = "auto"
    eager: bool = False
    debug: bool = False
    topmost: bool = False
    is_stack: bool = True
    keep_config: bool = False

    def check_clear(self) -> None:
        """Raises MountError where the mount would cover what serving it needs, and so wait for itself."""
        python = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[3]))
        system = [(what, Path(path)) for path, what in _SYSTEM.items()]
        system += [("Python, which serves the mount", Path(path)) for path in python]
        for what, path in [*self._needed(), *system]:
            if path.resolve().is_relative_to(self.target):
                raise MountError(
                    f"{self.target} cannot be mounted on: {what} is in it, {path}; choose another folder"
                )

    def _needed(self) -> list[tuple[str, Path]]:
        """What the server reads and writes."""
        image, registry = self.image, self.image.registry
        docker = image.environ.get("DOCKER_CONFIG") or Path(
            image.environ.get("HOME", "/"), ".docker"
        )
        transport, _, rest = image.place.partition(":")
        place = Path(rest.partition(":")[0]) if transport in ("oci", "oci-archive") else None
        needed = [
            ("the cache", image.cache),
            ("the state of mounts", self.state),
            ("the local store", image.store),
            ("the image", place),
            ("the list of files that are read", self.record),
            ("Docker's folder of credentials", Path(docker)),
            ("a certificate", registry.tls_ca),
            ("the client's certificate", registry.tls_cert),
            ("the client's key", registry.tls_key),
            *(("a folder of hosts.toml files", path) for path in registry.hosts_dirs or ()),
        ]
        return [(what, path) for what, path in needed if path is not None]


@dataclass(frozen=True)
class MountQuestion:
    """Asks for a mount. The answer is the id of its folder; the news are those of `RemoteObserver`."""

    request: MountRequest


@dataclass(frozen=True)
class FetchQuestion:
    """Asks to have all layers of an image opened once: those without a zTOC are in the cache then.

    The answer is True; "" where the process is about to end.
    """

    image: ImageRequest


@dataclass(frozen=True)
class StatisticsQuestion:
    """Asks what was fetched for a mount; see `statistics.statistics`."""

    mount: str


@dataclass(frozen=True)
class UnmountQuestion:
    """Asks the process to unmount, in its mount namespace. Answered when that is done."""

    mount: str


@dataclass(frozen=True)
class AbortQuestion:
    """As `UnmountQuestion`, even while the mount is in use: all who wait for it get an error."""

    mount: str


@dataclass(frozen=True)
class Program:
    """The Python and the code of soci that a server runs, and what it imports from."""

    python: str
    script: str
    path: tuple[str, ...]

    def start(self, arguments: Mapping[str, str]) -> bytes:
        """How a holder starts a server of it."""
        text = json.dumps({"path": self.path, "arguments": dict(arguments)})
        return b"\0".join(
            (os.fsencode(self.python), os.fsencode(self.script), text.encode("ascii"))
        )


@dataclass(frozen=True)
class RestartQuestion:
    """Asks the process to let a successor take over all its mounts, which runs as said here.

    Answered when the successor serves, with nothing; this process ends then.
    """

    program: Program


@dataclass(frozen=True)
class OpenedImage:
    """An image that is open, what fetches for it, and where it is."""

    image: LazyImage
    fetching: Fetching
    source: Source

    def keep(self) -> None:
        """Makes ready for reading the image for long: of the local store only it is kept."""
        origin = self.image.origin
        index = [origin.index.descriptor] if origin and origin.index else []
        self.source.pin(*([origin.manifest] if origin else []), *index)


@contextmanager
def opened_source(request: ImageRequest) -> Iterator[Source]:
    """The place of an image, until the end of the `with`. Raises what opening it raises."""
    from soci_cli.targets.places import connect, open_source, parse_place
    from soci_cli.targets.registry.registries import Registries

    place = parse_place(request.place, "containerd" if request.names == "containerd" else "store")
    with ExitStack() as stack:
        registries = stack.enter_context(Registries(request.registry, request.environ))
        client = None
        if place.kind == "containerd":
            client = connect(*dataclasses.astuple(request.containerd))
            stack.callback(client.close)
        yield stack.enter_context(open_source(place, request.store, registries, client))


@contextmanager
def opened(
    request: ImageRequest,
    observer: Observer,
    readahead: int = 0,
    fetcher: Fetcher | None = None,
    wrap: Callable[[Source], Source] = lambda source: source,
) -> Iterator[OpenedImage]:
    """An image that is read, until the end of the `with`; `readahead` and `fetcher` as for `Fetching`.

    `wrap` is given its place, and the image is read from what that returns. Raises what `open_image` and
    opening the place raise.
    """
    from soci_cli.index.discover import IndexSources
    from soci_cli.lazy import Cache, Fetching, OpenOptions, open_image
    from soci_cli.lazy.opening import open_layers
    from soci_cli.lazy.span_queue import ImageRequests
    from soci_cli.oci import platforms

    options = OpenOptions(
        tuple(platforms.parse(name) for name in request.platforms),
        IndexSources(request.index_digest, request.soci_v2, request.soci_v1),
    )
    with ExitStack() as stack:
        source = wrap(stack.enter_context(opened_source(request)))
        cache = Cache(request.cache, request.cache_limit)
        limits = ImageRequests(request.image_requests, request.requests_in_all, request.chunk_size)
        fetching = Fetching(
            cache, request.requests, readahead, request.reader_deadline, fetcher, limits
        )
        stack.enter_context(fetching)
        image = stack.enter_context(
            open_layers(source, fetching, request.layers, observer)
            if request.layers
            else open_image(source, fetching, options, observer)
        )
        # Closed before the image is: what still runs uses its layers.
        stack.callback(fetching.close)
        yield OpenedImage(image, fetching, source)
