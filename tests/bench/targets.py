"""What the benchmark's figures must be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.building import Measurement
from tests.bench.layers import Layer
from tests.bench.mounted import Figure
from tests.bench.registries import (
    Timing,
)


@dataclass(frozen=True)
class Target:
    """A figure that must not be exceeded."""

    name: str
    limit: float
    ratio: float

    bound = "at most"

    @property
    def met(self) -> bool:
        return self.ratio <= self.limit


@dataclass(frozen=True)
class Floor(Target):
    """A figure that must be reached."""

    bound = "at least"

    @property
    def met(self) -> bool:
        return self.ratio >= self.limit


def find_targets(measurements: Sequence[Measurement], few: Layer, many: Layer) -> list[Target]:
    """The targets, and what was measured of them."""
    by_key = {one.key: one for one in measurements}
    few_plain, many_plain = by_key[f"{few.name}/plain"], by_key[f"{many.name}/plain"]
    few_soci, many_soci = by_key[f"{few.name}/soci"], by_key[f"{many.name}/soci"]
    one, both = by_key[f"{few.name}/one"], by_key[f"{few.name}/both"]
    return [
        Target("few: soci to plain inflate", 1.4, few_soci.ratio(few_plain)),
        Target("many: soci to plain inflate", 2.0, many_soci.ratio(many_plain)),
        Target("convert: two layers side by side to one", 1.4, both.ratio(one)),
    ]


def find_registry_targets(timings: dict[str, Timing]) -> list[Target]:
    """The targets of work in registries, and what was measured of them."""
    build, repository, mount = timings["build"], timings["repository"], timings["mount"]
    largest = max(max(one.peaks) for key, one in timings.items() if key != "disk")
    local = []
    if "containerd" in timings:
        ratio = timings["containerd"].ratio(timings["layout"])
        local = [Target("convert in containerd to in a layout", 1.35, ratio)]
    return [
        Target("convert in a repository to building", 1.25, repository.ratio(build)),
        Target("convert in a registry to building", 1.25, mount.ratio(build)),
        Target("convert in a repository to over disk", 0.25, repository.ratio(timings["disk"])),
        Target("peak memory of converting, in 250 MB", 1.0, largest / 250e6),
        Target("soci pull to skopeo copy", 1.0, timings["pull"].ratio(timings["skopeo"])),
        *local,
    ]


def find_reading_targets(figures: dict[str, Figure]) -> list[Target]:
    """The targets of reading, and what was measured of them."""
    wanted = (
        ("soci mount, seconds", Target, 0.3, "mount"),
        ("mount, cold, MB/s", Floor, 400, "cold"),
        ("mount, cold, to download and inflate", Floor, 0.6, "cold_ratio"),
        ("mount, warm, MB/s", Floor, 1500, "warm"),
        ("mount, shaped line, of the line", Floor, 0.9, "line"),
        ("small files, warm, a second", Floor, 5000, "small"),
        ("find -ls, entries a second", Floor, 20_000, "find"),
        ("soci cat, to a zTOC and a span", Target, 1.0, "cat_share"),
        ("memory of a mount, MB", Target, 150, "rss"),
        ("... after 1 GB was read ten times, MB", Target, 150, "rss_after"),
        ("... to after it was read once", Target, 1.1, "rss_growth"),
    )
    return [
        kind(name, limit, figures[key].middle)
        for name, kind, limit, key in wanted
        if figures[key].values
    ]


def find_engine_targets(figures: dict[str, Figure]) -> list[Target]:
    """The targets of EROFS over lazy layers, and what was measured of them."""
    wanted = (
        ("find -ls first, EROFS to overlayfs", 0.7, "find/erofs", "find/overlayfs"),
        ("find -ls first, EROFS to FUSE trees", 3.0, "find/erofs", "find/fuse"),
        ("small files, EROFS to overlayfs", 0.6, "small/erofs", "small/overlayfs"),
        ("small files, cold, EROFS to FUSE trees", 2.0, "small_cold/erofs", "small_cold/fuse"),
        ("libraries, EROFS to overlayfs", 0.85, "libs/erofs", "libs/overlayfs"),
        ("libraries, cold, EROFS to FUSE trees", 1.3, "libs_cold/erofs", "libs_cold/fuse"),
        ("libraries, cold, to download and inflate", 0.65, "libs_cold/erofs", "plain"),
        ("libraries, warm again, EROFS to FUSE", 1.0, "libs_warm/erofs", "libs_warm/fuse"),
    )
    targets: list[Target] = [
        Floor(name, limit, figures[one].ratio(figures[other]))
        for name, limit, one, other in wanted
        if one in figures and other in figures and figures[one].values
    ]
    limits = (
        ("soci mount, EROFS, seconds", 0.25, "mount/erofs"),
        ("... beside another mount, seconds", 0.15, "mount_beside/erofs"),
        ("... nothing in the cache, seconds", 0.25, "mount_new/auto"),
        ("start of Python, EROFS, to what it needs", 1.1, "start_share/erofs"),
    )
    return targets + [
        Target(name, limit, figures[key].middle)
        for name, limit, key in limits
        if figures[key].values
    ]


def find_whole_targets(figures: dict[str, Figure]) -> list[Target]:
    """The targets of images that are fetched whole, and what was measured of them."""
    wanted = (
        ("a tree, zTOCs, to containerd's overlayfs", 4.0, "tree/overlayfs", "tree/ztoc"),
        ("... to its EROFS snapshotter", 1.7, "tree/erofs", "tree/ztoc"),
        ("a tree, no zTOCs, to overlayfs", 2.5, "tree/overlayfs", "tree/plain"),
        ("small files, complete, to overlayfs", 0.7, "small/complete", "small/overlayfs"),
        ("a layer on two cores and more, to one", 1.7, "rate/all", "rate/one"),
    )
    return [
        Floor(name, limit, figures[one].ratio(figures[other]))
        for name, limit, one, other in wanted
        if one in figures and figures[one].values and figures[other].values
    ]


def print_targets(targets: Sequence[Target]) -> None:
    print()
    print("Targets")
    for target in targets:
        print(
            f"  {target.name:<40} {target.bound} {target.limit:,g}: {target.ratio:,.2f} "
            f"{'ok' if target.met else 'MISSED'}"
        )
