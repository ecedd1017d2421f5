"""A FUSE file system that is mounted and waits to be served: the descriptor of its connection.

Root mounts with mount(2), others by the setuid program of libfuse. All raise MountError.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from soci_cli.errors import MountError
from soci_cli.kernel import calls, detached
from soci_cli.kernel.unmount import fusermount_program, one_line

DEVICE = "/dev/fuse"
_READ_AHEAD = 1024  # KiB


def open_device() -> int:
    """A descriptor for a connection that is yet to be made."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise _no_device() from error
        raise MountError(f"{DEVICE} cannot be opened: {error.strerror}") from error


def mount_fuse(subtype: str, source: str, target: Path, flags: int, options: str) -> int:
    """Mounts as root, with flags of mount(2) and options of fuse(4) besides those that must be."""
    fd = open_device()
    ids = f"user_id={os.getuid()},group_id={os.getgid()}"
    data = f"fd={fd},rootmode=40000,{ids},{options}"
    try:
        calls.mount(f"fuse.{subtype}", source, target, flags, data)
    except OSError as error:
        os.close(fd)
        raise _refused(target, error) from error
    return fd


def fusermount(subtype: str, source: str, target: Path, options: Sequence[str]) -> int:
    """Mounts as an ordinary user, without suid and devices."""
    program = fusermount_program()
    if not Path(DEVICE).exists():
        raise _no_device()
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise MountError(
            f"{DEVICE} is closed to this user; as root, chmod 0666 {DEVICE} opens it, as is usual"
        )
    name = source.replace("\\", "\\\\").replace(",", "\\,")
    given = ",".join([*options, "nosuid", "nodev", f"subtype={subtype}", f"fsname={name}"])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [program, "-o", given, "--", str(target)],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        theirs.close()
        fds = socket.recv_fds(ours, 1, 1)[1] if not done.returncode else []
    if not fds:
        raise MountError(f"{target} cannot be mounted: {one_line(done.stderr)}")
    os.set_inheritable(fds[0], False)
    return fds[0]


def raise_read_ahead(path: Path | int, kib: int = _READ_AHEAD) -> None:
    """Lets the kernel read further ahead than its 128 KiB, where this process may say so.

    `path` leads into the file system, or is a descriptor of something in it.
    """
    with suppress(OSError):
        device = os.stat(path).st_dev  # noqa: PTH116
        name = f"{os.major(device)}:{os.minor(device)}"
        Path(f"/sys/class/bdi/{name}/read_ahead_kb").write_text(str(kib))


def connection_of(fd: int) -> int:
    """The number of the connection that serves what an open file is in."""
    return os.minor(os.fstat(fd).st_dev)


def abort_connection(number: int) -> bool:
    """Ends a connection: whoever waits for it gets an error, and so does its server. Root only.

    False where it is gone, or this process may not do it, as in a user namespace.
    """
    with suppress(MountError, OSError):
        control = detached.mount("fusectl", [("source", "fusectl")], 0)
        try:
            fd = os.open(f"{number}/abort", os.O_WRONLY | os.O_CLOEXEC, dir_fd=control)
            try:
                os.write(fd, b"1")
            finally:
                os.close(fd)
        finally:
            os.close(control)
        return True
    return False


def is_dead(path: Path) -> bool:
    """Whether nobody serves the FUSE file system that is seen at a path."""
    try:
        new_name(path).lstat()
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def new_name(path: Path) -> Path:
    """A name that nobody has asked for, so that the kernel has to ask the server."""
    return path / f".{os.urandom(16).hex()}"


def _no_device() -> MountError:
    return MountError(
        f"there is no {DEVICE}: load the kernel's module with: modprobe fuse; in a container, start it "
        f"with --device {DEVICE}"
    )


def _refused(target: Path, error: OSError) -> MountError:
    if error.errno == errno.EPERM:
        return MountError(
            f"{target} cannot be mounted: root may not mount here, as usual in a container; start it with "
            f"--cap-add SYS_ADMIN --device {DEVICE}, or use unshare -Urm"
        )
    if error.errno == errno.ENODEV:
        return _no_device()
    return MountError(f"{target} cannot be mounted: {error.strerror}")
