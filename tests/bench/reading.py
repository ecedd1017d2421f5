"""Reading images that stay in a registry: mounts and `soci cat`, timed from outside.

A docker-registry on loopback holds the images, also behind a proxy that makes its line slow and long. The
processes of the registry, of the proxy and of the mount work on the same processors as who reads. "Cold"
is an empty cache and a new mount, "warm" a full cache and a new mount, whose files the kernel does not
know yet.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

from soci_cli.ztoc import Ztoc, decode_ztoc
from tests.bench.layers import Layer
from tests.bench.mounted import (
    SMALL,
    Bench,
    Figure,
    ReadingError,
    list_small,
    print_figures,
    read_all,
    read_listed,
    resident,
    shell,
    task,
)
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.shaping_proxy import ShapingProxy

RATE = 50e6
"""Bytes a second of the shaped line."""
DELAY = 0.02
"""Seconds each way on it."""
_LARGE_BYTES = 1_000_000_000  # what is read ten times
_TIMES = 10
_OVERHEAD = 64 << 10  # bytes of manifests, indexes and HTTP when one file is read


def _figures() -> dict[str, Figure]:
    return {
        key: Figure(key, name, unit, does)
        for key, name, unit, does in (
            (
                "plain",
                "download, inflate",
                "MB/s",
                "two threads: ranges, sha256, inflate; forgotten",
            ),
            ("cold", "mount, cold", "MB/s", "find | xargs cat of the folder"),
            ("cold_ratio", "... to the first", "", "in the same round"),
            ("cached", "mount, from cache", "MB/s", "the same, a new mount, spans in the cache"),
            ("warm", "mount, warm", "MB/s", "the same mount again"),
            ("shaped", "mount, shaped line", "MB/s", "the same, cold, 50 MB/s and 20 ms"),
            (
                "line",
                "... of the line",
                "",
                "the layer's bytes to what the line carries in that time",
            ),
            ("copy", "soci cp, cold", "MB/s", "the folder as tar, no mount"),
            ("tar", "tar -xzf", "MB/s", "the eager way: the layer's file unpacked on disk"),
            ("ratar_index", "ratarmount, first", "MB/s", "the layer's file indexed and mounted"),
            ("ratar", "ratarmount", "MB/s", "find | xargs cat, index there, the layer on disk"),
            ("mount", "soci mount", "s", "three layers, zTOCs in the store"),
            ("small", "small files, warm", "1/s", "xargs cat of 20,000, spans in the cache"),
            ("small_listed", "... listed before", "1/s", "the same, by find in the same mount"),
            ("small_cold", "small files, cold", "1/s", "the same, nothing in the cache"),
            ("find", "find -ls", "1/s", "once known to the kernel"),
            ("find_first", "find -ls, first", "1/s", "nothing known to the kernel"),
            ("cat", "soci cat", "MB", "bytes that travel for one small file"),
            (
                "cat_share",
                "... of what may",
                "",
                "the zTOC, one span, and 64 KiB of documents and HTTP",
            ),
            ("cat_seconds", "... takes", "s", "zTOC not here yet"),
            ("rss", "memory", "MB", "of the server of one layer's mount, all files listed"),
            ("rss_once", "memory, 1 GB once", "MB", "after a gigabyte was read, cold"),
            ("rss_after", "memory, 1 GB 10 times", "MB", "after it was read ten times"),
            ("rss_growth", "... to once", "", "whether it is flat"),
        )
    }


def measure_reading(
    layers: Sequence[Layer],
    libs: Layer,
    few: Layer,
    work: Path,
    runs: int,
    say: Callable[[str], None],
) -> dict[str, Figure]:
    """Does everything `runs` times; the figures by key. Nothing is left in `work`.

    `layers` are those of the image of many files, the one with most of them first; `libs` is the folder of
    large files.
    """
    figures = _figures()
    folder = work / "reading"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            registry = stack.enter_context(DockerRegistry(folder / "registry"))
            # Once in the cache, once in what the kernel keeps of the mount.
            bench = Bench(folder, figures, registry.host, 2 * libs.uncompressed_size)
            stack.callback(bench.unmount_all)
            bench.publish("libs", [libs])
            bench.publish("few", [few])
            bench.publish("app", layers)
            bench.publish("many", layers[:1])
            bench.run("pull", "--quiet", f"{registry.host}/app:soci")
            for number in range(runs):
                say(f"reading, round {number + 1} of {runs}")
                _large(bench, libs)
                _shaped(bench, libs)
                _many(bench)
            say("reading, once")
            _cat(bench, few)
            _memory(bench)
            _eager(bench, libs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return figures


def _large(bench: Bench, libs: Layer) -> None:
    """A folder of large files: downloaded and inflated, cold, and warm."""
    ztoc = bench.ztocs["libs"]
    plain = task("plain_spans", bench.host, "libs", bench.layers["libs"], str(ztoc))
    bench.add("plain", libs.uncompressed_size / plain / 1e6)
    image, size = f"docker://{bench.host}/libs:soci", bench.content["libs"]
    bench.forget()
    with bench.mounted(image) as place:
        seconds = read_all(place)
        bench.add("warm", size / read_all(place) / 1e6)
    bench.add("cold", size / seconds / 1e6)
    bench.add("cold_ratio", plain / seconds)
    with bench.mounted(image) as place:
        bench.add("cached", size / read_all(place) / 1e6)
    bench.forget()
    start = perf_counter()
    bench.shell('"$@" cp -q "$image" / - | cat >/dev/null', image=image)
    bench.add("copy", size / (perf_counter() - start) / 1e6)


def _shaped(bench: Bench, libs: Layer) -> None:
    with ShapingProxy(bench.host, RATE, DELAY) as proxy:
        bench.forget()
        with bench.mounted(f"docker://{proxy.host}/libs:soci") as place:
            seconds = read_all(place)
    bench.add("shaped", bench.content["libs"] / seconds / 1e6)
    bench.add("line", libs.compressed_size / RATE / seconds)


def _many(bench: Bench) -> None:
    """An image of many files."""
    image = f"{bench.host}/app:soci"
    names = bench.folder / "names"
    bench.forget()
    start = perf_counter()
    with bench.mounted(image) as place:
        bench.add("mount", perf_counter() - start)
        count = list_small(place, names)
    with bench.mounted(image) as place:
        bench.add("small_cold", count / read_listed(place, names))
    with bench.mounted(image) as place:
        bench.add("small", count / read_listed(place, names))
    with bench.mounted(image) as place:
        shell('find "$place" >/dev/null', place=place)
        bench.add("small_listed", count / read_listed(place, names))
    with bench.mounted(image) as place:
        for key in ("find_first", "find"):
            start = perf_counter()
            listed = shell('find "$place" -ls | wc -l', place=place)
            bench.add(key, int(listed) / (perf_counter() - start))


def _cat(bench: Bench, few: Layer) -> None:
    """One small file of a large layer: what travels is at most its zTOC and one span."""
    data = bench.ztocs["few"].read_bytes()
    ztoc = decode_ztoc(data)
    name, span = _pick(ztoc)
    first, end = ztoc.spans.compressed_range(span)
    with ShapingProxy(bench.host) as proxy:
        bench.forget()
        before = proxy.carried().down
        start = perf_counter()
        bench.run("cat", f"docker://{proxy.host}/few:soci", f"/{os.fsdecode(name)}")
        bench.add("cat_seconds", perf_counter() - start)
        carried = proxy.carried().down - before
    bench.add("cat", carried / 1e6)
    bench.add("cat_share", carried / (len(data) + end - first + _OVERHEAD))


def _pick(ztoc: Ztoc) -> tuple[bytes, int]:
    """A small file in the middle of a layer that lies in one span, and the span."""
    files = [entry for entry in ztoc.files if entry.has_data and entry.uncompressed_size]
    small = [entry for entry in files if entry.uncompressed_size <= SMALL] or files
    middle = ztoc.uncompressed_archive_size // 2
    small.sort(key=lambda entry: abs(entry.uncompressed_offset - middle))
    for entry in small:
        span = ztoc.spans.span_of(entry.uncompressed_offset)
        last = entry.uncompressed_offset + entry.uncompressed_size - 1
        if ztoc.spans.span_of(last) == span:
            return entry.name, span
    raise ReadingError("no file lies in one span")


def _memory(bench: Bench) -> None:
    names = bench.folder / "names"
    bench.forget()
    with bench.mounted(f"docker://{bench.host}/many:soci") as place:
        shell('find "$place" -ls >/dev/null', place=place)
        pid = bench.server()
        bench.add("rss", resident(pid) / 1e6)
        _list_large(place, names)
        task("read_again", str(names), "1")
        once = resident(pid)
        task("read_again", str(names), str(_TIMES - 1))
        after = resident(pid)
    bench.add("rss_once", once / 1e6)
    bench.add("rss_after", after / 1e6)
    bench.add("rss_growth", after / once)


def _eager(bench: Bench, libs: Layer) -> None:
    """What there is without lazy loading: unpacking, and ratarmount of a file on disk."""
    target = bench.folder / "unpacked"
    target.mkdir()
    os.sync()
    start = perf_counter()
    shell('tar -xzf "$layer" -C "$target"', layer=libs.path, target=target)
    size = bench.content["libs"]
    bench.add("tar", size / (perf_counter() - start) / 1e6)
    shutil.rmtree(target)
    ratarmount = shutil.which("ratarmount")  # pip install ratarmount, in an environment of its own
    if ratarmount is None:
        for key in ("ratar_index", "ratar"):
            bench.figures[key].note = "not installed"
        return
    for key in ("ratar_index", "ratar"):
        target.mkdir(exist_ok=True)
        command = '"$program" -P 2 --index-file "$index" "$layer" "$target" >/dev/null 2>&1'
        index = bench.folder / "index"
        start = perf_counter()
        try:
            shell(command, program=ratarmount, index=index, layer=libs.path, target=target)
        except ReadingError:
            bench.figures[key].note = "failed: it cannot mount here"
            continue
        mounted = perf_counter() - start
        try:
            if key == "ratar_index":
                bench.add(key, size / mounted / 1e6)
            else:
                bench.add(key, size / read_all(target) / 1e6)
        finally:
            shell('fusermount3 -u "$target" || umount "$target"', target=target)


def _list_large(place: Path, names: Path) -> None:
    """Writes down the largest files, a gigabyte of them."""
    command = 'find "$place" -type f -printf "%s %p\\0" | sort -z -n -r'
    found = shell(command, place=place).split("\0")
    total, chosen = 0, []
    for line in filter(None, found):
        size, _, name = line.partition(" ")
        chosen.append(name)
        total += int(size)
        if total >= _LARGE_BYTES:
            break
    names.write_bytes(b"\0".join(map(os.fsencode, chosen)))


def print_reading(figures: dict[str, Figure], layers: Sequence[Layer], libs: Layer) -> None:
    """The table of what was measured."""
    entries = sum(layer.entries for layer in layers)
    size = sum(layer.compressed_size for layer in layers)
    print()
    print(
        f"Reading: {libs.files:,} files of {libs.uncompressed_size / 1e6:,.0f} MB in "
        f"{libs.compressed_size / 1e6:,.0f} MB; an image of {len(layers)} layers, "
        f"{size / 1e6:,.0f} MB, {entries:,} entries"
    )
    print_figures(figures.values())


def missing_for_reading() -> list[str]:
    """What is needed to mount and to serve, and is not there."""
    fuse = [] if os.access("/dev/fuse", os.R_OK | os.W_OK) else ["/dev/fuse"]
    registry = [] if shutil.which("docker-registry") else ["docker-registry"]
    return [*registry, *fuse]
