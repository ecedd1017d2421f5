"""`soci umount`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.commands.status import report
from soci_cli.errors import NotFoundError, SociError, UsageError
from soci_cli.kernel.points import mount_at, resolve
from soci_cli.lazy.mounts.state import Mounts, state_root
from soci_cli.text import printable

# The folder of a mount whose server crashed cannot be read.
_FOLDER = click.Path(path_type=Path, readable=False)


@click.command()
@click.option("--all", "everything", is_flag=True, help="Unmount everything that you mounted.")
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="Unmount what is in use too: who uses it gets errors.",
)
@click.argument("folders", metavar="[DIR]...", nargs=-1, type=_FOLDER)
@common_flags
@pass_app
def command(app: App, everything: bool, force: bool, folders: tuple[Path, ...]) -> int:
    """Unmount the images at DIR.

    What the server of a mount left behind when it crashed is removed too. What was written to a mount
    (soci mount --rw) is lost.

    \b
    soci umount /mnt/app
    """
    if everything == bool(folders):
        raise UsageError("give the folders to unmount, or --all and no folder")
    mounts = Mounts(state_root(os.environ))
    targets = [resolve(folder) for folder in folders]
    if everything:
        from soci_cli.lazy.mounts.unmounting import clear

        for damaged in mounts.damaged():
            clear(damaged)
        # The newest first: one may be mounted inside another.
        targets = [Path(record.target) for _, record in reversed(mounts.all())]
    status = 0
    for target in dict.fromkeys(targets):
        try:
            _unmount(app, mounts, target, force)
        except SociError as error:
            report(app, str(error))
            status = error.exit_code
    return status


def _unmount(app: App, mounts: Mounts, target: Path, force: bool) -> None:
    from soci_cli.lazy.fuse import is_image
    from soci_cli.lazy.mounts.unmounting import end_mount, unmount_unknown

    found = mounts.find(target)
    if found is not None:
        if not end_mount(*found, force=force):
            app.output.note(
                f"{printable(str(target))} was not mounted; the state of its mount is removed"
            )
        return
    point = mount_at(str(target))
    if point is None or not is_image(point):
        raise NotFoundError(f"{target} has no image mounted by soci; soci mounts lists yours")
    unmount_unknown(target, force=force)
