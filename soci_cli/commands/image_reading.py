"""What the commands that read files of an image share: flags, and opening the image."""

from __future__ import annotations

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
from soci_cli.errors import InvalidDataError, UsageError
from soci_cli.index.discover import IndexSources
from soci_cli.lazy import Cache, Fetching, LazyImage, OpenOptions, cache_root, open_image
from soci_cli.oci import parse_digest
from soci_cli.progress import Observer, SilentObserver, Task
from soci_cli.settings import parse_size

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


@contextmanager
def reading(
    app: App,
    image: str,
    platform_name: str | None,
    soci_index_digest: str | None,
    registry: RegistryFlags,
) -> Iterator[LazyImage]:
    """An image whose files are read, until the end of the `with`."""
    modes = app.settings.pull_modes
    digest = None if soci_index_digest is None else _digest(soci_index_digest)
    options = OpenOptions(
        platforms=app.platforms([platform_name] if platform_name else [], False),
        index=IndexSources(digest, modes.soci_v2, modes.soci_v1),
    )
    place = app.place(image)
    with ExitStack() as stack:
        registries = stack.enter_context(app.registries(registry, place))
        source = stack.enter_context(app.open_source(place, registries))
        fetching = Fetching(_cache(), requests=app.downloads(registry))
        stack.enter_context(fetching)
        with _Progress(app.output) as observer:
            opened = open_image(source, fetching, options, observer)
        stack.callback(opened.close)
        # Closed before the image is: what still runs uses its layers.
        stack.callback(fetching.close)
        yield opened


class _Progress(Closing):
    """Draws nothing before there is something to draw: most images need nothing fetched at first."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._stack = ExitStack()
        self._mutex = threading.Lock()
        self._begun: Observer | None = None

    def start(self, name: str, total: int | None) -> Task:
        """See `Observer.start`."""
        return self._observer().start(name, total)

    def note(self, message: str) -> None:
        """See `Observer.note`."""
        if self._begun is None:
            self._output.note(message)
        else:
            self._begun.note(message)

    def close(self) -> None:
        """Ends the drawing."""
        self._stack.close()
        self._begun = SilentObserver()

    def _observer(self) -> Observer:
        with self._mutex:
            if self._begun is None:
                self._begun = self._stack.enter_context(self._output.progress())
            return self._begun


def _cache() -> Cache:
    size = os.environ.get("SOCI_CACHE_SIZE")
    return Cache(cache_root(os.environ), parse_size(size) if size else None)


def _digest(text: str) -> str:
    try:
        return parse_digest(text)
    except InvalidDataError as error:
        raise UsageError(f"--soci-index-digest: {error}") from error
