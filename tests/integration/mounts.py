"""Mounted images: a troublesome one, who mounts it, and all that a mounted file system says of itself.

    python -m tests.integration.mounts FOLDER

prints the facts of all files below a folder as JSON, for a test that must see them as another user does.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import stat
import struct
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from soci_cli.oci.media_types import OCI_LAYER, OCI_LAYER_ZSTD
from tests.support.commands import Done, environment
from tests.support.images import LayoutMaker, gz, noise, sha256, tar_of, zst
from tests.support.machine import PROJECT

NOBODY = 65534
PATIENCE = 60.0
"""Seconds that anything may take before a test gives up."""

TEXT = b"".join(b"line %d of a text that compresses well\n" % n for n in range(9000))
BIG = noise(1, 700_000) + TEXT
_CAPABILITY = struct.pack("<5I", 0x02000000, 1 << 13, 0, 0, 0)  # v2: cap_net_raw permitted


class Tar:
    """An archive that is made file by file."""

    def __init__(self) -> None:
        self._out = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._out, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, name: str, data: bytes | None = None, **fields: Any) -> None:
        """Adds a file, or without data a folder; `fields` are those of TarInfo, `xattrs` besides."""
        info = tarfile.TarInfo(name)
        info.type = tarfile.REGTYPE if data is not None else tarfile.DIRTYPE
        info.mode = 0o644 if data is not None else 0o755
        info.size = len(data or b"")
        info.mtime = 1_600_000_000
        xattrs: Mapping[str, bytes] = fields.pop("xattrs", {})
        info.pax_headers = {
            f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
            for key, value in xattrs.items()
        }
        if "mtime_ns" in fields:
            seconds, rest = divmod(fields.pop("mtime_ns"), 10**9)
            info.pax_headers["mtime"] = f"{seconds}.{rest:09}"
        for key, value in fields.items():
            setattr(info, key, value)
        self._tar.addfile(info, io.BytesIO(data or b""))

    def link(self, name: str, target: str, **fields: Any) -> None:
        """A hard link."""
        self.add(name, b"", type=tarfile.LNKTYPE, linkname=target, **fields)

    def symlink(self, name: str, target: str, **fields: Any) -> None:
        """A symbolic link."""
        fields.setdefault("mode", 0o777)
        self.add(name, b"", type=tarfile.SYMTYPE, linkname=target, **fields)

    def end(self) -> bytes:
        """The archive."""
        self._tar.close()
        return self._out.getvalue()


def lower_tar() -> bytes:
    """All kinds of files."""
    tar = Tar()
    tar.add("./", mode=0o755)
    tar.add("bin/")
    tar.add("bin/tool", BIG, mode=0o4755)
    tar.link("bin/hard", "bin/tool", mode=0o4755)
    tar.link("bin/harder", "./bin/hard", mode=0o4755)
    tar.symlink("bin/soft", "/bin/tool")
    tar.symlink("bin/lost", "../nowhere/at/all")
    tar.add("bin/group", b"g", mode=0o2755, uid=5, gid=7)
    tar.add("etc/", mode=0o700, uid=3, gid=4)
    tar.add("etc/hosts", b"127.0.0.1 localhost\n", uid=1, gid=2)
    tar.add("etc/late", b"late", mtime_ns=1_699_999_999_123_456_789)
    tar.add("etc/early", b"early", mtime_ns=-1_500_000_000)
    tar.add("etc/ümlaut\udcff\udc80", b"odd", mode=0o600)
    tar.add("etc/new\nline \\ tab\t", b"odder")
    tar.add("etc/" + "n" * 255, b"long")
    tar.add("deep/" + "/".join(["d" * 60] * 5) + "/file", TEXT)
    tar.add("implied/parents/of/file", b"nobody named them")
    tar.add("twice", b"the first", mode=0o600)
    tar.add("twice", b"the second one", mode=0o640, uid=9)
    tar.add("tmp/", mode=0o1777)
    tar.add("gone/")
    for number in range(3):
        tar.add(f"gone/{number}", noise(number, 3000))
    tar.add("opaque/", mode=0o711)
    tar.add("opaque/old", b"old")
    tar.add("opaque/deeper/older", b"older")
    tar.add("file-to-dir", b"file")
    tar.add("dir-to-file/x", b"x")
    tar.add("merged/below", b"below")
    tar.add("merged/both", b"below")
    tar.add("attrs", b"x", xattrs={"user.color": b"blue\xff\0"})
    tar.add("trusted", b"x", xattrs={"trusted.secret": b"1"})
    tar.add("capable", b"#!", mode=0o755, xattrs={"security.capability": _CAPABILITY})
    tar.add("attrs.d/", xattrs={"user.of": b"a folder"})
    tar.add("pipe", b"", type=tarfile.FIFOTYPE, mode=0o640)
    tar.add("null", b"", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666)
    tar.add("disk", b"", type=tarfile.BLKTYPE, devmajor=259, devminor=70_000, mode=0o660, gid=6)
    tar.add("empty", b"")
    tar.add("zeros", bytes(3_000_000))
    return tar.end()


def upper_tar() -> bytes:
    """All that an upper layer can do to a lower one."""
    tar = Tar()
    tar.add(".wh.gone", b"")
    tar.add("opaque/", mode=0o705)
    tar.add("opaque/.wh..wh..opq", b"")
    tar.add("opaque/new", b"new")
    tar.add(".wh.file-to-dir", b"")
    tar.add("file-to-dir/", mode=0o750)
    tar.add("file-to-dir/x", b"y")
    tar.add(".wh.dir-to-file", b"")
    tar.add("dir-to-file", b"now a file")
    tar.add("etc/", mode=0o750, uid=11, gid=12)
    tar.add("etc/hosts", b"10.0.0.1 other\n")
    tar.add("etc/.wh.early", b"")
    tar.add("merged/both", b"above")
    tar.add("merged/above", noise(4, 150_000))
    tar.add("tmp/later", noise(5, 100_000))
    tar.link("tmp/later-too", "tmp/later")
    return tar.end()


def whole_tars() -> list[bytes]:
    """Archives for other kinds of layers: zstd, plain, small."""
    return [
        tar_of({"whole/zstd": noise(6, 300_000), "merged/zstd": b"z", ".wh.null": b""}),
        tar_of({"whole/plain": TEXT, "merged/.wh.below": b""}),
        tar_of({"whole/small": b"a small layer", "opaque/.wh.new": b"", "opaque/top": b"top"}),
    ]


def make_odd_image(root: Path, *, all_gzip: bool = False) -> LayoutMaker:
    """A layout with an image of five layers; with --soci-min-layer-size 10 KiB three get a zTOC."""
    maker = LayoutMaker(root)
    tars = [lower_tar(), upper_tar(), *whole_tars()]
    blobs = [maker.blob(gz(tar)) for tar in (tars if all_gzip else tars[:2])]
    if not all_gzip:
        blobs.append(maker.blob(zst(tars[2]), OCI_LAYER_ZSTD))
        blobs.append(maker.blob(tars[3], OCI_LAYER))
        blobs.append(maker.blob(gz(tars[4])))
    maker.tag(maker.manifest(blobs, maker.config([sha256(tar) for tar in tars])))
    return maker


# What is there.

Fact = dict[str, Any]
Facts = dict[str, Fact]


def facts(root: Path) -> Facts:
    """All about every file below a folder, by path; what is no UTF-8 in names is escaped.

    Of folders, times and numbers of links are left out: unpacking changes them.
    """
    found: Facts = {}
    inodes: dict[tuple[int, int], list[str]] = {}
    for path in walk(os.fsencode(root)):
        name = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
        status = os.lstat(path)
        fact: Fact = {
            "mode": oct(status.st_mode),
            "owner": [status.st_uid, status.st_gid],
            "xattrs": xattrs(path),
        }
        if not stat.S_ISDIR(status.st_mode):
            fact |= {"mtime_ns": status.st_mtime_ns, "links": status.st_nlink}
            inodes.setdefault((status.st_dev, status.st_ino), []).append(name)
        if stat.S_ISREG(status.st_mode):
            fact |= {"size": status.st_size, "sha256": checksum(path)}
        elif stat.S_ISLNK(status.st_mode):
            fact["target"] = os.fsdecode(os.readlink(path))  # noqa: PTH115 - bytes
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            fact["device"] = [os.major(status.st_rdev), os.minor(status.st_rdev)]
        found[name] = fact
    for names in inodes.values():
        for name in names:
            found[name]["same"] = sorted(names)
    return found


def walk(top: bytes) -> Iterator[bytes]:
    """Every path below a folder. Raises OSError where a folder cannot be read."""

    def failed(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(top, onerror=failed):
        for name in (*folders, *files):
            yield os.path.join(folder, name)  # noqa: PTH118 - bytes


def xattrs(path: bytes) -> dict[str, str]:
    """The extended attributes of a file, values in hexadecimal."""
    found = {}
    for name in sorted(os.listxattr(path, follow_symlinks=False)):
        try:
            found[name] = os.getxattr(path, name, follow_symlinks=False).hex()
        except OSError as error:
            # trusted.* is root's, and capabilities that are none cannot be read.
            if error.errno not in (errno.ENODATA, errno.EINVAL):
                raise
    return found


def checksum(path: bytes | Path) -> str:
    with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 - bytes
        hasher = hashlib.sha256()
        while piece := stream.read(1 << 18):
            hasher.update(piece)
    return hasher.hexdigest()


def checksums(root: Path) -> dict[str, str]:
    """The checksum of every regular file below a folder."""
    return {
        os.fsdecode(os.path.relpath(path, os.fsencode(root))): checksum(path)
        for path in walk(os.fsencode(root))
        if stat.S_ISREG(os.lstat(path).st_mode)
    }


# Who mounts.


@dataclass(frozen=True)
class Person:
    """Somebody who runs `soci`: in the folder `home`, which is his, as `uid`, or as who runs the tests.

    `cache` is shared where a test says so. `prefix` is a command to run all under.
    """

    home: Path
    python: str = sys.executable
    uid: int | None = None
    extra: tuple[tuple[str, str], ...] = ()
    prefix: tuple[str, ...] = ()

    @property
    def env(self) -> dict[str, str]:
        kept = environment(self.home, **dict(self.extra))
        if self.python != sys.executable:
            kept["PYTHONPATH"] = os.pathsep.join([str(PROJECT), *filter(_is_packages, sys.path)])
        return kept

    def start(self, *command: str | Path, **more: Any) -> subprocess.Popen[bytes]:
        """Starts a program as this person."""
        more.setdefault("stdout", subprocess.PIPE)
        more.setdefault("stderr", subprocess.PIPE)
        as_user: dict[str, Any] = {}
        if self.uid is not None:
            as_user = {"user": self.uid, "group": self.uid, "extra_groups": []}
        return subprocess.Popen(
            [*self.prefix, *map(str, command)],
            stdin=subprocess.DEVNULL,
            cwd=self.home,
            env=self.env,
            **as_user,
            **more,
        )

    def run(self, *command: str | Path) -> Done:
        """Runs a program as this person."""
        with self.start(*command) as started:
            try:
                out, err = started.communicate(timeout=2 * PATIENCE)
            except subprocess.TimeoutExpired:
                started.kill()
                raise
        return Done(started.returncode, out, err.decode(errors="replace"))

    def soci(self, *arguments: str | Path) -> Done:
        """Runs `soci`."""
        return self.run(self.python, "-m", "soci_cli", *arguments)

    def start_soci(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """Starts `soci`."""
        return self.start(self.python, "-m", "soci_cli", *arguments)

    def facts(self, root: Path) -> Facts:
        """What this person sees of a folder."""
        shown = self.run(self.python, "-m", "tests.integration.mounts", root).good()
        found: Facts = json.loads(shown.out)
        return found

    @contextmanager
    def mounted(self, image: str, place: Path | None = None, *flags: str) -> Iterator[Path]:
        """An image that is mounted by a command and unmounted by another."""
        where = place or self.home / f"mount-{time.monotonic_ns()}"
        self.run("mkdir", "-p", where).good()
        done = self.soci("mount", "-q", *flags, image, where).good()
        assert done.text == f"{where}\n"
        try:
            yield where
        finally:
            ended = self.soci("umount", where)
            if ended.status:
                detach(where)
        ended.good()
        wait_for(lambda: not self.records(), "the server ends")

    def mounts(self) -> list[dict[str, Any]]:
        """What `soci mounts` says."""
        shown = self.soci("mounts", "--format", "json").good()
        return [json.loads(line) for line in shown.text.splitlines()]

    def records(self) -> list[tuple[Path, dict[str, Any]]]:
        """The folders of the mounts' states, and what is in their records."""
        found = []
        for path in (self.home / ".local" / "state" / "soci" / "mounts").glob("*/mount.json"):
            with suppress(OSError, ValueError):
                found.append((path.parent, json.loads(path.read_text())))
        return found

    def server(self) -> int:
        """The process that serves the one mount."""
        ((_, record),) = self.records()
        return int(record["pid"])

    def log(self) -> str:
        """What the server of the one mount wrote down."""
        ((folder, _),) = self.records()
        return (folder / "log").read_text(errors="replace")


def _is_packages(path: str) -> bool:
    return path.endswith("site-packages")


def detach(place: Path) -> None:
    """Takes a mount away that a failed test left, whatever it takes."""
    for command in (["umount", "-l"], ["fusermount3", "-uz"]):
        with suppress(OSError):
            subprocess.run([*command, str(place)], capture_output=True, check=False)


def wait_for(ready: Callable[[], object], what: str) -> None:
    """Waits until something is so."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def python_for(uid: int) -> str:
    """A Python that this user may run and that finds the packages; the test is skipped without one."""
    version = f"python3.{sys.version_info[1]}"
    packages = os.pathsep.join([str(PROJECT), *filter(_is_packages, sys.path)])
    for python in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        with suppress(OSError):
            done = subprocess.run(
                [python, "-c", "import soci_cli.commands, zlib_ng.zlib_ng, zstandard, oras.client"],
                env={**os.environ, "PYTHONPATH": packages, "HOME": "/"},
                capture_output=True,
                user=uid,
                group=uid,
                extra_groups=[],
                check=False,
            )
            if done.returncode == 0:
                return python
    pytest.skip(f"no Python that user {uid} may run")


def main(arguments: Sequence[str]) -> None:
    json.dump(facts(Path(arguments[0])), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
