"""What measurements of mounts share: a registry's images, mounts of them, and how they are read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter, sleep
from urllib.request import urlopen

from soci_cli.ztoc import decode_ztoc
from tests.bench.layers import Layer
from tests.bench.running import run_task
from tests.bench.tasks import make_image

_SOCI = [sys.executable, "-m", "soci_cli"]
_ROOT = Path(__file__).resolve().parents[2]
SMALL = 16 << 10
"""Bytes of a small file at most."""
_SMALL_FILES = 20_000
_PAUSE = 0.3
_END_SECONDS = 30.0


class ReadingError(RuntimeError):
    """A measurement that did not work out."""


@dataclass
class Figure:
    """One thing that is measured, a value in each round."""

    key: str
    name: str
    unit: str
    does: str
    values: list[float] = field(default_factory=list)
    note: str = ""
    """Why there are no values."""

    @property
    def middle(self) -> float:
        """The median of the rounds."""
        return median(self.values)

    def ratio(self, other: Figure) -> float:
        """The median of the rounds' ratios of this one's to the other's."""
        pairs = zip(self.values, other.values, strict=True)
        return median(mine / others for mine, others in pairs)


def read_all(place: Path) -> float:
    """Reads every file below a folder and forgets it; the seconds."""
    start = perf_counter()
    shell('find "$place" -type f -print0 | xargs -0 cat >/dev/null', place=place)
    return perf_counter() - start


def list_small(place: Path, names: Path) -> int:
    """Writes down 20,000 small files, relative to the folder, as `find` lists them; their number."""
    command = 'cd "$place" && find . -type f -size -"$size"c -print0'
    found = shell(command, place=place, size=SMALL).split("\0")[:_SMALL_FILES]
    names.write_bytes(b"\0".join(os.fsencode(name) for name in found if name))
    return len(found)


def read_listed(place: Path, names: Path) -> float:
    start = perf_counter()
    shell('cd "$place" && xargs -0 -a "$names" cat >/dev/null', place=place, names=names)
    return perf_counter() - start


