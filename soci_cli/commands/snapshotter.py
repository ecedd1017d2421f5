"""`soci snapshotter`, and the program `soci-snapshotter-grpc`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from soci_cli.errors import ConfigError, SociError, UsageError
from soci_cli.snapshotter.config import DEFAULT_FILE, Config, dump_config, load_config
from soci_cli.snapshotter.logs import LEVELS, JsonLog, level_of

if TYPE_CHECKING:
    from soci_cli.snapshotter.daemon import DaemonOptions

_NAME = "soci-snapshotter-grpc"
_ADDRESS = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock"
_ROOT = "/var/lib/soci-snapshotter-grpc/"
_COMPATIBLE = "v0.16.1"


def _version() -> dict[str, str]:
    from soci_cli import __version__

    return {"version": _COMPATIBLE, "revision": f"soci-cli-{__version__}"}


def _print_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        facts = _version()
        click.echo(f"{_NAME} version {facts['version']} {facts['revision']}")
        context.exit()


def _variable(name: str) -> str:
    return f"SOCI_SNAPSHOTTER_{name}"


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--address",
    envvar=_variable("ADDRESS"),
    default=_ADDRESS,
    show_default=True,
    help="Where to listen: a path, unix://PATH, or fd:// for the socket that systemd passes.",
)
@click.option(
    "--config",
    "file",
    envvar=_variable("CONFIG"),
    type=click.Path(path_type=Path),
    default=DEFAULT_FILE,
    show_default=True,
    help="The configuration.",
)
@click.option(
    "--log-level",
    envvar=_variable("LOG_LEVEL"),
    default="info",
    show_default=True,
    help=f"What is logged: {', '.join(LEVELS)}.",
)
@click.option(
    "--root",
    envvar=_variable("ROOT"),
    type=click.Path(path_type=Path),
    default=Path(_ROOT),
    show_default=_ROOT,
    help="The folder for snapshots, layers and their cache.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version.",
)
@click.pass_context
def command(context: click.Context, address: str, file: Path, log_level: str, root: Path) -> None:
    """Serve containerd's snapshots as a proxy plugin: layers with a zTOC are mounted and not fetched.

    It stands in for soci-snapshotter-grpc, with its flags, its configuration and its socket. It ends with
    SIGTERM and SIGINT, and leaves what is mounted to the processes that serve it.

    \b
    soci snapshotter --root /var/lib/soci
    soci snapshotter --config my.toml config dump
    """
    context.obj = file
    if context.invoked_subcommand is not None:
        return
    try:
        log = JsonLog(level_of(log_level))
    except ValueError:
        raise UsageError(f"--log-level {log_level} is none of {', '.join(LEVELS)}") from None
    try:
        from soci_cli.snapshotter.daemon import serve

        serve(_options(address, file, root, log), log, _version())
    except ImportError as error:
        reason = f"packages are not installed ({error.name}): pip install 'soci-cli[containerd]'"
        log("fatal", "cannot start", error=reason)
        context.exit(1)
    except SociError as error:
        log("fatal", "cannot start", error=str(error))
        context.exit(1)


def _options(address: str, file: Path, root: Path, log: JsonLog) -> DaemonOptions:
    from soci_cli.settings import parse_size
    from soci_cli.snapshotter.daemon import DaemonOptions
    from soci_cli.snapshotter.sockets import path_of

    config, warnings = load_config(file)
    for line in warnings:
        log("warning", line)
    path_of(address)
    size = config.soci.cache_size
    limit = parse_size(size, ConfigError) if size else None
    return DaemonOptions(address, root.absolute(), config, dict(os.environ), limit)


@command.group("config")
def config_group() -> None:
    """Show the configuration."""


@config_group.command("default")
def config_default() -> None:
    """Print all keys with their defaults."""
    click.echo(dump_config(Config()), nl=False)


@config_group.command("dump")
@click.pass_context
def config_dump(context: click.Context) -> None:
    """Print all keys with the values that count."""
    config, warnings = load_config(context.find_object(Path) or DEFAULT_FILE)
    for line in warnings:
        click.echo(f"{_NAME}: {line}", err=True)
    click.echo(dump_config(config), nl=False)


def main() -> None:
    """Runs `soci-snapshotter-grpc` and exits."""
    try:
        status = command.main(prog_name=_NAME, standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"{_NAME}: {error.format_message()}", err=True)
        status = 1
    except SociError as error:
        click.echo(f"{_NAME}: {error}", err=True)
        status = 1
    sys.stdout.flush()
    # No thread that hangs in the network holds this process.
    os._exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
