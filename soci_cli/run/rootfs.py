"""The root file system of a container: an overlay over the image, and what is looked up in it."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from soci_cli.errors import MountError, SociError
from soci_cli.kernel import calls
from soci_cli.kernel.in_root import open_in_root, read_in_root
from soci_cli.kernel.overlay import Overlay
from soci_cli.run.users import User, resolve_user

_LOWER = "l"
_FILE_LIMIT = 4 << 20


class NoProgramError(SociError):
    """The program of a container is not in its image."""

    exit_code = 127


class NotExecutableError(SociError):
    """The program of a container cannot be started."""

    exit_code = 126


def mount_rootfs(image: Path, scratch: Path, target: Path) -> None:
    """Mounts an overlay that can be written over a mounted image; what is written is in `scratch`.

    MountError.
    """
    lower = scratch / _LOWER
    lower.unlink(missing_ok=True)
    lower.symlink_to(image)
    overlay = Overlay(scratch, [_LOWER], writable=True)
    overlay.prepare_upper()
    overlay.mount("soci-container", target, 0)


def unmount_rootfs(target: Path) -> None:
    """Unmounts it, whoever uses it. MountError."""
    try:
        calls.umount2(target, calls.MNT_DETACH | calls.UMOUNT_NOFOLLOW)
    except OSError as error:
        if target.is_mount():
            raise MountError(f"{target} cannot be unmounted: {error.strerror}") from error


def user_of(rootfs: Path, text: str) -> User:
    """See `resolve_user`; the files are those of the image, whatever links are in it."""
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        files = []
        for path in ("etc/passwd", "etc/group"):
            try:
                files.append(read_in_root(root, path, _FILE_LIMIT))
            except OSError as error:
                raise MountError(
                    f"/{path} of the image cannot be read: {error.strerror}"
                ) from error
        return resolve_user(text, *files)
    finally:
        os.close(root)


def check_program(
    rootfs: Path, program: str, environment: Mapping[str, str], cwd: str, covered: Sequence[str]
) -> None:
    """Why a program could not be started: raises NoProgramError or NotExecutableError, where it is that.

    What is in the folders `covered`, which something is mounted at, is not known here.
    """
    if "/" in program:
        paths = [os.path.join(cwd, program)]  # noqa: PTH118 - a path in the image
    else:
        paths = [f"{folder or cwd}/{program}" for folder in environment["PATH"].split(":")]
    if any(path == one or path.startswith(f"{one}/") for path in paths for one in covered):
        return
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        modes = [mode for path in paths if (mode := _mode(root, path)) is not None]
    finally:
        os.close(root)
    if not modes:
        where = "" if "/" in program else f", in none of {environment['PATH']}"
        raise NoProgramError(f"{program}: the image has no such file{where}")
    if not any(stat.S_ISREG(mode) and mode & 0o111 for mode in modes):
        what = "it is a folder" if stat.S_ISDIR(modes[0]) else "its file is not executable"
        raise NotExecutableError(f"{program} cannot be run: {what}")


def _mode(root: int, path: str) -> int | None:
    with suppress(OSError):
        fd = open_in_root(root, path, os.O_PATH)
        try:
            return os.fstat(fd).st_mode
        finally:
            os.close(fd)
    return None
