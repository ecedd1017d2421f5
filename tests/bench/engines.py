"""The engines of mounts beside each other, and beside what containerd makes of the same image.

Each round measures one kind of mount after the other: FUSE trees, EROFS over lazy layers, an overlayfs over
unpacked layers, and containerd's EROFS snapshotter. "First" is a new mount, of whose files the kernel knows
nothing by this mount's names. Before files are read from what is here, the kernel is made to forget their
bytes, in the cache of spans as in the unpacked layers.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from soci_cli.lazy.erofs.mounting import probe
from tests.bench.layers import Layer
from tests.bench.mounted import (
    Bench,
    Figure,
    list_small,
    number,
    print_figures,
    read_all,
    read_listed,
    shell,
    task,
)
from tests.bench.peers import Peer, drop_pages, mkfs_version
from tests.bench.running import run_task
from tests.support.machine import installed_tools, leave_mounts_of_others
from tests.support.servers.containerd import NEWER, programs
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.shaping_proxy import ShapingProxy

RATE = 20e6
"""Bytes a second of the line over which a program starts."""
DELAY = 0.025
"""Seconds each way on it."""
_START = ("/usr/bin/python3", "-c", "import json, ssl, asyncio")
_MAX_FILE_SIZE = 60_000_000


@dataclass(frozen=True)
class Kind:
    """A kind of mount: of `soci` with these flags, or of a snapshotter of containerd."""

    key: str
    name: str
    flags: tuple[str, ...] = ()
    snapshotter: str = ""


KINDS = (
    Kind("fuse", "FUSE trees", flags=("--engine", "fuse")),
    Kind("erofs", "EROFS, lazy", flags=("--engine", "erofs")),
    Kind("overlayfs", "overlayfs, unpacked", snapshotter="overlayfs"),
    Kind("snapshotter", "EROFS snapshotter", snapshotter="erofs"),
)
"""What is compared; what needs a snapshotter is left out where there is none."""

_ROWS = (
    ("find", "1/s", "find -ls, first"),
    ("find_again", "1/s", "find -ls, in the same mount"),
    ("small_cold", "1/s", "20,000 small files, nothing here"),
    ("small", "1/s", "20,000 small files, spans or layers here, their bytes not in memory"),
    ("small_memory", "1/s", "the same, in memory"),
    ("libs_cold", "MB/s", "the folder of libraries, nothing here"),
    ("libs", "MB/s", "the folder of libraries, spans or layers here, their bytes not in memory"),
    ("libs_memory", "MB/s", "the same, in memory"),
    ("libs_warm", "MB/s", "the same mount again"),
    ("start", "s", "Python with json, ssl, asyncio, nothing here"),
    ("start_line", "s", "the same behind 20 MB/s and 25 ms each way"),
    ("start_share", "", "bytes fetched for that to those of the spans that hold what is read"),
    ("mount", "s", "three layers, metadata in the cache"),
    ("mount_beside", "s", "the same, while another mount is served"),
)
_LAZY_ONLY = (
    "small_cold",
    "libs_cold",
    "start",
    "start_line",
    "start_share",
    "mount",
    "mount_beside",
)


def _figures(kinds: Sequence[Kind]) -> dict[str, Figure]:
    found = {
        "plain": Figure(
            "plain", "download, inflate", "MB/s", "libraries: two threads, output forgotten"
        )
    }
    for row, unit, does in _ROWS:
        for kind in kinds:
            if kind.flags or row not in _LAZY_ONLY:
                key = f"{row}/{kind.key}"
                found[key] = Figure(key, kind.name, unit, does)
    found["mount_new/auto"] = Figure(
        "mount_new/auto", "auto, lazy", "s", "three layers, nothing in the cache"
    )
    return found


def kinds_here() -> list[Kind]:
    """Those of `KINDS` that can be measured here."""
    found = [kind for kind in KINDS if kind.flags]
    os.environ.setdefault("SOCI_TESTS_TOOLS", str(installed_tools()))
    if programs(NEWER) is not None and os.geteuid() == 0:
        found += [
            kind
            for kind in KINDS
            if kind.snapshotter == "overlayfs" or (kind.snapshotter and mkfs_version())
        ]
    return found


def measure_engines(
    layers: Sequence[Layer],
    libs: Layer,
    python: Layer | None,
    work: Path,
    runs: int,
    say: Callable[[str], None],
) -> dict[str, Figure]:
    """Does everything `runs` times; the figures by key. Nothing is left in `work`.

    `layers` are those of the image of many files, the one with most of them first; `libs` is the folder of
    large files, and in `python` programs can start.
    """
    leave_mounts_of_others()
    kinds = kinds_here()
    figures = _figures(kinds)
    folder = work / "engines"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            registry = stack.enter_context(DockerRegistry(folder / "registry"))
            bench = Bench(folder, figures, registry.host, 2 * libs.uncompressed_size)
            stack.callback(bench.unmount_all)
            peer = None
            if any(kind.snapshotter for kind in kinds):
                peer = stack.enter_context(Peer(folder / "containerd", registry.host))
            mounts = _Mounts(bench, peer)
            bench.publish("app", layers)
            bench.run("pull", "--quiet", f"{registry.host}/app:soci")
            bench.publish("many", [layers[0], layers[-1]])
            bench.publish("libs", [libs, layers[-1]])
            if python is not None:
                bench.publish("python", [python])
            for turn in range(runs):
                say(f"engines, round {turn + 1} of {runs}")
                _many(mounts, kinds)
                _large(mounts, kinds, libs)
                _mounting(bench, kinds)
                if python is not None:
                    _starting(bench, kinds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return figures


class _Mounts:
    def __init__(self, bench: Bench, peer: Peer | None) -> None:
        self.bench = bench
        self._peer = peer

    @contextmanager
    def mounted(self, kind: Kind, image: str) -> Iterator[Path]:
        """A new mount of an image of the registry."""
        if kind.flags:
            with self.bench.mounted(
                f"docker://{self.bench.host}/{image}:soci", *kind.flags
            ) as place:
                yield place
        elif self._peer is not None:
            with self._peer.mounted(kind.snapshotter, f"{image}:soci") as place:
                yield place

    def drop_pages(self, kind: Kind) -> None:
        """Lets the kernel forget the bytes of what a kind of mount reads."""
        if kind.flags:
            drop_pages(self.bench.cache)
        elif self._peer is not None:
            self._peer.drop_pages()


def _many(mounts: _Mounts, kinds: Sequence[Kind]) -> None:
    """Listing and reading many files."""
    bench = mounts.bench
    names = bench.folder / "names"
    for kind in kinds:
        with mounts.mounted(kind, "many") as place:
            count = list_small(place, names)
        if kind.flags:
            bench.forget()
            with mounts.mounted(kind, "many") as place:
                bench.add(f"small_cold/{kind.key}", count / read_listed(place, names))
        with mounts.mounted(kind, "many") as place:
            for row in ("find", "find_again"):
                start = perf_counter()
                listed = shell('find "$place" -ls | wc -l', place=place)
                bench.add(f"{row}/{kind.key}", int(listed) / (perf_counter() - start))
        mounts.drop_pages(kind)
        with mounts.mounted(kind, "many") as place:
            bench.add(f"small/{kind.key}", count / read_listed(place, names))
        with mounts.mounted(kind, "many") as place:
            bench.add(f"small_memory/{kind.key}", count / read_listed(place, names))


def _large(mounts: _Mounts, kinds: Sequence[Kind], libs: Layer) -> None:
    """A folder of large files."""
    bench = mounts.bench
    size = bench.content["libs"]
    plain = task("plain_spans", bench.host, "libs", bench.layers["libs"], str(bench.ztocs["libs"]))
    bench.add("plain", libs.uncompressed_size / plain / 1e6)
    for kind in kinds:
        if kind.flags:
            bench.forget()
            with mounts.mounted(kind, "libs") as place:
                bench.add(f"libs_cold/{kind.key}", size / read_all(place) / 1e6)
        with mounts.mounted(kind, "libs") as place:
            mounts.drop_pages(kind)
            bench.add(f"libs/{kind.key}", size / read_all(place) / 1e6)
            bench.add(f"libs_warm/{kind.key}", size / read_all(place) / 1e6)
        with mounts.mounted(kind, "libs") as place:
            bench.add(f"libs_memory/{kind.key}", size / read_all(place) / 1e6)


def _mounting(bench: Bench, kinds: Sequence[Kind]) -> None:
    """Mounting an image of three layers."""
    image = f"{bench.host}/app:soci"
    for kind in kinds:
        if not kind.flags:
            continue
        bench.forget()
        with bench.mounted(image, *kind.flags):
            pass
        bench.add(f"mount/{kind.key}", bench.seconds_to_mount(image, *kind.flags))
        with bench.mounted(f"docker://{bench.host}/libs:soci", *kind.flags):
            seconds = bench.seconds_to_mount(image, *kind.flags)
            bench.add(f"mount_beside/{kind.key}", seconds)
    bench.forget()
    bench.add("mount_new/auto", bench.seconds_to_mount(image, "--engine", "auto"))


def _starting(bench: Bench, kinds: Sequence[Kind]) -> None:
    """A program that starts in a new mount."""
    image = "python:soci"
    needed = float(run_task("spans_needed", f"{bench.host}/{image}", *_START)["fetched"])
    for kind in kinds:
        if not kind.flags:
            continue
        bench.forget()
        with bench.mounted(f"docker://{bench.host}/{image}", *kind.flags) as place:
            start = perf_counter()
            shell('chroot "$place" "$@"', *_START, place=place)
            bench.add(f"start/{kind.key}", perf_counter() - start)
            shown = json.loads(bench.run("stats", "--format", "json", str(place)))
            bench.add(f"start_share/{kind.key}", shown["demand"]["fetched"] / needed)
        with ShapingProxy(bench.host, RATE, DELAY) as proxy:
            bench.forget()
            with bench.mounted(f"docker://{proxy.host}/{image}", *kind.flags) as place:
                start = perf_counter()
                shell('chroot "$place" "$@"', *_START, place=place)
                bench.add(f"start_line/{kind.key}", perf_counter() - start)


def python_layer(work: Path) -> Layer | None:
    """A layer in which Debian's Python runs, kept in `work`; None where this machine has none."""
    if not Path(_START[0]).exists():
        return None
    path = work / "python.tar.gz"
    if not path.exists():
        part = path.with_name(path.name + ".part")
        with tarfile.open(part, "w:gz", compresslevel=6) as archive:
            for name in ("bin", "lib", "lib64"):
                if Path("/", name).is_symlink():
                    archive.add(Path("/", name), name, recursive=False)
            pythons = sorted(Path("/usr/lib").glob("python3*"))
            libraries = sorted(Path("/usr/lib").glob("*-linux-gnu/*.so*"))
            for above in (Path("/usr/bin"), Path("/usr/lib64"), *pythons, *libraries):
                if above.exists():
                    archive.add(above, str(above)[1:], filter=_plain_file)
        part.replace(path)
    return Layer("python", path, 0, 0, 0, path.stat().st_size, "zlib")


