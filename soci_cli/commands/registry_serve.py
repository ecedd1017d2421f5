"""`soci registry serve`."""

from __future__ import annotations

import ipaddress
import re
import sys
import time
from pathlib import Path

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.commands.output import human_size
from soci_cli.errors import UsageError

_ADDRESS = re.compile(r"(?P<host>[^:\[\]]*|\[[0-9a-fA-F:.]+\]):(?P<port>[0-9]{1,5})")


@click.command()
@click.option(
    "--addr",
    metavar="HOST:PORT",
    default="127.0.0.1:5000",
    show_default=True,
    help="Where to listen; port 0 is any free one, no host all addresses.",
)
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@common_flags
@pass_app
def command(app: App, addr: str, folder: Path | None) -> None:
    """Serve a small registry over the OCI layout DIR, until Ctrl-C.

    DIR is created when it is missing; without DIR the images are gone at the end. There is no TLS
    and no authentication: this is for trials and demos.
    """
    from soci_cli.trial_registry import RegistryServer

    host, port = _parse_address(addr)
    if not _is_loopback(host):
        app.output.warn(
            f"everybody who reaches {addr} can read and change the images: "
            "the registry has no authentication"
        )
    try:
        with RegistryServer(folder, host, port, observer=_Lines(app)) as server:
            app.output.result(f"serving {server.root} at http://{server.address}")
            sys.stdout.flush()
            while True:
                time.sleep(1)  # signal.pause would miss one that comes just before it
    except KeyboardInterrupt:
        pass  # Ctrl-C is how it ends


class _Lines:
    """Prints a line a request, where somebody looks."""

    def __init__(self, app: App) -> None:
        self._output = app.output
        self._wanted = app.debug or sys.stderr.isatty()

    def __call__(self, method: str, path: str, status: int, sent: int, received: int) -> None:
        if self._wanted:
            sizes = f"{human_size(sent)} sent, {human_size(received)} received"
            self._output.note(f"{status} {method} {path}  {sizes}")


def _parse_address(text: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        raise UsageError(f"--addr is HOST:PORT, such as 127.0.0.1:5000 or :5000, not {text!r}")
    return match["host"].strip("[]"), int(match["port"])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
