"""Mounting an image on a folder, and unmounting it.

Root mounts the layers by FUSE and joins them with overlayfs. The FUSE mount is detached at once: overlayfs
holds on to it, and it ends with the overlay, whoever unmounts that. Others mount the merged image through
fusermount3, or join the layers with fuse-overlayfs where they want to write.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from soci_cli.closing import Closing
from soci_cli.errors import BusyError, MountError, SociError
from soci_cli.lazy.fuse.filesystem import (
    TRUSTED_MARK,
    USER_MARK,
    LayersTree,
    MergedTree,
    Owners,
    Tree,
    namespace_owners,
    same_owners,
)
from soci_cli.lazy.fuse.session import Log, OnRead, Session
from soci_cli.lazy.merged import LazyImage
from soci_cli.lazy.mount_points import mount_at, mount_points, resolve
from soci_cli.text import brief

SUBTYPE = "soci"
"""What `mount` shows after "fuse.", and before the image's name where overlayfs joins the layers."""

_DEVICE = "/dev/fuse"
_FUSE_TYPE = f"fuse.{SUBTYPE}"
_SOURCE_PREFIX = f"{SUBTYPE}:"
_MAX_SOURCE = 200
_MAX_LAYERS = 499  # overlayfs takes 500 folders, and one is "empty"
_READ_AHEAD = "1024"  # KiB
_FUSERMOUNT = "fusermount3"
_FUSE_OVERLAYFS = "fuse-overlayfs"
_PATIENCE = 10.0
_PAUSE = 0.02
_FAREWELL = 1.0
_LATER = 0.1
_LAYERS = "l"  # short, for the options of overlayfs must fit into 4 KiB
_UPPER = "upper"
_WORK = "work"

_RDONLY, _NOSUID, _NODEV = 1, 2, 4
_DETACH, _NOFOLLOW = 2, 8
_CLONE_FS = 0x200
_WHOLE_RANGE = "0 0 4294967295"


@dataclass(frozen=True)
class MountOptions:
    """How an image is mounted. What is written with `writable` goes to `scratch` and is lost at the end.

    `allow_other` lets other users in where an ordinary user mounts; root's mounts are for everybody.
    """

    writable: bool = False
    suid: bool = False
    dev: bool = False
    allow_other: bool = False


class MountedImage(Closing):
    """An image that is mounted and served. The image must be closed after this."""

    def __init__(
        self,
        kind: str,
        target: Path,
        session: Session,
        overlay: subprocess.Popen[bytes] | None = None,
        layers: Path | None = None,
    ) -> None:
        """`layers` is where the FUSE file system is mounted, if that is not the target."""
        self.kind = kind
        """Who joins the layers: "overlay", "fuse-overlayfs", or "fuse": the server itself."""
        self.target = target
        self._session = session
        self._overlay = overlay
        self._layers = layers or target

    def serve(self) -> None:
        """Waits until the image is unmounted, by anyone, or `abort` was called."""
        self._session.wait()

    def abort(self) -> None:
        """Ends the connection, so that all who wait for something get an error, and unmounts."""
        _end(self._session, self._layers)
        for path in dict.fromkeys((self.target, self._layers)):
            with suppress(MountError):
                unmount(path, force=True)

    def close(self) -> None:
        """Unmounts, if that was not done: who still uses it gets errors."""
        if not self._session.wait(0):
            self.abort()
        if self._overlay is not None:
            self._overlay.kill()
            self._overlay.wait()


def mount_image(
    image: LazyImage,
    target: Path,
    scratch: Path,
    options: MountOptions,
    log: Log,
    on_read: OnRead | None = None,
) -> MountedImage:
    """Mounts an image on a folder and serves it from threads of this process.

    `scratch` is an empty folder of this user alone, needed as long as the mount lasts. See `Session` for
    `log` and `on_read`. Raises MountError.
    """
    target = resolve(target)
    check_target(target)
    begin = _Mounting(image, target, scratch, options, log, on_read)
    if os.geteuid() == 0:
        return begin.as_root()
    return begin.by_fuse_overlayfs() if options.writable else begin.by_fusermount()


