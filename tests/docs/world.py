"""The machine that the documents speak of: its files and images, and a shell on it."""

from __future__ import annotations

import fcntl
import os
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path

from soci_cli.closing import Closing
from tests.support.images import GOLDEN, LayoutMaker, gz, sha256, zst
from tests.support.machine import PROJECT

_GCC = "usr/lib/gcc"
_PYTHON = "usr/lib/python3.11"
_OS = 'r"""OS routines for NT or Posix depending on what system we\'re on.\n"""\n'
_SOCKET = Path("/run/containerd/containerd.sock")
_DONE = "--done--"
_SECONDS = 120


def make_files(root: Path) -> None:
    """Two folders of libraries, of which each makes a layer of more than 10 MiB."""
    source = random.Random(11)
    large = source.randbytes(6 << 20)
    files: dict[str, bytes] = {
        f"{_GCC}/x86_64-linux-gnu/12/cc1": large + source.randbytes(5 << 20) + bytes(9 << 20),
        f"{_GCC}/x86_64-linux-gnu/12/include/stddef.h": b"#define NULL 0\n" * 40,
        f"{_PYTHON}/fileinput.py": b"import io\n" * 1500,
        f"{_PYTHON}/json/__init__.py": b"def dumps(obj):\n    return str(obj)\n\n" * 37,
        f"{_PYTHON}/json/__pycache__/scanner.cpython-311.pyc": source.randbytes(3000),
        f"{_PYTHON}/lib-dynload/_ssl.so": source.randbytes(5 << 20) + large + bytes(8 << 20),
        f"{_PYTHON}/os.py": _OS.encode() + b"import abc\n" * 3500,
    }
    for name in ("decoder", "encoder", "scanner", "tool"):
        files[f"{_PYTHON}/json/{name}.py"] = b"import re\n" * 900
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for folder, _, names in os.walk(root):
        for path in (Path(folder), *(Path(folder, name) for name in names)):
            os.utime(path, (1_745_849_508, 1_745_849_508))


def make_images(root: Path) -> None:
    """`app` and `app-zstd` of these folders, `mp` for several platforms, and a layer of its own."""
    layers = []
    for folder in (_GCC, _PYTHON):
        path = root / "layer.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            tar.add(root / folder, folder)
        layers.append(path.read_bytes())
    path.unlink()
    diff_ids = [sha256(layer) for layer in layers]
    compressed = [gz(layer, 1) for layer in layers]
    maker = LayoutMaker(root / "app")
    parts = [maker.blob(layer) for layer in compressed]
    maker.tag(maker.manifest(parts, maker.config(diff_ids)), "1.0")
    maker = LayoutMaker(root / "app-zstd")
    zstd = "application/vnd.oci.image.layer.v1.tar+zstd"
    parts = [maker.blob(zst(layer), zstd) for layer in layers]
    maker.tag(maker.manifest(parts, maker.config(diff_ids)), "1.0")
    shutil.copytree(GOLDEN / "images" / "multi-platform", root / "mp")
    (root / "layer.tar.gz").write_bytes(compressed[1])


class World(Closing):
    """A shell in `home`, root's, with the network and the socket of containerd to itself.

    `images` has what `make_files` and `make_images` made. The shell knows it as $IMAGES; it
    seems to be in /home/me.
    """

    def __init__(self, home: Path, images: Path, containerd: str | None) -> None:
        home.mkdir()
        self.home = home
        bin_ = Path(sys.executable).parent
        environment = {
            "HOME": str(home),
            "IMAGES": str(images),
            "LC_ALL": "C.UTF-8",
            "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
            "PROJECT": str(PROJECT),
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(PROJECT),
            "SOCI_ROOT": "store",
            "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
        }
        prepare = [sys.executable, "-m", "tests.docs.world", containerd or ""]
        self._shell = subprocess.Popen(
            ["unshare", "--mount", "--net", *prepare],
            cwd=home,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._unread = b""
        self.run("true")

    def run(self, command: str, lines: int = 0) -> tuple[int, list[str]]:
        """The exit status of a command and the lines that it prints; of one in the background, `lines`."""
        for shown, real in (
            (f" /{_GCC} /{_GCC}", f' "$IMAGES/{_GCC}" /{_GCC}'),
            (f" -C / {_PYTHON}", f' -C "$IMAGES" {_PYTHON}'),
        ):
            command = command.replace(shown, real)
        command = command.replace(f" /{_PYTHON} /{_PYTHON}", f' "$IMAGES/{_PYTHON}" /{_PYTHON}')
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{{\n{command}\n}} < /dev/null\necho {_DONE} $?\n".encode())
        self._shell.stdin.flush()
        printed: list[str] = []
        status = None
        while status is None or (command.endswith("&") and len(printed) < lines):
            line = self._line()
            text, done, number = line.rpartition(f"{_DONE} ")
            if not done:
                printed.append(line)
                continue
            status = int(number)
            if text:  # the last line of the output had no end
                printed.append(text)
        return status, [line.replace(str(self.home), "/home/me") for line in printed]

    def _line(self) -> str:
        assert self._shell.stdout is not None
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._shell.stdout], [], [], _SECONDS)
            piece = os.read(self._shell.stdout.fileno(), 1 << 16) if ready else b""
            assert piece, f"the shell ended, or hangs: {self._unread!r}"
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def close(self) -> None:
        """Unmounts what is mounted, and ends all that was started."""
        with suppress(OSError, AssertionError):
            self.run("cd ~ && soci umount --force --all 2> /dev/null")
        with suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.wait()
        for stream in (self._shell.stdin, self._shell.stdout):
            assert stream is not None
            stream.close()


def _prepare(containerd: str) -> None:
    """In namespaces that are new: loopback, and containerd where everybody looks for it; then the shell."""
    with socket.socket() as any_:
        loopback = struct.pack("16sh14x", b"lo", 0x41)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(any_, 0x8914, loopback)  # SIOCSIFFLAGS
    if _SOCKET.parent.exists() or containerd:
        _SOCKET.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", _SOCKET.parent], check=True)
    if containerd:
        _SOCKET.symlink_to(containerd)
    os.execvp("bash", ["bash", "--noprofile", "--norc"])


if __name__ == "__main__":
    _prepare(sys.argv[1])
