"""Joining folders: by the kernel's overlayfs, or by fuse-overlayfs for who is not root.

See "overlayfs.rst" of the kernel's documentation. All raise MountError.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from soci_cli.errors import MountError
from soci_cli.kernel import calls
from soci_cli.kernel.points import mount_at
from soci_cli.kernel.unmount import one_line

MAX_LOWERS = 500
"""Folders that overlayfs joins at most."""

_FUSE_OVERLAYFS = "fuse-overlayfs"
_UPPER = "upper"
_WORK = "work"
_PATIENCE = 10.0
_PAUSE = 0.02


class NoOverlayError(MountError):
    """Overlayfs cannot be used here at all."""


@dataclass(frozen=True)
class Overlay:
    """Folders to join: `lowers`, the uppermost first, are names in `scratch`.

    There, too, is what is written to one that is `writable`. With `user_xattrs` its marks are those that
    the root of a user namespace can set.
    """

    scratch: Path
    lowers: Sequence[str]
    writable: bool = False
    user_xattrs: bool = False

    def mount(self, source: str, target: Path, flags: int) -> None:
        """Mounts by overlayfs. NoOverlayError where the kernel has none for this user."""
        data = self._folders()
        if self.user_xattrs:
            data += ",userxattr"

        try:
            # Whose names are short: options must fit into 4 KiB.
            calls.in_directory(
                self.scratch, lambda: calls.mount("overlay", source, target, flags, data)
            )
        except OSError as error:
            raise self._refused(target, error) from error

    def start_program(self, target: Path) -> subprocess.Popen[bytes]:
        """Starts fuse-overlayfs and waits until it has mounted the target."""
        program = shutil.which(_FUSE_OVERLAYFS)
        if program is None:
            raise MountError(
                f"an ordinary user can mount for writing by {_FUSE_OVERLAYFS} only, which is not "
                "installed; install its package, or leave out --rw"
            )
        owner = f"squash_to_uid={os.getuid()},squash_to_gid={os.getgid()}"
        before = mount_at(str(target))
        errors = self.scratch / "errors"
        with errors.open("wb") as stderr:
            overlay = subprocess.Popen(
                [program, "-f", "-o", f"{self._folders()},{owner}", str(target)],
                cwd=self.scratch,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C is not for it
            )
        deadline = time.monotonic() + _PATIENCE
        while overlay.poll() is None and time.monotonic() < deadline:
            if mount_at(str(target)) != before:
                return overlay
            time.sleep(_PAUSE)
        overlay.kill()
        overlay.wait()
        problem = one_line(errors.read_bytes()) or "no answer"
        raise MountError(f"{target} cannot be mounted by {_FUSE_OVERLAYFS}: {problem}")

    def prepare_upper(self) -> None:
        """Makes the folders for what is written.

        The upper one gets the attributes of the first lower one, which are those that are shown.
        """
        upper = self.scratch / _UPPER
        try:
            for folder in (upper, self.scratch / _WORK):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise MountError(f"{self.scratch} cannot be written: {error.strerror}") from error
        found = (self.scratch / self.lowers[0]).stat()
        with suppress(PermissionError):
            os.chown(upper, found.st_uid, found.st_gid)
        upper.chmod(stat.S_IMODE(found.st_mode))
        with suppress(OSError):  # a time that this file system cannot hold
            os.utime(upper, ns=(found.st_atime_ns, found.st_mtime_ns))

    def _folders(self) -> str:
        upper = f",upperdir={_UPPER},workdir={_WORK}" if self.writable else ""
        return f"lowerdir={':'.join(self.lowers)}{upper}"

    def _refused(self, target: Path, error: OSError) -> MountError:
        where = f"{target} cannot be mounted"
        if error.errno == errno.ENODEV:
            return NoOverlayError(
                f"{where} for writing: this kernel has no overlayfs; load its module (modprobe overlay), "
                "or leave out --rw"
            )
        if error.errno == errno.EPERM and self.user_xattrs:
            return NoOverlayError(
                f"{where} for writing: this kernel has overlayfs for the real root only, not in a user "
                "namespace; that is allowed since Linux 5.11"
            )
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP) and self.writable:
            return MountError(
                f"{where} for writing: overlayfs cannot keep what is written in {self.scratch}, whose "
                "file system lacks something; set SOCI_STATE to a folder on a local disk"
            )
        return MountError(f"{where} by overlayfs: {error.strerror}")