def _plain_file(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    is_plain = info.isreg() or info.isdir() or info.issym()
    return info if is_plain and info.size < _MAX_FILE_SIZE else None


def print_engines(figures: dict[str, Figure], layers: Sequence[Layer], libs: Layer) -> None:
    """The table of what was measured, what is compared together."""
    entries = layers[0].entries + layers[-1].entries
    mkfs = mkfs_version()
    print()
    print(
        f"Engines: an image of {entries:,} entries; {libs.files:,} libraries of "
        f"{libs.uncompressed_size / 1e6:,.0f} MB; containerd {NEWER}"
        + (f", mkfs.erofs {mkfs}" if mkfs else "")
    )
    print(f"{'':<14}{'':<6}" + "".join(f"{kind.name:>22}" for kind in KINDS))
    for row, unit, does in _ROWS:
        cells = [_cell(figures.get(f"{row}/{kind.key}")) for kind in KINDS]
        print(f"  {row:<12}{unit:<6}{''.join(cells)}  {does}")
    print_figures([figures["plain"], figures["mount_new/auto"]])


def _cell(figure: Figure | None) -> str:
    if figure is None or not figure.values:
        return f"{'':>22}"
    low, high = min(figure.values), max(figure.values)
    return f"{number(figure.middle) + ' ':>9}{f'[{number(low)}-{number(high)}]':>13}"


def missing_for_engines() -> list[str]:
    """What is needed and not there."""
    found = [] if shutil.which("docker-registry") else ["docker-registry"]
    with_erofs = probe(Path.cwd())
    return found if with_erofs.way is not None else [*found, with_erofs.reason]