def resident(pid: int) -> int:
    """Bytes of memory that a process has now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ReadingError(f"process {pid} has ended")


def shell(command: str, *arguments: str, env: dict[str, str] | None = None, **names: object) -> str:
    """Runs a pipeline of the shell, which must succeed; its stdout."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command, "bash", *arguments],
        capture_output=True,
        env={**(env or os.environ), **{name: str(value) for name, value in names.items()}},
        check=False,
    )
    if done.returncode:
        raise ReadingError(f"{command}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return os.fsdecode(done.stdout)


def task(task: str, *arguments: str) -> float:
    """Runs a task of tasks.py; the seconds that it measured."""
    return float(run_task(task, *arguments)["seconds"])


def print_figures(figures: Iterable[Figure]) -> None:
    """The rows of a table."""
    print(f"{'':<24}{'median':>9} {'min-max':>17} {'unit':<5} what")
    for one in figures:
        if not one.values:
            print(f"  {one.name:<22}{one.note or 'not measured'}")
            continue
        spread = f"{number(min(one.values))}-{number(max(one.values))}"
        print(f"  {one.name:<22}{number(one.middle):>9} {spread:>17} {one.unit:<5} {one.does}")
    print("MB/s: of content")


def number(value: float) -> str:
    """A figure for a table."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


class Bench:
    """`soci` as its user has it, with folders of its own and images in a registry at `host`."""

    def __init__(self, folder: Path, figures: dict[str, Figure], host: str, needed: int) -> None:
        """`needed` bytes of memory are used in a cold run."""
        self.folder = folder
        self.figures = figures
        self.host = host
        self._needed = needed
        self.ztocs: dict[str, Path] = {}
        self.layers: dict[str, str] = {}
        self.content: dict[str, int] = {}
        self.cache, self._state = folder / "cache", folder / "state"
        self._mounts = 0
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        self._env = {
            **kept,
            "PYTHONPATH": str(_ROOT),
            "SOCI_ROOT": str(folder / "store"),
            "SOCI_CACHE": str(self.cache),
            "SOCI_STATE": str(self._state),
        }

    def add(self, key: str, value: float) -> None:
        self.figures[key].values.append(value)

    def publish(self, name: str, layers: Sequence[Layer]) -> None:
        """Puts an image into the registry, indexed. What its first layer is called is kept."""
        image = self.folder / name
        make_image(image, [str(layer.path) for layer in layers])
        place = f"docker://{self.host}/{name}:soci"
        convert = ("image", "convert", "--quiet", "--soci", "--soci-min-layer-size=0")
        self.run(*convert, f"oci:{image}:latest", place)
        shown = json.loads(self.run("image", "inspect", "--format", "json", place))
        layer = shown["manifests"][0]["layers"][0]
        self.layers[name] = layer["digest"]
        self.ztocs[name] = self.folder / f"{name}.ztoc"
        url = f"http://{self.host}/v2/{name}/blobs/{layer['ztoc']['digest']}"
        with urlopen(url) as answer:
            self.ztocs[name].write_bytes(answer.read())
        files = decode_ztoc(self.ztocs[name].read_bytes()).files
        self.content[name] = sum(entry.uncompressed_size for entry in files if entry.has_data)
        shutil.rmtree(image)

    def run(self, *arguments: str) -> str:
        """Runs `soci`, which must succeed; its stdout."""
        done = subprocess.run([*_SOCI, *arguments], capture_output=True, env=self._env, check=False)
        if done.returncode:
            text = done.stderr.decode(errors="replace").strip()
            raise ReadingError(f"soci {' '.join(arguments[:3])}: {text[-300:]}")
        return done.stdout.decode(errors="replace")

    @contextmanager
    def settings(self, file: Path) -> Iterator[None]:
        """What is run meanwhile has these settings."""
        self._env["SOCI_CONFIG"] = str(file)
        try:
            yield
        finally:
            del self._env["SOCI_CONFIG"]

    def shell(self, command: str, **names: object) -> str:
        """Runs a pipeline whose "$@" is `soci`."""
        return shell(command, *_SOCI, env=self._env, **names)

    def forget(self) -> None:
        """Empties the cache."""
        shutil.rmtree(self.cache, ignore_errors=True)
        # What a virtual machine has given back to its host is slow to get again, whoever asks for it.
        touched = self.folder / "touched"
        with touched.open("wb") as stream:
            for _ in range(self._needed >> 20):
                stream.write(bytes(1 << 20))
        touched.unlink()
        os.sync()
        sleep(_PAUSE)

    @contextmanager
    def mounted(self, image: str, *flags: str) -> Iterator[Path]:
        """A mount without background fetching; it has ended when the `with` has."""
        self._mounts += 1
        others = len(self._servers())
        place = self.folder / f"mount-{self._mounts}"
        place.mkdir()
        self.run("mount", "--quiet", "--no-background-fetch", *flags, image, str(place))
        try:
            yield place
        finally:
            self.run("umount", str(place))
            deadline = monotonic() + _END_SECONDS
            while len(self._servers()) > others and monotonic() < deadline:
                sleep(0.01)
            place.rmdir()

    def seconds_to_mount(self, image: str, *flags: str) -> float:
        """How long mounting takes, as who waits for the command sees it."""
        start = perf_counter()
        with self.mounted(image, *flags):
            return perf_counter() - start

    def server(self) -> int:
        """The process that serves the one mount."""
        (pid,) = self._servers()
        return pid

    def unmount_all(self) -> None:
        """Ends what an error left."""
        with suppress(ReadingError):
            self.run("umount", "--all", "--force")

    def _servers(self) -> list[int]:
        found = []
        for path in self._state.glob("mounts/*/mount.json"):
            with suppress(OSError, ValueError):
                found.append(int(json.loads(path.read_text())["pid"]))
        return found
