"""Layers to measure with, made of the machine's own files.

Real files matter here: how fast a layer inflates depends on how well it compresses. A layer is kept
with a record of how it was made, and made again when that is asked for in another way. Only files and
folders that everyone may read are taken.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import stat
import sys
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

_FORMAT = 1  # goes up when layers are made in another way
_LEVEL = 6
_MAX_FILE_SIZE = 60_000_000
_FILES_PER_LINK = 50
_BLOCK = tarfile.BLOCKSIZE
_MAX_SURPLUS = 10  # times as many files to choose among as are needed, before it must do
_MAX_PASSES = 200


@dataclass(frozen=True)
class Shape:
    """What a layer shall be: `files` regular files and about `size` bytes of tar archive.

    Shapes that differ only in name and `order` have the same files, folder by folder in another order.
    """

    name: str
    files: int
    size: int
    seed: int = 1
    order: int = 0

    def scaled(self, factor: float) -> Shape:
        return replace(
            self,
            files=max(10, round(self.files * factor)),
            size=max(100_000, round(self.size * factor)),
        )


@dataclass(frozen=True)
class Layer:
    """A layer that was made. Sizes are in bytes; `entries` counts folders and links, too."""

    name: str
    path: Path
    files: int
    entries: int
    uncompressed_size: int
    compressed_size: int
    compressor: str


class Item(NamedTuple):
    """A file or link to put into a layer, under its path behind `prefix`."""

    prefix: str
    path: str
    size: int

    @property
    def folder(self) -> str:
        return self.prefix + os.path.dirname(self.path).strip("/")  # noqa: PTH120 - many of them

    @property
    def name(self) -> str:
        return self.prefix + self.path.strip("/")

    @property
    def cost(self) -> int:
        """Bytes that a file of this size takes in a tar archive."""
        return _BLOCK + -(-self.size // _BLOCK) * _BLOCK


def default_sources() -> list[Path]:
    """Where a machine has files: its programs, their data, and this Python."""
    return [Path("/usr"), Path("/var/lib"), Path(sys.base_prefix)]


def library_sources() -> list[Path]:
    """Where a machine has libraries and compilers: few and large files; where it has none, /usr/lib."""
    patterns = ("*-linux-gnu", "llvm-*", "jvm", "gcc")
    found = [path for pattern in patterns for path in sorted(Path("/usr/lib").glob(pattern))]
    return [path for path in found if path.is_dir()] or [Path("/usr/lib")]


def find_layer(shape: Shape, sources: Sequence[Path], work: Path) -> Layer | None:
    """The layer as an earlier call made it, or None when there is none of this shape."""
    layer = _layer_path(shape, work)
    try:
        record = json.loads(_record_path(shape, work).read_text())
        if record["parameters"] != _parameters(shape, sources):
            return None
        made = Layer(path=layer, **record["layer"])
        return made if layer.stat().st_size == made.compressed_size else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def make_layers(
    shapes: Sequence[Shape], sources: Sequence[Path], work: Path, excluded: Sequence[Path]
) -> None:
    """Makes layers; find_layer() finds them afterwards."""
    files, links = collect(sources, [work, *excluded])
    if not files:
        raise SystemExit(f"no files to make layers of in {', '.join(map(str, sources))}")
    for shape in shapes:
        _record_path(shape, work).unlink(missing_ok=True)
        chosen = choose(files, shape.files, shape.size, shape.seed)
        count = min(len(links), shape.files // _FILES_PER_LINK)
        chosen += random.Random(shape.seed).sample(links, count)
        made = _write(_layer_path(shape, work), shape, chosen)
        details = {name: value for name, value in asdict(made).items() if name != "path"}
        _record_path(shape, work).write_text(
            json.dumps({"parameters": _parameters(shape, sources), "layer": details}, indent=2)
        )


def _layer_path(shape: Shape, work: Path) -> Path:
    return work / f"{shape.name}.tar.gz"


def _record_path(shape: Shape, work: Path) -> Path:
    return work / f"{shape.name}.json"


def _parameters(shape: Shape, sources: Sequence[Path]) -> dict[str, Any]:
    return {"format": _FORMAT, "level": _LEVEL, "sources": [*map(str, sources)], **asdict(shape)}


def collect(sources: Sequence[Path], excluded: Sequence[Path]) -> tuple[list[Item], list[Item]]:
    """The regular files and the symbolic links under `sources`, each file (by inode) once."""
    files: list[Item] = []
    links: list[Item] = []
    seen: set[tuple[int, int]] = set()
    tops = {os.path.realpath(source) for source in sources}
    left_out = {os.path.realpath(path) for path in excluded}
    for top in sorted(tops):
        for folder, folders, names in os.walk(top):
            if folder in left_out or (folder in tops and folder != top):
                folders.clear()
                continue
            open_folders = []
            for name in sorted(folders):
                path = os.path.join(folder, name)  # noqa: PTH118 - many of them
                info = _lstat(path)
                if info and stat.S_ISLNK(info.st_mode):
                    links.append(Item("", path, 0))
                elif info and info.st_mode & 0o005 == 0o005:
                    open_folders.append(name)
            folders[:] = open_folders
            for name in sorted(names):
                path = os.path.join(folder, name)  # noqa: PTH118
                info = _lstat(path)
                if not info:
                    continue
                if stat.S_ISLNK(info.st_mode):
                    links.append(Item("", path, 0))
                elif (
                    stat.S_ISREG(info.st_mode)
                    and info.st_mode & 0o004
                    and info.st_size < _MAX_FILE_SIZE
                    and (info.st_dev, info.st_ino) not in seen
                    and os.access(path, os.R_OK)
                ):
                    seen.add((info.st_dev, info.st_ino))
                    files.append(Item("", path, info.st_size))
    return files, links


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def choose(files: Sequence[Item], count: int, total: int, seed: int) -> list[Item]:
    """`count` files that take about `total` bytes as a tar archive, the same for the same arguments.

    Where there are too few files, or too small or large ones, files come again under other names.
    """
    pool = list(files)
    copy = 1
    while len(pool) < count * _MAX_SURPLUS:
        costs = sorted(item.cost for item in pool)
        spare = len(pool) >= count * 5 // 4
        if spare and sum(costs[:count]) < total * 0.9 and sum(costs[-count:]) > total * 1.1:
            break
        copy += 1
        pool += [item._replace(prefix=f"copy-{copy}/") for item in files]
    rng = random.Random(seed)
    rng.shuffle(pool)
    chosen, rest = pool[:count], pool[count:]
    over = sum(item.cost for item in chosen) - total
    for _ in range(_MAX_PASSES):
        for index, item in enumerate(rest):
            if abs(over) < total // 1000:
                return chosen
            other = rng.randrange(len(chosen))
            change = item.cost - chosen[other].cost
            if abs(over + change) < abs(over):
                rest[index], chosen[other] = chosen[other], item
                over += change
    return chosen


def _write(path: Path, shape: Shape, items: Sequence[Item]) -> Layer:
    """Writes a layer, its folders sorted or, with an `order`, shuffled."""
    folders: dict[str, list[Item]] = defaultdict(list)
    for item in sorted(items):
        folders[item.folder].append(item)
    names = sorted(folders)
    if shape.order:
        random.Random(shape.order).shuffle(names)
    files = entries = 0
    made: set[str] = set()
    part = path.with_name(path.name + ".part")
    with (
        part.open("wb") as raw,
        gzip.GzipFile("", "wb", _LEVEL, raw, 0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for folder in names:
            parts = folder.split("/")
            for depth in range(1, len(parts) + 1):
                parent = "/".join(parts[:depth])
                if parent not in made:
                    made.add(parent)
                    entries += 1
                    info = _header(parent, tarfile.DIRTYPE, 0o755, 1_700_000_000)
                    tar.addfile(info)
            for item in folders[folder]:
                try:
                    status = os.lstat(item.path)
                    mode, seconds = stat.S_IMODE(status.st_mode), int(status.st_mtime)
                    if stat.S_ISLNK(status.st_mode):
                        info = _header(item.name, tarfile.SYMTYPE, 0o777, seconds)
                        info.linkname = os.readlink(item.path)  # noqa: PTH115
                        data = b""
                    else:
                        data = Path(item.path).read_bytes()
                        info = _header(item.name, tarfile.REGTYPE, mode, seconds)
                        info.size = len(data)
                        files += 1
                except OSError:
                    continue  # gone since it was listed
                entries += 1
                tar.addfile(info, BytesIO(data))
        tar.close()
        size = compressed.tell()
    part.replace(path)
    compressor = f"zlib {zlib.ZLIB_RUNTIME_VERSION}, level {_LEVEL}"
    return Layer(shape.name, path, files, entries, size, path.stat().st_size, compressor)


def _header(name: str, kind: bytes, mode: int, seconds: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = kind, mode, max(0, seconds)
    info.uname = info.gname = "root"
    return info
