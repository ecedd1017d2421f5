"""The command tree."""

from __future__ import annotations

import importlib
import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, containerd_flags
from soci_cli.commands.go_flags import with_two_dashes
from soci_cli.commands.output import escape_what_cannot_be_shown
from soci_cli.commands.status import ReaderIsGone, status_of

if TYPE_CHECKING:
    from soci_cli.lazy.mounts.client import HostFinder

# A command's module is imported when the command is named: starting stays quick, and what only one
# system has is imported only there.
_COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "": {
        "cat": ("cat", "Print a file of an image."),
        "completion": ("completion", "Print the completion script of a shell."),
        "convert": ("convert", "Make an image of containerd lazily loadable."),
        "cp": ("cp", "Copy files out of an image."),
        "create": ("create", "Make SOCI indexes for an image of containerd."),
        "exec": ("exec", "Run a program in a container."),
        "images": ("image_ls", "List the images of the local store, or of containerd."),
        "kill": ("kill", "Send a signal to containers."),
        "logs": ("logs", "Print what a container has written."),
        "ls": ("ls", "List the files of an image."),
        "login": ("login", "Log in to a registry."),
        "mount": ("mount", "Mount an image whose layers stay where they are."),
        "mounts": ("mounts", "List the images that are mounted."),
        "pull": ("pull", "Pull an image, without the layers that can stay in the registry."),
        "push": ("push", "Push an image with a SOCI index."),
        "logout": ("logout", "Log out of a registry."),
        "ps": ("ps", "List containers."),
        "rebuild-db": ("rebuild_db", "Find SOCI artifacts again and list them."),
        "run": ("run", "Run a container of an image whose layers stay where they are."),
        "rm": ("rm", "Remove containers."),
        "rmi": ("image_rm", "Remove images from the local store, or from containerd."),
        "snapshotter": ("snapshotter", "Serve containerd's snapshots, with lazy layers."),
        "stop": ("stop", "Ask containers to end."),
        "stats": ("stats", "Show what was fetched for mounted images, and why."),
        "umount": ("umount", "Unmount images."),
    },
    "cache": {
        "ls": ("cache_ls", "List what the cache holds."),
        "prune": ("cache_prune", "Remove what the cache holds."),
    },
    "image": {
        "convert": ("image_convert", "Make an image lazily loadable."),
        "copy": ("image_copy", "Copy an image with its SOCI indexes."),
        "inspect": ("image_inspect", "Show what an image holds and which layers are indexed."),
        "load": ("image_load", "Take images out of an archive into the local store."),
        "ls": ("image_ls", "List the images of the local store, or of containerd."),
        "rm": ("image_rm", "Remove images from the local store, or from containerd."),
        "save": ("image_save", "Write an image of the local store into an archive."),
        "tag": ("image_tag", "Give an image a second name."),
    },
    "index": {
        "info": ("index_info", "Show a SOCI index."),
        "ls": ("index_ls", "List SOCI indexes."),
        "repair": ("index_repair", "Bring back what a clean-up took from a converted image."),
        "rm": ("index_rm", "Remove SOCI indexes."),
    },
    "prefetch": {
        "info": ("prefetch_info", "Show a prefetch artifact."),
        "ls": ("prefetch_ls", "List prefetch artifacts."),
    },
    "registry": {
        "serve": ("registry_serve", "Serve a small registry over an OCI layout."),
    },
    "ztoc": {
        "build": ("ztoc_build", "Build the zTOC of a layer."),
        "get-file": ("ztoc_get_file", "Read one file out of a layer through its zTOC."),
        "info": ("ztoc_info", "Show what a zTOC says."),
        "ls": ("ztoc_ls", "List zTOCs."),
    },
}
# The reference's other names of commands.
_TERMINATED = 143
_FAREWELL = 8.0  # seconds from SIGTERM to the end
_ALIASES = {"list": "ls", "rebuild_db": "rebuild-db", "remove": "rm"}
_GROUPS = {
    "cache": "List and remove what was fetched and is kept.",
    "image": "Convert, inspect and manage images.",
    "index": "List, show and remove SOCI indexes.",
    "prefetch": "List and show prefetch artifacts.",
    "registry": "Run a registry for trials.",
    "ztoc": "Build and read zTOCs, the tables of contents of layers.",
}


