"""What the commands that read or mount an image share: flags, and opening the image."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import click

from soci_cli.closing import Closing
from soci_cli.commands.app import App
from soci_cli.commands.output import Output
from soci_cli.commands.registry_flags import RegistryFlags
from soci_cli.errors import UsageError, explaining
from soci_cli.index.discover import IndexSources
from soci_cli.lazy import Cache, Fetching, LazyImage, OpenOptions, cache_root, open_image
from soci_cli.oci import parse_digest
from soci_cli.progress import Observer, Task
from soci_cli.settings import parse_size
from soci_cli.targets import Place, Source

_F = TypeVar("_F", bound=Callable[..., Any])


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


@dataclasses.dataclass(frozen=True)
class Opened:
    """An image that is open, and what fetches for it."""

    image: LazyImage
    fetching: Fetching
    source: Source

    def pin(self) -> None:
        """Makes ready for reading this image for long: of the local store only it is kept."""
        origin = self.image.origin
        index = [origin.index.descriptor] if origin and origin.index else []
        self.source.pin(*([origin.manifest] if origin else []), *index)


@contextmanager
def opening(
    app: App,
    place: Place,
    platform_name: str | None,
    soci_index_digest: str | None,
    registry: RegistryFlags,
    readahead: int = 0,
) -> Iterator[Opened]:
    """An image that is read or mounted, until the end of the `with`; `readahead` as for `Fetching`."""
    modes = app.settings.pull_modes
    digest = None if soci_index_digest is None else _digest(soci_index_digest)
    options = OpenOptions(
        platforms=app.platforms([platform_name] if platform_name else [], False),
        index=IndexSources(digest, modes.soci_v2, modes.soci_v1),
    )
    with ExitStack() as stack:
        registries = stack.enter_context(app.registries(registry, place))
        source = stack.enter_context(app.open_source(place, registries))
        fetching = Fetching(
            open_cache(), app.downloads(registry), readahead, app.settings.soci.reader_deadline_sec
        )
        stack.enter_context(fetching)
        observer = stack.enter_context(_Progress(app.output))
        opened = stack.enter_context(open_image(source, fetching, options, observer))
        # Closed before the image is: what still runs uses its layers.
        stack.callback(fetching.close)
        yield Opened(opened, fetching, source)


@contextmanager
def reading(
    app: App,
    image: str,
    platform_name: str | None,
    soci_index_digest: str | None,
    registry: RegistryFlags,
) -> Iterator[LazyImage]:
    """An image whose files are read, until the end of the `with`."""
    with opening(app, app.place(image), platform_name, soci_index_digest, registry) as opened:
        yield opened.image


def open_cache() -> Cache:
    """The cache that all processes share, as SOCI_CACHE and SOCI_CACHE_SIZE say."""
    size = os.environ.get("SOCI_CACHE_SIZE")
    return Cache(cache_root(os.environ).absolute(), parse_size(size) if size else None)


def absolute_place(place: Place) -> Place:
    """The same place, whatever becomes of the current folder."""
    if place.path is None:
        return place
    path = place.path.absolute()
    tag = "" if place.tag is None else place.tag if place.tag[:1] == "@" else f":{place.tag}"
    return dataclasses.replace(place, path=path, text=f"{place.kind}:{path}{tag}")


class _Progress(Closing):
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
    """A piece of work that `_Progress` draws."""

    def __init__(self, progress: _Progress, task: Task) -> None:
        self._progress = progress
        self._task = task

    def advance(self, amount: int) -> None:
        """See `Task.advance`."""
        self._task.advance(amount)

    def finish(self, outcome: str) -> None:
        """See `Task.finish`."""
        self._task.finish(outcome)
        self._progress.ended()


def _digest(text: str) -> str:
    with explaining("--soci-index-digest"):
        return parse_digest(text, UsageError)
