"""Mounting EROFS images over their devices, and finding out whether this kernel does that safely.

Devices are open files: complete ones on the disk, or lazy ones that a FUSE server answers for. Kernels from
6.12 on mount files; older ones need loop devices, for the image and for every device.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from soci_cli.errors import MountError
from soci_cli.kernel import calls, detached, loop
from soci_cli.lazy.erofs import format as erofs
from soci_cli.lazy.erofs.metadata import Attributes, Device, Directory, Inodes, Metadata, next_start

_PROBED = "probe"
_ZEROS = (
    "reading beyond the end of a device gives zeros; Linux 7.0 and newer stable kernels mend that"
)


class Way(Enum):
    """How images get to the kernel."""

    FILES = "files"
    LOOPS = "loop devices"


@dataclass(frozen=True)
class Probed:
    """What a trial said: the way that works, or None; and why."""

    way: Way | None
    reason: str


def mount(
    way: Way, image: int, devices: Sequence[int], attributes: int, name: Path | None = None
) -> int:
    """Mounts an image, an open file, over its devices in their order; the descriptor of the mount.

    The files may be closed then. `name` is a link that is made for a moment, whose name `mount` then shows
    as the source. MountError.
    """
    with ExitStack() as stack:
        files = [image, *devices]
        if way is Way.LOOPS:
            files = [loop.attach(fd, erofs.BLOCK) for fd in files]
            for fd in files:
                stack.callback(os.close, fd)
        # The kernel opens what these links of this process lead to, whatever it is called now.
        source, *rest = [f"/proc/self/fd/{fd}" for fd in files]
        devices_ = [("device", path) for path in rest]
        attributes |= detached.RDONLY
        if name is None:
            return detached.mount("erofs", [("ro", ""), ("source", source), *devices_], attributes)
        name.symlink_to(source)
        stack.callback(name.unlink)
        options = [("ro", ""), ("source", name.name), *devices_]
        return calls.in_directory(name.parent, lambda: detached.mount("erofs", options, attributes))


def probe(folder: Path, without: Collection[str] = ()) -> Probed:
    """Tries, in a folder like the one that images will be in, what this process can have.

    `without` names what is taken as if the kernel lacked it: "erofs", "fsopen", "files" and "loops" (mounts
    backed by them), or "errors", so that each way around can be tried on any kernel.

    A kernel is safe when reading beyond the end of a device fails. Others give zeros, and keep zeros for
    everybody where somebody is killed who waits for a lazy device (Linux commit eade54040384).
    """
    if os.geteuid() != 0:
        return Probed(None, "only root can mount EROFS")
    if "erofs" in without or "\terofs\n" not in Path("/proc/filesystems").read_text("ascii"):
        return Probed(None, "this kernel has no EROFS; modprobe erofs may load it")
    if "fsopen" in without:
        return Probed(None, "this kernel has no fsopen(2), which Linux 5.2 brought")
    reasons = []
    for way in Way:
        try:
            reason = "none here" if way.name.lower() in without else _try(way, folder)
            if not reason and "errors" in without:
                reason = _ZEROS
        except (MountError, OSError) as error:
            reason = str(error)
        if not reason:
            return Probed(
                way, f"EROFS over {way.value}: a short device gives an error, as it should"
            )
        reasons.append(f"{way.value}: {reason}")
    return Probed(None, "; ".join(reasons))


def _try(way: Way, folder: Path) -> str:
    """Mounts a file of two blocks over a device of one; what is wrong with this way, "" for nothing."""
    size = 2 * erofs.BLOCK
    device = Device(b"probe", 2)
    inodes = Inodes()
    number = inodes.add(stat.S_IFREG | 0o400, size, next_start([]))
    root = Directory(None, Attributes(0o700))
    root.children[_PROBED.encode()] = number
    image = Metadata(root, inodes, [device]).data
    with tempfile.TemporaryFile(dir=folder) as first, tempfile.TemporaryFile(dir=folder) as second:
        first.write(image)
        first.flush()
        second.write(b"\1" * erofs.BLOCK)
        second.flush()
        mounted = mount(way, first.fileno(), [second.fileno()], detached.NOSUID | detached.NODEV)
        try:
            fd = os.open(_PROBED, os.O_RDONLY | os.O_CLOEXEC, dir_fd=mounted)
            try:
                if os.pread(fd, erofs.BLOCK, 0) != b"\1" * erofs.BLOCK:
                    return "what is read is not what was written"
                os.pread(fd, erofs.BLOCK, erofs.BLOCK)
            except OSError as error:
                return "" if error.errno == errno.EIO else str(error)
            finally:
                os.close(fd)
        finally:
            os.close(mounted)
    return _ZEROS
