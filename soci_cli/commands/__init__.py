"""The command line: one file a command, each with flags in, one call to the library, and text out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from soci_cli.lazy.mounts.client import HostFinder

__all__ = ["run"]

_ALONE = {"--foreground", "--debug", "--help", "-h"}


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns the exit status. See `cli.run`."""
    ahead = _find_host(arguments)
    from soci_cli.commands.cli import run as run_command

    return run_command(arguments, ahead)


def _find_host(arguments: Sequence[str]) -> HostFinder | None:
    """Whoever will serve a mount starts while this process imports what reads its command line."""
    # Of a container's program any of these may be a flag, too: its process is found later then.
    if arguments[:1] not in (["mount"], ["run"]) or _ALONE.intersection(arguments):
        return None
    from soci_cli.errors import ConfigError
    from soci_cli.lazy.mounts.client import HostFinder
    from soci_cli.lazy.mounts.records import CONTAINERS, PERSON, state_root
    from soci_cli.lazy.mounts.sharing import host_key

    owner = PERSON if arguments[0] == "mount" else CONTAINERS
    with suppress(ConfigError):  # said when the command runs
        return HostFinder(state_root(os.environ).absolute(), host_key(os.environ, owner))
    return None
