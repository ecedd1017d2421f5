"""Copying files out of an image: into a folder of this machine, or into a tar stream.

Names, links and modes come from strangers. Everything is done relative to open folders, none of which is
reached through a symbolic link, so nothing is ever written outside of the destination. Files and links are
made aside and then take their name, in place of what had it.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, cast

from soci_cli.closing import Closing
from soci_cli.errors import NotFoundError, StorageError
from soci_cli.lazy.merged import File, LazyImage
from soci_cli.progress import Observer, Task, Work
from soci_cli.text import brief
from soci_cli.ztoc.attributes import Node

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_DEPTH = 500  # each folder on the way is open
_DEVICES = {"char": stat.S_IFCHR, "block": stat.S_IFBLK}
_TAR_TYPES = {
    "reg": tarfile.REGTYPE,
    "dir": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
}


@dataclass(frozen=True, slots=True)
class _Item:
    """A file, and the path that its copy gets below the destination."""

    path: bytes
    file: File
    node: Node


@dataclass(frozen=True)
class _Plan:
    """All that is to be copied, each folder right before what is in it, and then by what it is.

    `links` are further names of files, with the path of the first one.
    """

    items: Sequence[_Item]
    folders: Sequence[_Item]
    regular: Sequence[_Item]
    others: Sequence[_Item]
    links: Sequence[tuple[_Item, bytes]]

    @property
    def size(self) -> int:
        return sum(item.node.size for item in self.regular)


def extract(
    image: LazyImage, start: File, destination: str, observer: Observer, *, contents: bool = False
) -> None:
    """Copies a file, or a folder with all that is in it, as `cp -r` does.

    An existing folder `destination` gets the copy under its own name or, with `contents`, what is in the
    folder; else the copy is called `destination`, whose parent must exist. Modes, times, links and, where
    that is permitted, xattrs are kept; owners are by root only, and so are devices. Raises NotFoundError
    and StorageError, and what reading raises.
    """
    if _is_special(destination):
        _write_into(image, start, destination)
        return
    folder, name = _target(start, destination, contents)
    plan = _plan(image, start, name)
    with Work(observer, brief(start.name or b"/"), plan.size) as work:
        with _Destination(folder) as target:
            left_out = _write(image, plan, target, work)
        work.outcome = "copied"
    if left_out:
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        observer.note(f"left out, because only root can make devices: {left_out[0]}{more}")


def write_tar(
    image: LazyImage, start: File, out: IO[bytes], observer: Observer, *, contents: bool = False
) -> None:
    """Writes a file, or a folder with all that is in it, to `out` as a tar archive.

    What is in a folder follows it, so that `tar -x` gives folders their times when it is done with them.
    """
    plan = _plan(image, start, b"." if contents or not start.path else start.name)
    with Work(observer, brief(start.name or b"/"), plan.size) as work:
        with tarfile.open(
            fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8"
        ) as tar:
            contents_of = image.read_in_turn([item.file for item in plan.regular])
            firsts = {item.path: first for item, first in plan.links}
            regular = {item.path for item in plan.regular}
            for item in plan.items:
                info = _tar_info(item)
                if item.path in firsts:
                    info.type, info.linkname = tarfile.LNKTYPE, os.fsdecode(firsts[item.path])
                    info.size = 0
                content = next(contents_of)[1] if item.path in regular else iter(())
                tar.addfile(info, cast(IO[bytes], _Pieces(content, work)))
        work.outcome = "copied"


def _is_special(destination: str) -> bool:
    """Whether it is a device or a pipe, which is written to and never replaced."""
    try:
        mode = os.stat(destination).st_mode  # noqa: PTH116 - a slash at the end means something
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _write_into(image: LazyImage, start: File, destination: str) -> None:
    with _disk_errors(os.fsencode(destination)), open(destination, "wb") as file:  # noqa: PTH123
        for piece in image.pieces(start):
            file.write(piece)


def _target(start: File, destination: str, contents: bool) -> tuple[str, bytes]:
    """The folder to write into, and the name that the copy gets there; empty for the folder itself."""
    if os.path.isdir(destination):  # noqa: PTH112 - a slash at the end means something
        return destination, b"" if contents or not start.path else start.name
    folder, name = os.path.split(destination.rstrip("/"))
    if os.path.lexists(destination) and start.is_directory:
        raise StorageError(f"{destination} is no directory, so no directory can be copied there")
    if not start.is_directory and destination.endswith("/"):
        raise StorageError(f"{destination} is no directory; make it first")
    if not os.path.isdir(folder or ".") or name in ("", ".", ".."):  # noqa: PTH112
        raise NotFoundError(f"{destination} cannot be made: its parent directory does not exist")
    return folder or ".", os.fsencode(name)


def _plan(image: LazyImage, start: File, name: bytes) -> _Plan:
    items, folders, regular, others = [], [], [], []
    links: list[tuple[_Item, bytes]] = []
    first_names: dict[tuple[int, int], bytes] = {}
    waiting = [_Item(name, start, image.node(start))]
    while waiting:
        item = waiting.pop()
        items.append(item)
        file = item.file
        if file.is_directory:
            folders.append(item)
            below = item.path + b"/" if item.path else b""
            waiting += [
                _Item(below + child.name, child, image.node(child))
                for child in reversed(image.children(file))
            ]
            continue
        first = first_names.setdefault((file.layer, file.entry), item.path)
        if first is not item.path:
            links.append((item, first))
        elif item.node.type == "reg":
            regular.append(item)
        else:
            others.append(item)
    return _Plan(items, folders, regular, others, links)


def _contents(image: LazyImage, plan: _Plan) -> Iterator[tuple[_Item, Iterator[memoryview]]]:
    items = {item.file.path: item for item in plan.regular}
    for file, pieces in image.read_all(item.file for item in plan.regular):
        yield items[file.path], pieces


def _write(image: LazyImage, plan: _Plan, target: _Destination, task: Task) -> list[str]:
    """Makes everything; the paths of what could not be made without being root."""
    made = [item for item in plan.folders if item.path and target.make_folder(item.path)]
    left_out = [brief(b"/" + item.file.path) for item in plan.others if not target.make_other(item)]
    for item, pieces in _contents(image, plan):
        target.make_file(item, pieces, task)
    for item, first in plan.links:
        if not target.make_link(item.path, first) and item.node.type == "reg":
            target.make_file(item, image.pieces(item.file), task)
    for item in reversed(made):
        with target.folder(item.path) as fd, _disk_errors(item.path):
            _set_attributes(fd, item.node)
    return left_out


class _NotPermittedError(Exception):
    """A device that even this root, perhaps of a container, may not make."""


class _Destination(Closing):
    """The folder that is written into."""

    def __init__(self, path: str) -> None:
        self._is_root = os.geteuid() == 0
        # The folders on the way to the last one, so that its neighbours are quickly reached.
        self._open: list[tuple[bytes, int]] = []
        with _disk_errors(os.fsencode(path)):
            self._fd = os.open(path, _FOLDER)

    def close(self) -> None:
        """Closes the folders that are open."""
        self._shut(0)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _shut(self, keep: int) -> None:
        while len(self._open) > keep:
            os.close(self._open.pop()[1])

    @contextmanager
    def folder(self, path: bytes) -> Iterator[int]:
        """A folder below, opened without following any link. StorageError when something is in the way."""
        parts = path.split(b"/") if path else []
        if len(parts) > _MAX_DEPTH:
            raise StorageError(f"{brief(path)} is nested too deep to be copied")
        same = 0
        for part, (name, _) in zip(parts, self._open, strict=False):
            if part != name:
                break
            same += 1
        self._shut(same)
        for part in parts[same:]:
            with _disk_errors(path):
                here = self._open[-1][1] if self._open else self._fd
                fd = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=here)
            self._open.append((part, fd))
        yield self._open[-1][1] if self._open else self._fd

    def make_folder(self, path: bytes) -> bool:
        """Makes a folder for its owner alone, till its attributes are set; False when it was there."""
        parent, _, name = path.rpartition(b"/")
        with self.folder(parent) as fd, _disk_errors(path):
            try:
                os.mkdir(name, 0o700, dir_fd=fd)
                return True
            except FileExistsError:
                pass
        with self.folder(path):
            return False

    def make_file(self, item: _Item, pieces: Iterable[memoryview], task: Task) -> None:
        """Makes a regular file."""

        def make(name: bytes, folder: int) -> None:
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=folder)
            try:
                for piece in pieces:
                    task.advance(piece.nbytes)
                    while piece.nbytes:
                        piece = piece[os.write(fd, piece) :]
                _set_attributes(fd, item.node)
            finally:
                os.close(fd)

        self._make_aside(item.path, make)

    def make_other(self, item: _Item) -> bool:
        """Makes a symbolic link, a pipe or a device; False when it takes root to make it."""
        node = item.node

        def make(name: bytes, folder: int) -> None:
            if node.type == "symlink":
                os.symlink(node.linkname, name, dir_fd=folder)
            elif node.type == "fifo":
                os.mkfifo(name, 0o600, dir_fd=folder)
            else:
                device = os.makedev(node.devmajor & 0xFFF, node.devminor & 0xFFFFF)
                try:
                    os.mknod(name, 0o600 | _DEVICES[node.type], device, dir_fd=folder)
                except PermissionError as error:
                    raise _NotPermittedError from error
            if self._is_root:
                with suppress(OSError):
                    os.chown(name, node.uid, node.gid, dir_fd=folder, follow_symlinks=False)
            if node.type != "symlink":
                os.chmod(name, node.mode, dir_fd=folder)
            times = (node.mtime_ns, node.mtime_ns)
            os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False)

        if node.type not in ("symlink", "fifo") and not (self._is_root and node.type in _DEVICES):
            return False
        try:
            self._make_aside(item.path, make)
        except _NotPermittedError:
            return False
        return True

    def make_link(self, path: bytes, first: bytes) -> bool:
        """Gives a file that was made a second name; False where that cannot be done."""
        parent, _, base = first.rpartition(b"/")
        with self.folder(parent) as fd:
            there = os.dup(fd)
        try:
            with suppress(OSError):
                self._make_aside(
                    path,
                    lambda name, folder: os.link(
                        base, name, src_dir_fd=there, dst_dir_fd=folder, follow_symlinks=False
                    ),
                )
                return True
        finally:
            os.close(there)
        return False

    def _make_aside(self, path: bytes, make: Callable[[bytes, int], None]) -> None:
        """Makes something under a name of its own, and then renames it."""
        parent, _, name = path.rpartition(b"/")
        aside = b".soci-" + secrets.token_hex(8).encode()
        with self.folder(parent) as fd, _disk_errors(path):
            try:
                make(aside, fd)
                os.rename(aside, name, src_dir_fd=fd, dst_dir_fd=fd)
            finally:
                with suppress(OSError):
                    os.unlink(aside, dir_fd=fd)


def _set_attributes(fd: int, node: Node) -> None:
    """Owner, mode, xattrs and time of an open file or folder, as far as one may."""
    mode = node.mode & 0o1777  # set-user-ID would mean something else with another owner
    if os.geteuid() == 0:
        with suppress(OSError):
            os.fchown(fd, node.uid, node.gid)
            mode = node.mode
    os.fchmod(fd, mode)
    for name, value in node.xattrs:
        with suppress(OSError):
            os.setxattr(fd, name, value)
    os.utime(fd, ns=(node.mtime_ns, node.mtime_ns))


@contextmanager
def _disk_errors(path: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            reason = "something that is no directory is in the way"
        elif error.errno == errno.EISDIR:
            reason = "a directory is in the way"
        raise StorageError(f"{brief(path)} cannot be written: {reason}") from error


def _tar_info(item: _Item) -> tarfile.TarInfo:
    node = item.node
    info = tarfile.TarInfo(_text(item.path))
    info.type = _TAR_TYPES.get(node.type, tarfile.REGTYPE)
    info.size = node.size if node.type == "reg" else 0
    info.mode, info.uid, info.gid = node.mode, node.uid, node.gid
    info.uname, info.gname = _text(node.uname), _text(node.gname)
    info.linkname = _text(node.linkname)
    info.devmajor, info.devminor = node.devmajor & 0xFFF, node.devminor & 0xFFFFF
    seconds, fraction = divmod(node.mtime_ns, 1_000_000_000)
    info.mtime = seconds
    headers = {f"SCHILY.xattr.{_text(name)}": _text(value) for name, value in node.xattrs}
    if fraction and seconds >= 0:
        headers["mtime"] = f"{seconds}.{fraction:09d}"
    info.pax_headers = headers
    return info


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


class _Pieces:
    """Pieces as a stream."""

    def __init__(self, pieces: Iterator[memoryview], task: Task) -> None:
        self._pieces = pieces
        self._task = task
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        parts = []
        while size:
            if not self._rest.nbytes:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._task.advance(piece.nbytes)
                self._rest = piece
            part, self._rest = self._rest[:size], self._rest[size:]
            parts.append(part)
            size -= part.nbytes
        return b"".join(parts)
