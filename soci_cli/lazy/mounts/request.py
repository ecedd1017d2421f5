"""What is to be mounted where."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from soci_cli.errors import MountError

_SYSTEM = {"/dev": "the devices", "/etc": "the settings of this machine", "/proc": "/proc"}


def check_clear(target: Path, needed: Iterable[tuple[str, Path]]) -> None:
    """Raises MountError where a mount would cover what serving it needs, and so wait for itself.

    `needed` are files and folders and what they are, besides those that every server needs.
    """
    python = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[3]))
    system = [(what, Path(path)) for path, what in _SYSTEM.items()]
    system += [("Python, which serves the mount", Path(path)) for path in python]
    for what, path in [*needed, *system]:
        if path.resolve().is_relative_to(target):
            raise MountError(
                f"{target} cannot be mounted on: {what} is in it, {path}; choose another folder"
            )
