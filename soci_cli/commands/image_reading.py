"""What the commands that read or mount an image share: flags, and opening the image."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from soci_cli.closing import Closing
from soci_cli.commands.app import App
from soci_cli.commands.output import Output
from soci_cli.commands.registry_flags import RegistryFlags
from soci_cli.errors import UsageError, explaining
from soci_cli.lazy.mounts.request import ImageRequest
from soci_cli.oci.digest import parse_digest
from soci_cli.progress import Observer, Task
from soci_cli.user_folders import cache_root

if TYPE_CHECKING:
    from soci_cli.lazy import Cache, LazyImage
    from soci_cli.targets.places import Place
    from soci_cli.targets.registry.options import RegistryOptions

_F = TypeVar("_F", bound=Callable[..., Any])

_MANY = 16  # requests for a layer at once, where the settings know no limit


def image_flags(command: _F) -> _F:
    """--platform and --soci-index-digest."""
    for option in (
        click.option(
            "--soci-index-digest",
            metavar="DIGEST",
            help="The SOCI index to use; found by itself by default.",
        ),
        click.option(
            "--platform",
            "-p",
            "platform_name",
            metavar="OS/ARCH[/VARIANT]",
            help="The platform to read. Default: this machine's.",
        ),
    ):
        command = option(command)
    return command


def image_request(
    app: App,
    place: Place,
    platform_name: str | None,
    soci_index_digest: str | None,
    registry: RegistryFlags,
) -> ImageRequest:
    """What a command line says of an image that is read. It does not depend on the current folder."""
    from soci_cli.lazy.mounts.request import ContainerdAddress, ImageRequest

    place = absolute_place(place)
    settings = app.settings
    parallel = settings.pull_modes.parallel_pull_unpack
    at_once = registry.max_downloads or max(parallel.max_concurrent_downloads_per_image, 0)
    return ImageRequest(
        place=place.text,
        names=place.kind,
        store=app.root.absolute(),
        cache=cache_root(os.environ).absolute(),
        cache_limit=_cache_limit(),
        environ=dict(os.environ),
        platforms=(platform_name,) if platform_name else settings.platforms,
        index_digest=None if soci_index_digest is None else _digest(soci_index_digest),
        soci_v1=settings.pull_modes.soci_v1,
        soci_v2=settings.pull_modes.soci_v2,
        requests=at_once or _MANY,
        image_requests=at_once,
        requests_in_all=max(parallel.max_concurrent_downloads, 0),
        chunk_size=parallel.concurrent_download_chunk_size,
        reader_deadline=settings.soci.reader_deadline_sec,
        registry=_absolute_files(app.registry_options(registry, place)),
        containerd=ContainerdAddress(app.address, app.namespace, app.timeout),
    )


@contextmanager
def reading(
    app: App,
    image: str,
    platform_name: str | None,
    soci_index_digest: str | None,
    registry: RegistryFlags,
) -> Iterator[LazyImage]:
    """An image whose files are read, until the end of the `with`."""
    from soci_cli.lazy.mounts.request import opened

    place = app.place(image)
    request = image_request(app, place, platform_name, soci_index_digest, registry)
    with drawing(app) as observer, opened(request, observer) as found:
        yield found.image


def drawing(app: App) -> DrawnWork:
    """An observer that draws what is fetched whole, until it is closed."""
    return DrawnWork(app.output)


def open_cache() -> Cache:
    """The cache that all processes share, as SOCI_CACHE and SOCI_CACHE_SIZE say."""
    from soci_cli.lazy import Cache

    return Cache(cache_root(os.environ).absolute(), _cache_limit())


def _cache_limit() -> int | None:
    from soci_cli.settings import parse_size

    size = os.environ.get("SOCI_CACHE_SIZE")
    return parse_size(size) if size else None


def absolute_place(place: Place) -> Place:
    """The same place, whatever becomes of the current folder."""
    if place.path is None:
        return place
    path = place.path.absolute()
    tag = "" if place.tag is None else place.tag if place.tag[:1] == "@" else f":{place.tag}"
    return dataclasses.replace(place, path=path, text=f"{place.kind}:{path}{tag}")


class DrawnWork(Closing):
    """Draws only while something is fetched whole: most images need nothing of that, and output follows."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._stack = ExitStack()
        self._mutex = threading.RLock()
        self._drawn: Observer | None = None
        self._running = 0

    def start(self, name: str, total: int | None) -> Task:
        """See `Observer.start`."""
        with self._mutex:
            if self._drawn is None:
                self._drawn = self._stack.enter_context(self._output.progress())
            self._running += 1
            return _Task(self, self._drawn.start(name, total))

    def note(self, message: str, kind: str = "") -> None:
        """See `Observer.note`."""
        self._output.note(message, kind)

    def ended(self) -> None:
        """A task has ended."""
        with self._mutex:
            self._running -= 1
            if not self._running:
                self.close()

    def close(self) -> None:
        """Ends the drawing."""
        with self._mutex:
            self._drawn = None
            self._stack.close()


class _Task:
    """A piece of work that `DrawnWork` draws."""

    def __init__(self, progress: DrawnWork, task: Task) -> None:
        self._progress = progress
        self._task = task

    def advance(self, amount: int) -> None:
        """See `Task.advance`."""
        self._task.advance(amount)

    def finish(self, outcome: str) -> None:
        """See `Task.finish`."""
        self._task.finish(outcome)
        self._progress.ended()


def _absolute_files(options: RegistryOptions) -> RegistryOptions:
    def absolute(path: Path | None) -> Path | None:
        return None if path is None else path.absolute()

    folders = options.hosts_dirs
    return dataclasses.replace(
        options,
        tls_ca=absolute(options.tls_ca),
        tls_cert=absolute(options.tls_cert),
        tls_key=absolute(options.tls_key),
        hosts_dirs=None if folders is None else tuple(folder.absolute() for folder in folders),
    )


def _digest(text: str) -> str:
    with explaining("--soci-index-digest"):
        return parse_digest(text, UsageError)