def unmount(target: Path, force: bool = False) -> None:
    """Unmounts an image; with `force` even while it is in use. Raises BusyError, MountError."""
    target = resolve(target)
    if os.geteuid() == 0:
        flags = _NOFOLLOW | (_DETACH if force else 0)
        if _libc().umount2(os.fsencode(target), flags):
            raise _unmount_error(target, ctypes.get_errno())
        return
    command = [_fusermount_program(), "-u", *(["-z"] if force else []), "--", str(target)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        text = _one_line(done.stderr)
        if "busy" in text.lower():
            raise _unmount_error(target, errno.EBUSY)
        raise MountError(f"{target} cannot be unmounted: {text}")


def unmount_below(folder: Path) -> None:
    """Unmounts what a server that crashed left below its scratch folder. Raises MountError."""
    for point in reversed(mount_points()):
        if Path(point.path).is_relative_to(folder):
            unmount(Path(point.path), force=True)


class _Mounting:
    """The ways to mount one image."""

    def __init__(
        self,
        image: LazyImage,
        target: Path,
        scratch: Path,
        options: MountOptions,
        log: Log,
        on_read: OnRead | None,
    ) -> None:
        self._image = image
        self._target = target
        self._scratch = scratch
        self._options = options
        self._log = log
        self._on_read = on_read
        self._layers = scratch / _LAYERS
        self._source = brief(image.name, _MAX_SOURCE)

    def as_root(self) -> MountedImage:
        """By the kernel's FUSE and overlayfs, or by FUSE alone where overlayfs cannot do it."""
        in_namespace = not _is_initial_namespace()
        owners = namespace_owners() if in_namespace else same_owners
        if self._options.writable:
            return self._by_overlay(in_namespace, owners)
        if not self._image.layers:
            return self._merged(owners)
        try:
            return self._by_overlay(in_namespace, owners)
        except _NoOverlayError:
            return self._merged(owners)

    def _by_overlay(self, in_namespace: bool, owners: Owners) -> MountedImage:
        mark = USER_MARK if in_namespace else TRUSTED_MARK
        self._make_folders()
        fd = self._mount_fuse(self._layers, _RDONLY | _NOSUID | _NODEV, "allow_other")
        session = self._serve(fd, LayersTree(self._image, mark, owners))
        try:
            _raise_read_ahead(self._layers)
            self._mount_overlay(in_namespace)
        except BaseException:
            _end(session, self._layers)
            raise
        finally:
            _libc().umount2(os.fsencode(self._layers), _DETACH | _NOFOLLOW)
        self._spare_xattrs(session)
        return MountedImage("overlay", self._target, session)

    def _merged(self, owners: Owners) -> MountedImage:
        flags = _RDONLY | _flags(self._options)
        fd = self._mount_fuse(self._target, flags, "allow_other,default_permissions")
        session = self._serve(fd, MergedTree(self._image, owners))
        _raise_read_ahead(self._target)
        self._spare_xattrs(session)
        return MountedImage("fuse", self._target, session)

    def _mount_fuse(self, target: Path, flags: int, options: str) -> int:
        """The descriptor of a new FUSE mount, which waits to be served."""
        fd = _open_device()
        ids = f"user_id={os.getuid()},group_id={os.getgid()}"
        try:
            _mount(
                _FUSE_TYPE, self._source, target, flags, f"fd={fd},rootmode=40000,{ids},{options}"
            )
        except OSError as error:
            os.close(fd)
            raise _fuse_error(target, error) from error
        return fd

    def by_fusermount(self) -> MountedImage:
        """By the setuid program of libfuse, the layers merged here."""
        options = ["ro"]
        if self._options.allow_other:
            options += ["allow_other", "default_permissions"]
        fd = self._fusermount(self._target, options)
        session = self._serve(fd, MergedTree(self._image))
        self._spare_xattrs(session)
        return MountedImage("fuse", self._target, session)

    def by_fuse_overlayfs(self) -> MountedImage:
        """By that program over the layers, which fusermount3 mounts."""
        program = shutil.which(_FUSE_OVERLAYFS)
        if program is None:
            raise MountError(
                f"an ordinary user can mount for writing by {_FUSE_OVERLAYFS} only, which is not "
                "installed; install its package, or leave out --rw"
            )
        self._make_folders()
        fd = self._fusermount(self._layers, ["ro"])
        session = self._serve(fd, LayersTree(self._image, USER_MARK))
        try:
            self._prepare_upper()
            overlay = self._start_fuse_overlayfs(program)
        except BaseException:
            _end(session, self._layers)
            with suppress(MountError):
                unmount(self._layers, force=True)
            raise
        threading.Thread(
            target=self._follow, args=(overlay,), name="soci-mount", daemon=True
        ).start()
        return MountedImage("fuse-overlayfs", self._target, session, overlay, self._layers)

    def _make_folders(self) -> None:
        if len(self._image.layers) > _MAX_LAYERS:
            raise MountError(
                f"{self._image.name} has {len(self._image.layers)} layers; overlayfs joins "
                f"{_MAX_LAYERS} at most"
            )
        names = [_LAYERS, *([_UPPER, _WORK] if self._options.writable else [])]
        try:
            for name in names:
                (self._scratch / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise MountError(f"{self._scratch} cannot be written: {error.strerror}") from error

    def _serve(self, fd: int, tree: Tree) -> Session:
        session = Session(fd, tree, self._log, self._on_read)
        threading.Thread(target=session.run, name="soci-fuse", daemon=True).start()
        return session

    def _spare_xattrs(self, session: Session) -> None:
        """Ends the questions for extended attributes where there are none: overlayfs has one per file.

        Not before overlayfs is mounted, which looks at that time what the file systems below it can do; and
        a little later, because whoever mounts waits for more important things.
        """

        def look() -> None:
            if session.wait(_LATER):
                return
            with suppress(SociError):  # which shows where it matters
                if not any(layer.files.may_need_xattrs() for layer in self._image.layers):
                    session.end_xattrs()

        threading.Thread(target=look, name="soci-xattrs", daemon=True).start()

    def _lower(self) -> str:
        """The folders of the layers for overlayfs, the topmost first.

        The first one gives the root's attributes. It has nothing else: without a writable folder,
        overlayfs wants two of them.
        """
        names = ["empty", *map(str, reversed(range(len(self._image.layers))))]
        return ":".join(f"{_LAYERS}/{name}" for name in names)

    def _mount_overlay(self, in_namespace: bool) -> None:
        options = self._options
        flags = (0 if options.writable else _RDONLY) | _flags(options)
        data = f"lowerdir={self._lower()}"
        if options.writable:
            self._prepare_upper()
            data += f",upperdir={_UPPER},workdir={_WORK}"
        if in_namespace:
            data += ",userxattr"
        source = _SOURCE_PREFIX + self._source

        def work() -> None:
            os.chdir(self._scratch)
            _mount("overlay", source, self._target, flags, data)

        try:
            _in_own_folder(work)
        except OSError as error:
            raise self._overlay_error(error, in_namespace) from error

    def _prepare_upper(self) -> None:
        """Gives the folder for what is written the attributes of the image's root, which it will show."""
        upper = self._scratch / _UPPER
        found = (self._layers / "empty").stat()
        with suppress(PermissionError):
            os.chown(upper, found.st_uid, found.st_gid)
        upper.chmod(stat.S_IMODE(found.st_mode))
        with suppress(OSError):  # a time that this file system cannot hold
            os.utime(upper, ns=(found.st_atime_ns, found.st_mtime_ns))

    def _overlay_error(self, error: OSError, in_namespace: bool) -> MountError:
        where = f"{self._target} cannot be mounted"
        if error.errno == errno.ENODEV:
            return _NoOverlayError(
                f"{where} for writing: this kernel has no overlayfs; load its module (modprobe overlay), "
                "or leave out --rw"
            )
        if error.errno == errno.EPERM and in_namespace:
            return _NoOverlayError(
                f"{where} for writing: this kernel has overlayfs for the real root only, not in a user "
                "namespace; that is allowed since Linux 5.11"
            )
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP) and self._options.writable:
            return MountError(
                f"{where} for writing: overlayfs cannot keep what is written in {self._scratch}, whose "
                "file system lacks something; set SOCI_STATE to a folder on a local disk"
            )
        return MountError(f"{where} by overlayfs: {error.strerror}")

    def _fusermount(self, target: Path, more: Sequence[str]) -> int:
        """The descriptor of a FUSE mount that libfuse's setuid program made."""
        if self._options.suid or self._options.dev:
            raise MountError("only root can mount with suid or dev")
        program = _fusermount_program()
        if not Path(_DEVICE).exists():
            raise _no_device()
        if not os.access(_DEVICE, os.R_OK | os.W_OK):
            raise MountError(
                f"{_DEVICE} is closed to this user; as root, chmod 0666 {_DEVICE} opens it, as is usual"
            )
        name = self._source.replace("\\", "\\\\").replace(",", "\\,")
        options = ",".join([*more, "nosuid", "nodev", f"subtype={SUBTYPE}", f"fsname={name}"])
        ours, theirs = socket.socketpair()
        with ours, theirs:
            command = [program, "-o", options, "--", str(target)]
            done = subprocess.run(
                command,
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
            theirs.close()
            fds = socket.recv_fds(ours, 1, 1)[1] if not done.returncode else []
        if not fds:
            raise MountError(f"{target} cannot be mounted: {_one_line(done.stderr)}")
        os.set_inheritable(fds[0], False)
        return fds[0]

    def _start_fuse_overlayfs(self, program: str) -> subprocess.Popen[bytes]:
        """Starts the program and waits until it has mounted the target."""
        owner = f"squash_to_uid={os.getuid()},squash_to_gid={os.getgid()}"
        folders = f"lowerdir={self._lower()},upperdir={_UPPER},workdir={_WORK}"
        before = mount_at(str(self._target))
        errors = self._scratch / "errors"
        with errors.open("wb") as stderr:
            overlay = subprocess.Popen(
                [program, "-f", "-o", f"{folders},{owner}", str(self._target)],
                cwd=self._scratch,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C is not for it
            )
        deadline = time.monotonic() + _PATIENCE
        while overlay.poll() is None and time.monotonic() < deadline:
            if mount_at(str(self._target)) != before:
                return overlay
            time.sleep(_PAUSE)
        overlay.kill()
        overlay.wait()
        problem = _one_line(errors.read_bytes()) or "no answer"
        raise MountError(f"{self._target} cannot be mounted by {_FUSE_OVERLAYFS}: {problem}")

    def _follow(self, overlay: subprocess.Popen[bytes]) -> None:
        """When the target is unmounted, its program ends, and nobody needs the layers any more."""
        overlay.wait()
        with suppress(MountError):
            unmount(self._layers, force=True)


class _NoOverlayError(MountError):
    """Overlayfs cannot be used here at all."""


def check_target(target: Path) -> None:
    """Raises MountError for a folder that no image can be mounted on."""
    point = mount_at(str(target))
    if point is not None and point.is_soci:
        has = f"an image mounted already ({point.source.removeprefix(_SOURCE_PREFIX)})"
        if _is_dead(target):
            has = "a mount whose server crashed"
        raise MountError(f"{target} has {has}; unmount it with: soci umount {target}")
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        raise MountError(
            f"there is no folder {target} to mount on; make it with: mkdir {target}"
        ) from None
    except OSError as error:
        raise MountError(f"{target} cannot be mounted: {error.strerror}") from error
    if not stat.S_ISDIR(mode):
        raise MountError(f"{target} is no folder to mount on")


def _open_device() -> int:
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise _no_device() from error
        raise MountError(f"{_DEVICE} cannot be opened: {error.strerror}") from error


def _no_device() -> MountError:
    return MountError(
        f"there is no {_DEVICE}: load the kernel's module with: modprobe fuse; in a container, start it "
        f"with --device {_DEVICE}"
    )


def _fuse_error(target: Path, error: OSError) -> MountError:
    if error.errno == errno.EPERM:
        return MountError(
            f"{target} cannot be mounted: root may not mount here, as usual in a container; start it with "
            f"--cap-add SYS_ADMIN --device {_DEVICE}, or use unshare -Urm"
        )
    if error.errno == errno.ENODEV:
        return _no_device()
    return MountError(f"{target} cannot be mounted: {error.strerror}")


def _unmount_error(target: Path, number: int) -> MountError:
    if number == errno.EBUSY:
        return BusyError(f"{target} is in use; close what uses it, or unmount it with --force")
    if number == errno.EINVAL:
        return MountError(f"{target} is not mounted")
    if number == errno.ENOENT:
        return MountError(f"there is no folder {target}")
    return MountError(f"{target} cannot be unmounted: {os.strerror(number)}")


def _flags(options: MountOptions) -> int:
    return (0 if options.suid else _NOSUID) | (0 if options.dev else _NODEV)


def _mount(type_: str, source: str, target: Path, flags: int, data: str) -> None:
    """mount(2). OSError."""
    path = os.fsencode(target)
    if _libc().mount(source.encode(), path, type_.encode(), flags, data.encode()):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _in_own_folder(work: Callable[[], None]) -> None:
    """Runs something that changes the current folder in a thread that has one of its own."""
    errors: list[OSError] = []

    def run() -> None:
        try:
            if _libc().unshare(_CLONE_FS):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            work()
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="soci-mount")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _end(session: Session, path: Path) -> None:
    """Ends a connection whose file system is seen at `path`."""
    session.abort()

    def ask() -> None:
        # Its thread waits for a request, so it gets one.
        with suppress(OSError):
            _new_name(path).lstat()

    threading.Thread(target=ask, name="soci-mount", daemon=True).start()
    session.wait(_FAREWELL)


def _is_dead(path: Path) -> bool:
    """Whether nobody serves the FUSE file system that is seen at a path."""
    try:
        _new_name(path).lstat()
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def _new_name(path: Path) -> Path:
    """A name that nobody has asked for, so that the kernel has to ask the server."""
    return path / f".{secrets.token_hex(16)}"


def _raise_read_ahead(path: Path) -> None:
    """Lets the kernel read further ahead than its 128 KiB, where this process may say so."""
    with suppress(OSError):
        device = path.stat().st_dev
        name = f"{os.major(device)}:{os.minor(device)}"
        Path(f"/sys/class/bdi/{name}/read_ahead_kb").write_text(_READ_AHEAD)


def _is_initial_namespace() -> bool:
    """Whether this is no user namespace that somebody made."""
    with suppress(OSError):
        return " ".join(Path("/proc/self/uid_map").read_text().split()) == _WHOLE_RANGE
    return True


def _fusermount_program() -> str:
    program = shutil.which(_FUSERMOUNT)
    if program is None:
        raise MountError(
            f"there is no {_FUSERMOUNT}, by which ordinary users mount; install the package fuse3, "
            "or run as root"
        )
    return program


def _one_line(text: bytes) -> str:
    """What a program said, as the end of a message."""
    return " ".join(text.decode(errors="replace").split())[:300]


@lru_cache(maxsize=1)
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)
