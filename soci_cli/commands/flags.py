"""The flags that several commands share, as decorators for click."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from soci_cli.commands.app import App

if TYPE_CHECKING:
    # Generic for type checkers only; older releases of click cannot be subscripted.
    _ParamType = click.ParamType[int]
    _TextType = click.ParamType[str]
else:
    _ParamType = _TextType = click.ParamType

_F = TypeVar("_F", bound=Callable[..., Any])

# The release of soci-snapshotter whose `soci` this one can stand in for. nerdctl takes the first number
# with two dots that --version prints for the version, and wants 0.10.0 or more.
_COMPATIBLE = "0.16.1"

pass_app = click.make_pass_decorator(App, ensure=True)


def common_flags(command: _F) -> _F:
    """The flags that may stand before or after a command's name."""

    def print_version(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value and not context.resilient_parsing:
            from soci_cli import __version__
            from soci_cli.ztoc.inflate import backend

            click.echo(
                f"soci version {_COMPATIBLE} (the soci-snapshotter release that this is compatible with), "
                f"soci-cli {__version__}, {backend().name}"
            )
            context.exit()

    version = click.option(
        "-v",
        "--version",
        is_flag=True,
        is_eager=True,
        callback=print_version,
        expose_value=False,
        help="Print the version.",
    )
    return version(flags_without_version(command))


def flags_without_version(command: _F) -> _F:
    """`common_flags`, for commands whose -v is something else."""

    def set_quiet(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            app = context.ensure_object(App)
            app.quiet = app.output.quiet = True

    def set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            app = context.ensure_object(App)
            app.debug = True
            app.output.show_log()

    def set_root(context: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            context.ensure_object(App).root_flag = value

    for option in (
        click.option(
            "--root",
            metavar="DIR",
            callback=set_root,
            expose_value=False,
            help="Folder of the local store (SOCI_ROOT).",
        ),
        click.option(
            "-q",
            "--quiet",
            is_flag=True,
            callback=set_quiet,
            expose_value=False,
            help="Print only the result: no progress, no remarks.",
        ),
        click.option(
            "--debug",
            is_flag=True,
            callback=set_debug,
            expose_value=False,
            help="Show each request and each fetched span; of a defect, where it is.",
        ),
    ):
        command = option(command)
    return command


class _Word(_TextType):
    """A text that -n=TEXT and -n TEXT give alike."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value).removeprefix("=")


def containerd_flags(*, hidden: bool) -> Callable[[_F], _F]:
    """The flags about containerd, which stand before the command's name.

    The reference takes them after it too; there they are `hidden`.
    """

    def keep(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
        def keep_value(context: click.Context, _: click.Parameter, value: Any) -> None:
            if value is not None:
                setattr(context.ensure_object(App), name, value)

        return keep_value

    def keep_timeout(context: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            from soci_cli.commands.durations import parse_duration

            context.ensure_object(App).timeout = parse_duration(value) or None

    def add(command: _F) -> _F:
        for option in (
            click.option(
                "--content-store",
                type=click.Choice(["soci", "containerd"]),
                callback=keep("content_store"),
                expose_value=False,
                hidden=hidden,
                help="Where new SOCI indexes go: the local store, or containerd (default for its images).",
            ),
            click.option(
                "--timeout",
                metavar="DURATION",
                callback=keep_timeout,
                expose_value=False,
                hidden=hidden,
                help="How long a call to containerd may take, such as 30s; 0 (default) is for ever.",
            ),
            click.option(
                "--namespace",
                "-n",
                type=_Word(),
                metavar="NAME",
                # A variable must not come after a flag that stands before the command.
                envvar=None if hidden else "CONTAINERD_NAMESPACE",
                show_envvar=True,
                callback=keep("namespace_flag"),
                expose_value=False,
                hidden=hidden,
                help="Namespace of containerd. Names of images then mean containerd's.",
            ),
            click.option(
                "--address",
                "-a",
                type=_Word(),
                metavar="SOCKET",
                envvar=None if hidden else "CONTAINERD_ADDRESS",
                show_envvar=True,
                callback=keep("address"),
                expose_value=False,
                hidden=hidden,
                help="Socket of containerd. Names of images then mean containerd's.",
            ),
        ):
            command = option(command)
        return command

    return add


def platform_flags(verb: str) -> Callable[[_F], _F]:
    """--platform and --all-platforms, for a command that does `verb` with platforms."""

    def add(command: _F) -> _F:
        for option in (
            click.option("--all-platforms", is_flag=True, help=f"{verb} every platform."),
            click.option(
                "--platform",
                "-p",
                "platform_names",
                multiple=True,
                metavar="OS/ARCH[/VARIANT]",
                help=f"{verb} this platform; may be repeated. Default: this machine's.",
            ),
        ):
            command = option(command)
        return command

    return add


def snapshotter_flag(command: _F) -> _F:
    """--snapshotter, by which nerdctl's users choose lazy loading."""
    return click.option(
        "--snapshotter",
        metavar="NAME",
        default="soci",
        envvar="CONTAINERD_SNAPSHOTTER",
        show_envvar=True,
        help="soci (default) for lazy loading; any other, such as overlayfs, for none.",
    )(command)


class SizeType(_ParamType):
    """A size in bytes: 4194304 or 4MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from soci_cli.settings import parse_size

        return value if isinstance(value, int) else parse_size(str(value))


SIZE = SizeType()


def format_flag(command: _F) -> _F:
    """--format, for output that scripts read."""
    return click.option(
        "--format",
        "format_",
        type=click.Choice(["text", "json"]),
        default="text",
        help="Output for people or for scripts.",
    )(command)


def stdout_is_terminal() -> bool:
    """Whether a person reads stdout."""
    return sys.stdout.isatty()


def all_owners_flag(command: _F) -> _F:
    """--all-owners, for the commands that are about mounts."""
    return click.option(
        "--all-owners",
        is_flag=True,
        help="Also what programs mounted for themselves, such as a snapshotter.",
    )(command)