class _NoSuchCommand(click.UsageError):
    """A command that does not exist; the exit status is the reference's."""

    exit_code = 3


class _Lazy(click.Group):
    """A group whose commands are imported when they are used. Alone it prints its help."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise _NoSuchCommand(error.message, ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            if ctx.invoked_subcommand is None:
                click.echo(ctx.get_help(), color=ctx.color)
            return result
        except BrokenPipeError as error:
            raise ReaderIsGone from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        names = list(_COMMANDS.get(self._key(), {}))
        return sorted(names + (list(_GROUPS) if self._key() == "" else []))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in ("help", "h"):
            words = click.Argument(["words"], nargs=-1)
            return click.Command(
                cmd_name, params=[words], callback=lambda words: _help(ctx, words), hidden=True
            )
        if self._key() == "" and cmd_name in _GROUPS:
            return _Lazy(
                name=cmd_name,
                help=_GROUPS[cmd_name],
                params=list(_flags()),
                invoke_without_command=True,
            )
        here = _COMMANDS.get(self._key(), {})
        entry = here.get(cmd_name) or here.get(_ALIASES.get(cmd_name, ""))
        if entry is None:
            return None
        command: click.Command = importlib.import_module(f"soci_cli.commands.{entry[0]}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # From the table, so that --help imports nothing.
        here = _COMMANDS.get(self._key(), {})
        rows = [
            (name, here[name][1] if name in here else _GROUPS[name])
            for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _key(self) -> str:
        return self.name if self.name in _COMMANDS else ""


def _help(ctx: click.Context, words: Sequence[str]) -> None:
    """Prints the help of a command, by its words below a group. UsageError when there is none."""
    for word in words:
        group = ctx.command
        found = group.resolve_command(ctx, [word]) if isinstance(group, _Lazy) else None
        if found is None or found[1] is None:
            raise click.UsageError(f"No such command {' '.join(words)!r}.", ctx)
        ctx = click.Context(found[1], parent=ctx, info_name=word)
    click.echo(ctx.get_help(), color=ctx.color)


def _flags() -> Sequence[click.Parameter]:
    @common_flags
    @click.command()
    def holder() -> None:
        pass

    return [param for param in holder.params if isinstance(param, click.Option)]


def _containerd_flags() -> Sequence[click.Parameter]:
    @containerd_flags(hidden=False)
    @click.command()
    def holder() -> None:
        pass

    return list(holder.params)


cli = _Lazy(
    name="",
    invoke_without_command=True,
    help="Make container images start before they are downloaded.\n\n"
    "A place is docker://IMAGE, containerd:IMAGE, oci:DIR[:TAG], oci-archive:FILE[:TAG], or the name of an "
    "image: in the local store or, for the commands that are about containerd and with --address or "
    "--namespace, in containerd.",
    params=[*_containerd_flags(), *_flags()],
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run(arguments: Sequence[str], ahead: HostFinder | None = None) -> int:
    """Runs one command; returns the exit status. `ahead` is for a mount; see `App`.

    0 for success, 1 for what went wrong, 2 for a command line that cannot be meant, 3 for a command that
    does not exist, as with the reference, 130 for Ctrl-C.
    """
    escape_what_cannot_be_shown()
    app = App(ahead=ahead)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)

    def main() -> Any:
        given = _flags_as_ours(arguments)
        return cli.main(given, prog_name="soci", standalone_mode=False, obj=app)

    try:
        return status_of(app, main)
    finally:
        app.close()
        if signal.getsignal(signal.SIGALRM) is _end:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _flags_as_ours(arguments: Sequence[str]) -> list[str]:
    """The arguments with two dashes before long flags, but not those of a container's program."""
    first = next((one for one in arguments if one in _COMMANDS[""] or one in _GROUPS), "")
    count = arguments.index(first) if first in ("run", "exec") else len(arguments)
    return [*with_two_dashes(arguments[:count]), *arguments[count:]]


def _terminate(_: int, __: FrameType | None) -> None:
    # What is raised here may come just after a lock was taken, which nobody gives back then.
    signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, _FAREWELL)
    raise SystemExit(_TERMINATED)


def _end(_: int, __: FrameType | None) -> None:
    os._exit(_TERMINATED)
