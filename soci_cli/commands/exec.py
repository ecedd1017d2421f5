"""`soci exec`."""

from __future__ import annotations

import os
import sys

import click

from soci_cli.commands.app import App
from soci_cli.commands.containers import own_containers
from soci_cli.commands.flags import flags_without_version, pass_app
from soci_cli.commands.run_flags import ENVIRONMENT_OPTIONS, environment_of_flags, with_options
from soci_cli.errors import UsageError
from soci_cli.run.executing import ExecRequest, execute


@click.command(context_settings={"allow_interspersed_args": False})
@with_options(ENVIRONMENT_OPTIONS)
@flags_without_version
@click.argument("container")
@click.argument(
    "words", metavar="COMMAND [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED
)
@pass_app
def command(
    app: App,
    /,
    container: str,
    words: tuple[str, ...],
    interactive: bool,
    terminal: bool,
    env: tuple[str, ...],
    env_files: tuple[os.PathLike[str], ...],
    workdir: str | None,
    user: str | None,
) -> int:
    """Run COMMAND in a container that runs.

    The exit status is that of COMMAND; 126 where it cannot be run, 127 where it is not there.
    """
    stdin = sys.stdin.fileno() if interactive and sys.stdin is not None else None
    if terminal and stdin is not None and not os.isatty(stdin):
        raise UsageError("-t: stdin is no terminal; leave out -t, or -i")
    given = {"env": env, "env_files": env_files}
    request = ExecRequest(
        words, tuple(environment_of_flags(given, os.environ)), workdir, user, terminal
    )
    return execute(own_containers().find(container), request, (stdin, 1, 2))
