"""`soci mount`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.commands.image_reading import drawing, image_flags, image_request
from soci_cli.commands.registry_flags import RegistryFlags, transfer_flags
from soci_cli.errors import UsageError
from soci_cli.kernel.points import resolve
from soci_cli.lazy.mounts.client import HostFinder
from soci_cli.lazy.mounts.records import state_root
from soci_cli.lazy.mounts.request import MountRequest
from soci_cli.lazy.mounts.sharing import host_key
from soci_cli.settings import ENGINES

_OPTIONS = {"suid": True, "nosuid": False, "dev": True, "nodev": False, "allow_other": True}


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
    "--engine",
    type=click.Choice(ENGINES),
    help="What serves the files: erofs for the kernel's EROFS over lazy layers, which is quicker, for root "
    "only; fuse for FUSE; or auto (default) for the best that there is: see soci mounts --engines.",
)
@click.option(
    "--eager",
    is_flag=True,
    help="Fetch all layers first. Where EROFS serves the mount, no process stays for it.",
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
# The folder of a mount whose server crashed cannot be read.
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, readable=False))
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
    engine: str | None,
    eager: bool,
    foreground: bool,
    no_background_fetch: bool,
    image: str,
    folder: Path,
    registry: RegistryFlags,
) -> None:
    """Mount the files of IMAGE at DIR.

    Files come from the registry when they are read; layers without a zTOC are fetched first. The mount
    stays until soci umount DIR. Root mounts with EROFS or overlayfs, anybody else with fusermount3.

    \b
    soci mount docker://example.com/app:1.0 /mnt/app
    """
    given = _mount_options(options)
    state = state_root(os.environ).absolute()

    def request() -> MountRequest:
        settings = app.settings.background_fetch
        return MountRequest(
            image_request(app, app.place(image), platform_name, soci_index_digest, registry),
            resolve(folder),
            state,
            writable=given.get("rw", False) or writable,
            suid=given.get("suid", False),
            dev=given.get("dev", False),
            allow_other=given.get("allow_other", False),
            background=not (no_background_fetch or settings.disable),
            silence_period=settings.silence_period_msec / 1000,
            fetch_period=settings.fetch_period_msec / 1000,
            max_queue_size=settings.max_queue_size if settings.max_queue_size > 0 else sys.maxsize,
            prefetch=app.settings.prefetch.enable,
            record=None if record is None else record.absolute(),
            engine=engine or app.settings.soci.engine,
            eager=eager,
            debug=app.debug,
        )

    if foreground:
        _serve_here(app, request())
        return
    found = app.ahead or HostFinder(state, host_key(os.environ, debug=app.debug))
    with found as host, drawing(app) as observer:
        asked = request()
        host.mount(asked, observer, app.output.log_line)
    app.output.result(str(asked.target))


def _serve_here(app: App, request: MountRequest) -> None:
    """Serves in this process, with the log on stderr, until it is unmounted or told to end."""
    from soci_cli.lazy.mounts.host import Host

    with Host(request.state, write=lambda line: print(line, file=sys.stderr, flush=True)) as host:
        with drawing(app) as observer:
            host.begin(request, observer).ready.result()
        app.output.result(str(request.target))
        sys.stdout.flush()
        host.run()


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
