"""`soci umount`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import all_owners_flag, common_flags, pass_app
from soci_cli.commands.status import report
from soci_cli.errors import MountError, NotFoundError, SociError, UsageError
from soci_cli.kernel.points import mount_at, resolve
from soci_cli.lazy.mounts.records import PERSON, Mounts, state_root
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
@all_owners_flag
@click.argument("folders", metavar="[DIR]...", nargs=-1, type=_FOLDER)
@common_flags
@pass_app
def command(
    app: App, everything: bool, force: bool, all_owners: bool, folders: tuple[Path, ...]
) -> int:
    """Unmount the images at DIR.

    What the server of a mount left behind when it crashed is removed too. What was written to a mount
    (soci mount --rw) is lost.

    \b
    soci umount /mnt/app
    """
    if everything == bool(folders):
        raise UsageError("give the folders to unmount, or --all and no folder")
    owner = None if all_owners else PERSON
    mounts = Mounts(state_root(os.environ))
    targets = [resolve(folder) for folder in folders]
    if everything:
        from soci_cli.lazy.mounts.unmounting import clear

        for damaged in mounts.damaged():
            clear(damaged)
        # The newest first: one may be mounted inside another.
        targets = [Path(record.target) for _, record in reversed(mounts.of(owner))]
    status, left = _unmount_all(app, mounts, targets, owner, force)
    if everything and force and left:
        # A server that hangs and has no holder is killed only when it has no other mount left, and what is
        # unmounted already is gone with it.
        left_now = [target for target in left if mounts.find(target) is not None]
        status, left = _unmount_all(app, mounts, left_now, owner, force)
    for error in left.values():
        report(app, str(error))
    return status


def _unmount_all(
    app: App, mounts: Mounts, targets: Iterable[Path], owner: str | None, force: bool
) -> tuple[int, dict[Path, SociError]]:
    """Unmounts images; the exit status, and what could not be unmounted, and why."""
    status = 0
    left = {}
    for target in dict.fromkeys(targets):
        try:
            _unmount(app, mounts, target, owner, force)
        except SociError as error:
            left[target] = error
            status = error.exit_code
    return status, left


def _unmount(app: App, mounts: Mounts, target: Path, owner: str | None, force: bool) -> None:
    from soci_cli.lazy.fuse import is_image
    from soci_cli.lazy.mounts.unmounting import end_mount, unmount_unknown

    found = mounts.find(target)
    if found is not None:
        if owner not in (None, found[1].owner):
            raise MountError(
                f"{target} was mounted by the {found[1].owner}; --all-owners unmounts it all the same"
            )
        if not end_mount(mounts, found, force=force):
            app.output.note(
                f"{printable(str(target))} was not mounted; the state of its mount is removed"
            )
        return
    point = mount_at(str(target))
    if point is None or not is_image(point):
        raise NotFoundError(f"{target} has no image mounted by soci; soci mounts lists yours")
    unmount_unknown(target, force=force)
