"""What every command shares: settings, the store, output, and the flags that stand everywhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from soci_cli.commands.output import Output
from soci_cli.oci import Platform, Reference, platforms
from soci_cli.settings import Settings, load_settings, parse_size, store_root
from soci_cli.targets import Place, Store, local_store

if TYPE_CHECKING:
    from soci_cli.commands.registry_flags import RegistryFlags
    from soci_cli.targets.registry.place import Registries

    # Generic for type checkers only; older releases of click cannot be subscripted.
    _ParamType = click.ParamType[int]
else:
    _ParamType = click.ParamType

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass
class App:
    """The state of one run of the command line."""

    quiet: bool = False
    debug: bool = False
    root_flag: str | None = None
    output: Output = field(default_factory=Output)
    _settings: Settings | None = None

    @property
    def settings(self) -> Settings:
        """The settings of the files; read once, and what is odd in them is said once."""
        if self._settings is None:
            self._settings, warnings = load_settings(os.environ)
            for warning in warnings:
                self.output.warn(warning)
        return self._settings

    @property
    def root(self) -> Path:
        """The folder of the local store."""
        return store_root(self.settings, os.environ, self.root_flag)

    @property
    def store(self) -> Store:
        """The local store, for commands without flags about registries."""
        return local_store(self.root)

    def open_store(self, registries: Registries) -> Store:
        """The local store, whose layers that stayed in a registry are read by way of `registries`."""
        return local_store(self.root, registries)

    @contextmanager
    def registries(self, flags: RegistryFlags, *images: Reference | Place) -> Iterator[Registries]:
        """The registries of a command; --user is for the one that `images` are in."""
        # requests and oras take a while to import: only who talks to a registry pays.
        from soci_cli.targets.registry.place import Registries

        references = [
            image if isinstance(image, Reference) else image.reference
            for image in images
            if isinstance(image, Reference) or image.kind == "docker"
        ]
        options = flags.options([one.domain for one in references if one is not None])
        with closing(Registries(options, os.environ)) as registries:
            yield registries

    def downloads(self, flags: RegistryFlags) -> int:
        """How many blobs to download at a time."""
        return flags.max_downloads or self.settings.max_concurrent_downloads

    def uploads(self, flags: RegistryFlags) -> int:
        """How many blobs to upload at a time."""
        return flags.max_uploads or self.settings.max_concurrent_uploads

    def platforms(self, names: Sequence[str], all_platforms: bool) -> tuple[Platform, ...]:
        """The platforms that flags or settings name; none when all are wanted."""
        chosen = names or (() if all_platforms else self.settings.platforms)
        return tuple(platforms.parse(name) for name in chosen)


pass_app = click.make_pass_decorator(App, ensure=True)


def common_flags(command: _F) -> _F:
    """The flags that may stand before or after a command's name."""

    def print_version(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value and not context.resilient_parsing:
            from soci_cli import __version__
            from soci_cli.ztoc.inflate import backend

            click.echo(f"soci {__version__} ({backend().name})")
            context.exit()

    def set_quiet(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            app = context.ensure_object(App)
            app.quiet = app.output.quiet = True

    def set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            app = context.ensure_object(App)
            app.debug = app.output.debug = True

    def set_root(context: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            context.ensure_object(App).root_flag = value

    for option in (
        click.option(
            "--version",
            is_flag=True,
            is_eager=True,
            callback=print_version,
            expose_value=False,
            help="Print the version.",
        ),
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
            help="Show the traceback of an error.",
        ),
    ):
        command = option(command)
    return command


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
