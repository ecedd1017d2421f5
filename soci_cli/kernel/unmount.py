"""Unmounting one mount and no other: by umount2(2), or by fusermount3 for who is not root."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from soci_cli.errors import BusyError, CoveredError, MountError, NotMountedError
from soci_cli.kernel import calls
from soci_cli.kernel.points import (
    MountIdentity,
    MountPoint,
    identify,
    mount_at,
    mount_points,
    stack_at,
)
from soci_cli.text import brief, printable

FUSERMOUNT = "fusermount3"


def unmount(target: Path, identity: MountIdentity, *, force: bool = False) -> None:
    """Unmounts what was mounted at a folder; with `force` even while it is in use.

    A path alone does not say which mount is meant, so what lies at the folder is compared with `identity`
    just before. Raises CoveredError where another mount lies on it, NotMountedError where it is not there,
    BusyError, and MountError for what else the kernel refuses.
    """
    check_uppermost(target, identity)
    if os.geteuid() == 0:
        try:
            calls.umount2(target, calls.UMOUNT_NOFOLLOW | (calls.MNT_DETACH if force else 0))
        except OSError as error:
            raise _refused(target, error) from error
        return
    command = [fusermount_program(), "-u", *(["-z"] if force else []), "--", str(target)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        text = one_line(done.stderr)
        if "busy" in text.lower():
            raise _busy(target)
        raise MountError(f"{target} cannot be unmounted: {text}")


def detach_all(folder: Path) -> None:
    """Ends all that is mounted at a folder; who still uses it keeps it. Nobody's answer is waited for."""
    with suppress(OSError):
        while True:
            calls.umount2(folder, calls.MNT_DETACH | calls.UMOUNT_NOFOLLOW)


def unmount_below(folder: Path, is_own: Callable[[MountPoint], bool]) -> None:
    """Unmounts what is mounted below a folder, as far as `is_own` says so. Raises as `unmount` does."""
    below = {Path(point.path) for point in mount_points() if is_own(point)}
    for path in sorted(below, key=lambda path: -len(path.parts)):
        while path.is_relative_to(folder) and (point := mount_at(str(path))) and is_own(point):
            unmount(path, identify(path), force=True)


def check_uppermost(target: Path, identity: MountIdentity) -> None:
    """Raises CoveredError and NotMountedError as `unmount` does."""
    stack = stack_at(str(target))
    if stack and identity.is_uppermost(stack[-1]):
        return
    if not any(identity.fits(point) for point in stack[:-1]):
        raise NotMountedError(f"{target} is not mounted")
    other = stack[-1]
    what = f"{other.kind} {other.source}" if other.source != other.kind else other.kind
    raise CoveredError(
        f"{target} is covered by another mount, {printable(what)}; unmount that first: umount {target}"
    )


def fusermount_program() -> str:
    """The setuid program of libfuse. MountError where there is none."""
    program = shutil.which(FUSERMOUNT)
    if program is None:
        raise MountError(
            f"there is no {FUSERMOUNT}, by which ordinary users mount; install the package fuse3, "
            "or run as root"
        )
    return program


def one_line(text: bytes) -> str:
    """What a program said, as the end of a message."""
    return brief(" ".join(text.decode(errors="replace").split()))


def _refused(target: Path, error: OSError) -> MountError:
    if error.errno == errno.EBUSY:
        return _busy(target)
    if error.errno in (errno.EINVAL, errno.ENOENT):
        return NotMountedError(f"{target} is not mounted")
    return MountError(f"{target} cannot be unmounted: {error.strerror}")


def _busy(target: Path) -> BusyError:
    return BusyError(f"{target} is in use; close what uses it, or unmount it with --force")
