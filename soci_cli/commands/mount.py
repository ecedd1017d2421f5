"""`soci mount`."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.commands.image_reading import absolute_place, image_flags, opening
from soci_cli.commands.registry_flags import RegistryFlags, transfer_flags
from soci_cli.errors import UsageError
from soci_cli.kernel.points import resolve
from soci_cli.lazy.mounts.state import MountRecord, Mounts, state_root
from soci_cli.oci import platforms
from soci_cli.processes.identity import this_process
from soci_cli.settings import BackgroundFetch
from soci_cli.targets import Place

if TYPE_CHECKING:
    from soci_cli.lazy.background import BackgroundOptions
    from soci_cli.lazy.mounts.server import Server

_OPTIONS = {"suid": True, "nosuid": False, "dev": True, "nodev": False, "allow_other": True}


@dataclasses.dataclass(frozen=True)
class _Wish:
    """What a command line asks for."""

    place: Place
    target: Path
    platform_name: str | None
    soci_index_digest: str | None
    registry: RegistryFlags
    writable: bool
    options: dict[str, bool]
    record: Path | None
    background: bool


@click.command()
@image_flags
@click.option(
    "--rw",
    "writable",
    is_flag=True,
    help="Let the mount be written to. What was written is gone with the mount.",
)
@click.option(
    "--record",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the files that are read, in order, to FILE, for convert's --prefetch-files-json.",
)
@click.option(
    "-o",
    "options",
    metavar="OPTION[,OPTION]",
    multiple=True,
    help="As for mount(8): suid and dev (neither by default), rw, and allow_other, by which other users "
    "may enter the mount of an ordinary one.",
)
@click.option(
    "--foreground",
    is_flag=True,
    help="Serve in this process, with the log on stderr, until unmounted or Ctrl-C.",
)
@click.option(
    "--no-background-fetch",
    is_flag=True,
    help="Fetch only what is read, and what the image's prefetch artifacts name.",
)
@click.argument("image")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@transfer_flags
@common_flags
@pass_app
def command(
    app: App,
    platform_name: str | None,
    soci_index_digest: str | None,
    writable: bool,
    record: Path | None,
    options: tuple[str, ...],
    foreground: bool,
    no_background_fetch: bool,
    image: str,
    folder: Path,
    registry: RegistryFlags,
) -> int:
    """Mount the files of IMAGE at DIR.

    Files come from the registry when they are read; layers without a zTOC are fetched first. The mount
    stays until soci umount DIR. Root mounts with overlayfs, anybody else with fusermount3.

    \b
    soci mount docker://example.com/app:1.0 /mnt/app
    """
    from soci_cli.lazy.fuse.mounting import check_target
    from soci_cli.lazy.mounts.request import check_clear

    # The mount lasts when the command has ended: nothing may depend on the current folder.
    app.root_flag = str(app.root.absolute())
    given = _mount_options(options)
    writable = given.pop("rw", False) or writable
    wish = _Wish(
        absolute_place(app.place(image)),
        resolve(folder),
        platform_name,
        soci_index_digest,
        _absolute_files(registry),
        writable,
        given,
        None if record is None else record.absolute(),
        not no_background_fetch,
    )
    # Before anything is fetched.
    Mounts(state_root(os.environ)).check_free(wish.target)
    check_target(wish.target)
    check_clear(wish.target, _needed(app, wish))
    if not foreground:
        from soci_cli.commands.apart import run_apart

        status = run_apart(app, lambda ready: _serve_apart(app, wish, ready))
        if status == 0:
            app.output.result(str(wish.target))
        return status
    with _mounted(app, wish) as server:
        app.output.result(str(wish.target))
        sys.stdout.flush()
        server.run()
    return 0


def _needed(app: App, wish: _Wish) -> list[tuple[str, Path]]:
    """What the server reads and writes."""
    from soci_cli.lazy import cache_root

    registry = wish.registry
    docker = os.environ.get("DOCKER_CONFIG") or Path(os.environ.get("HOME", "/"), ".docker")
    needed = [
        ("the cache", cache_root(os.environ)),
        ("the state of mounts", state_root(os.environ)),
        ("the local store", app.root),
        ("the image", wish.place.path),
        ("the list of files that are read", wish.record),
        ("Docker's folder of credentials", Path(docker)),
        ("a certificate", registry.tls_ca),
        ("the client's certificate", registry.tls_cert),
        ("the client's key", registry.tls_key),
        *(("a folder of hosts.toml files", Path(path)) for path in registry.hosts_dirs),
    ]
    return [(what, path.absolute()) for what, path in needed if path is not None]


def _serve_apart(app: App, wish: _Wish, ready: Callable[[int], None]) -> None:
    from soci_cli.lazy.mounts.log import LogFile

    with _mounted(app, wish) as server:
        log = LogFile(server.folder.log)
        server.log.redirect(log.write)
        ready(log.fd)
        server.run()


@contextmanager
def _mounted(app: App, wish: _Wish) -> Iterator[Server]:
    """The server of the mount; at the end the mount is gone and so is its state."""
    from soci_cli.lazy.fuse import MountOptions
    from soci_cli.lazy.mounts.log import Log
    from soci_cli.lazy.mounts.server import READAHEAD, ServeOptions, Server, counted

    this = this_process()
    record = MountRecord(
        image=wish.place.text,
        digest="",
        platform="",
        target=str(wish.target),
        pid=this.pid,
        process_started=this.started,
        boot_id=this.boot_id,
        started=time.time(),
        writable=wish.writable,
    )
    settings = app.settings
    options = ServeOptions(
        MountOptions(writable=wish.writable, **wish.options),
        _background(settings.background_fetch, wish.background),
        settings.prefetch.enable,
        wish.record,
    )
    with ExitStack() as stack:
        folder = stack.enter_context(Mounts(state_root(os.environ)).create(record))
        opened = stack.enter_context(
            opening(
                app,
                wish.place,
                wish.platform_name,
                wish.soci_index_digest,
                wish.registry,
                readahead=READAHEAD,
            )
        )
        opened.image.open_all()
        opened.pin()
        layers, indexed = counted(opened.image.layers)
        record = dataclasses.replace(
            record,
            digest=opened.image.digest,
            platform=platforms.format_platform(opened.image.platform or platforms.host_platform()),
            layers=layers,
            indexed=indexed,
        )
        log = stack.enter_context(Log(lambda line: print(line, file=sys.stderr, flush=True)))
        ending = _Ending()
        server = stack.enter_context(
            Server(opened.image, opened.fetching, folder, record, options, log)
        )
        ending.server = server
        ending.check()
        yield server


class _Ending:
    """From now on SIGTERM and SIGINT end the mount, and nothing in between."""

    def __init__(self) -> None:
        self.server: Server | None = None
        self._requested = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request)

    def check(self) -> None:
        """Ends here what was asked to end before there was a server."""
        if self._requested:
            raise SystemExit(128 + self._requested)

    def _request(self, number: int, _: object) -> None:
        self._requested = number
        if self.server is not None:
            self.server.end()


def _absolute_files(registry: RegistryFlags) -> RegistryFlags:
    def absolute(path: Path | None) -> Path | None:
        return None if path is None else path.absolute()

    folders = (part for text in registry.hosts_dirs for part in text.split(",") if part)
    return dataclasses.replace(
        registry,
        tls_ca=absolute(registry.tls_ca),
        tls_cert=absolute(registry.tls_cert),
        tls_key=absolute(registry.tls_key),
        hosts_dirs=tuple(str(Path(folder).absolute()) for folder in folders),
    )


def _background(settings: BackgroundFetch, wanted: bool) -> BackgroundOptions:
    from soci_cli.lazy.background import BackgroundOptions

    return BackgroundOptions(
        enabled=wanted and not settings.disable,
        silence_period=settings.silence_period_msec / 1000,
        fetch_period=settings.fetch_period_msec / 1000,
        max_queue_size=settings.max_queue_size if settings.max_queue_size > 0 else sys.maxsize,
    )


def _mount_options(texts: tuple[str, ...]) -> dict[str, bool]:
    """What -o says, the last of each kind; "rw" where that is given too. UsageError."""
    found: dict[str, bool] = {}
    for word in (word for text in texts for word in text.split(",") if word):
        if word in ("ro", "rw"):
            found["rw"] = word == "rw"
        elif word in _OPTIONS:
            found[word.removeprefix("no")] = _OPTIONS[word]
        else:
            known = ", ".join(["ro", "rw", *_OPTIONS])
            raise UsageError(f"-o: {word!r} is no option of soci mount; it knows {known}")
    return found
