"""What the commands share that are about containers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from soci_cli.commands.app import App
from soci_cli.commands.status import report
from soci_cli.errors import SociError
from soci_cli.lazy.mounts.records import state_root
from soci_cli.run.containers import Container, Containers


def own_containers() -> Containers:
    """Those of this user; what killed monitors left is taken away."""
    containers = Containers(state_root(os.environ).absolute())
    containers.sweep()
    return containers


def for_each(
    app: App, containers: Containers, names: Sequence[str], work: Callable[[Container], None]
) -> int:
    """Does something with each container and prints its name; the exit status, 1 if any failed."""
    status = 0
    for name in names:
        try:
            work(containers.find(name))
            app.output.result(name)
        except SociError as error:
            report(app, str(error))
            status = 1
    return status
