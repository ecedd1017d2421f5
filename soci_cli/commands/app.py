"""What every command shares: settings, the store, output, and the flags that stand everywhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from soci_cli.commands.durations import parse_duration
from soci_cli.commands.output import Output
from soci_cli.oci import Platform, Reference, platforms
from soci_cli.settings import Settings, load_settings, parse_size, store_root
from soci_cli.targets import (
    Place,
    Source,
    Store,
    Target,
    local_store,
    open_source,
    open_target,
    parse_place,
)
from soci_cli.targets.places import connect
from soci_cli.targets.registry.registries import Registries

if TYPE_CHECKING:
    from soci_cli.commands.registry_flags import RegistryFlags
    from soci_cli.index.artifacts import Artifacts
    from soci_cli.targets.containerd.client import Containerd

    # Generic for type checkers only; older releases of click cannot be subscripted.
    _ParamType = click.ParamType[int]
    _TextType = click.ParamType[str]
else:
    _ParamType = _TextType = click.ParamType

_F = TypeVar("_F", bound=Callable[..., Any])

# The release of soci-snapshotter whose `soci` this one can stand in for. nerdctl takes the first number
# with two dots that --version prints for the version, and wants 0.10.0 or more.
_COMPATIBLE = "0.15.0"
_DEFAULT_NAMESPACE = "default"


@dataclass
class App:
    """The state of one run of the command line."""

    quiet: bool = False
    debug: bool = False
    root_flag: str | None = None
    address: str | None = None
    namespace_flag: str | None = None
    timeout: float | None = None
    content_store: str | None = None
    output: Output = field(default_factory=Output)
    _settings: Settings | None = None
    _containerd: Containerd | None = None

    def close(self) -> None:
        """End the connection to containerd, if there is one."""
        client, self._containerd = self._containerd, None
        if client is not None:
            client.close()

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
        return _beside_the_reference(store_root(self.settings, os.environ, self.root_flag))

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
        references = [
            image if isinstance(image, Reference) else image.reference
            for image in images
            if isinstance(image, Reference) or image.kind == "docker"
        ]
        domains = [one.domain for one in references if one is not None]
        options = flags.options(domains, self.settings.redirect_hosts)
        with Registries(options, os.environ) as registries:
            yield registries

    @property
    def names_containerd(self) -> bool:
        """Whether a flag or a variable says which containerd is meant."""
        return self.address is not None or self.namespace_flag is not None

    @property
    def namespace(self) -> str:
        """The namespace of containerd."""
        return self.namespace_flag or _DEFAULT_NAMESPACE

    def connect(self) -> Containerd:
        """The connection to containerd, opened once. UsageError when packages for it are missing."""
        if self._containerd is None:
            self._containerd = connect(self.address, self.namespace, self.timeout)
        return self._containerd

    def place(self, text: str, names: Literal["store", "containerd"] | None = None) -> Place:
        """The place that a user wrote. A bare name is in containerd where flags name one, else `names`."""
        return parse_place(text, "containerd" if self.names_containerd else names or "store")

    def open_source(self, place: Place, registries: Registries) -> Source:
        """A place for reading."""
        client = self.connect() if place.kind == "containerd" else None
        return open_source(place, self.root, registries, client)

    def open_containerd(self, name: str) -> Source:
        """The image `name` of containerd, for reading."""
        place = parse_place(name, "containerd")
        return open_source(place, self.root, None, self.connect())

    def open_target(
        self, place: Place, names: dict[str, str] | None, registries: Registries
    ) -> Target:
        """A place for writing; `names` as for `targets.open_target`."""
        client = self.connect() if place.kind == "containerd" else None
        return open_target(place, self.root, names, registries, client)

    def artifacts(self, registries: Registries | None = None) -> Artifacts:
        """The SOCI artifacts that are known; close it."""
        from soci_cli.index.artifacts import Artifacts

        return Artifacts(local_store(self.root, registries), self.namespace, self.connect)

    def downloads(self, flags: RegistryFlags) -> int:
        """How many blobs to download at a time."""
        return flags.max_downloads or self.settings.max_concurrent_downloads

    def uploads(self, flags: RegistryFlags) -> int:
        """How many blobs to upload at a time."""
        return flags.max_uploads or self.settings.max_concurrent_uploads

    def platforms(self, names: Sequence[str], all_platforms: bool) -> tuple[Platform, ...]:
        """The platforms that flags or settings name; none when all are wanted."""
        # The reference splits at commas.
        given = [part for name in names for part in name.split(",")]
        chosen = given or (() if all_platforms else self.settings.platforms)
        return tuple(platforms.parse(name) for name in chosen)


def _beside_the_reference(root: Path) -> Path:
    """The store's folder; one of its own where the reference keeps its files, as scripts name that."""
    if (root / "artifacts.db").is_file() and not (root / "oci-layout").exists():
        return root / "soci-cli"
    return root


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
            "-v",
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
