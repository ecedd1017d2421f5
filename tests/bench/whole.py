"""Images that are fetched whole: how soon all can be read, beside containerd's pull, and by how many cores.

"Nothing here" is an empty cache, or a containerd that has pulled nothing yet; the registry is on loopback,
and works on the same processors. A tree is there when it is mounted and all of it can be read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.bench.engines import kinds_here
from tests.bench.layers import Layer
from tests.bench.mounted import Bench, Figure, list_small, print_figures, read_listed
from tests.bench.peers import Peer, drop_pages
from tests.bench.running import run_task
from tests.support.machine import leave_mounts_of_others
from tests.support.servers.docker_registry import DockerRegistry

_EAGER = ("--eager", "--engine", "erofs")
_WITHOUT_INDEX = "[pull_modes.soci_v2]\nenable = false\n"


def _figures(snapshotters: Sequence[str]) -> dict[str, Figure]:
    rows = [
        (
            "tree/ztoc",
            "mount --eager",
            "s",
            "an image of many files, with zTOCs, to a tree; nothing here",
        ),
        ("tree/plain", "... without zTOCs", "s", "the same, without SOCI index"),
        *(
            (f"tree/{one}", f"ctr pull, {one}", "s", "the same by containerd, pulled and mounted")
            for one in snapshotters
        ),
        ("small/complete", "small files", "1/s", "20,000 of a new mount, complete devices"),
        ("small/overlayfs", "... overlayfs", "1/s", "the same, unpacked layers"),
        ("rate/one", "one core", "MB/s", "a layer of libraries, a file, to its complete device"),
        ("rate/all", "all cores", "MB/s", "the same"),
    ]
    return {key: Figure(key, name, unit, does) for key, name, unit, does in rows}


def measure_whole(
    many: Layer, libs: Layer, work: Path, runs: int, say: Callable[[str], None]
) -> dict[str, Figure]:
    """Does everything `runs` times; the figures by key. Nothing is left in `work`."""
    leave_mounts_of_others()
    snapshotters = [kind.snapshotter for kind in kinds_here() if kind.snapshotter]
    figures = _figures(snapshotters)
    folder = work / "whole"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            registry = stack.enter_context(DockerRegistry(folder / "registry"))
            bench = Bench(folder, figures, registry.host, 2 * many.uncompressed_size)
            stack.callback(bench.unmount_all)
            bench.publish("many", [many])
            ztoc = folder / "libs.ztoc"
            bench.run("ztoc", "build", "--output", str(ztoc), str(libs.path))
            for turn in range(runs):
                say(f"whole images, round {turn + 1} of {runs}")
                _trees(bench, snapshotters, turn)
                _rates(bench, libs, ztoc)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return figures


def _trees(bench: Bench, snapshotters: Sequence[str], turn: int) -> None:
    image = f"docker://{bench.host}/many:soci"
    names = bench.folder / "names"
    settings = bench.folder / "settings.toml"
    for key, text in (("plain", _WITHOUT_INDEX), ("ztoc", "")):
        settings.write_text(text)
        bench.forget()
        with bench.settings(settings):
            bench.add(f"tree/{key}", bench.seconds_to_mount(image, *_EAGER))
    with bench.mounted(image, *_EAGER) as place:
        count = list_small(place, names)
    drop_pages(bench.cache)
    with bench.mounted(image, *_EAGER) as place:
        bench.add("small/complete", count / read_listed(place, names))
    for one in snapshotters:
        with Peer(bench.folder / f"containerd-{one}-{turn}", bench.host) as peer:
            os.sync()
            bench.add(f"tree/{one}", peer.seconds_to_pull(one, "many:soci"))
            if one == "overlayfs":
                peer.drop_pages()
                with peer.mounted(one, "many:soci") as place:
                    bench.add("small/overlayfs", count / read_listed(place, names))
        shutil.rmtree(bench.folder / f"containerd-{one}-{turn}", ignore_errors=True)


def _rates(bench: Bench, libs: Layer, ztoc: Path) -> None:
    for key, cores in (("one", "1"), ("all", "0")):
        folder = bench.folder / "device"
        shutil.rmtree(folder, ignore_errors=True)
        os.sync()
        found = run_task("complete", str(libs.path), str(ztoc), str(folder), cores)
        bench.add(f"rate/{key}", libs.uncompressed_size / found["seconds"] / 1e6)


def print_whole(figures: dict[str, Figure], many: Layer, libs: Layer) -> None:
    """The table of what was measured."""
    print()
    print(
        f"Whole images: a layer of {many.entries:,} entries, {many.compressed_size / 1e6:,.0f} MB; one of "
        f"{libs.entries:,}, {libs.uncompressed_size / 1e6:,.0f} MB"
    )
    print_figures(figures.values())
