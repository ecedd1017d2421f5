"""The benchmark: how long building a zTOC takes, beside plain inflate and beside other tools.

    python -m tests.bench.bench [--runs 5] [--quick] [--json FILE]

It makes layers of the machine's own files (layers.py) and measures each thing once a round, in a
process of its own (tasks.py). Machines are noisy, so things are compared within a round, and what is
shown is the median of the rounds. The last lines are the targets of the project; missing one fails.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.layers import Layer, Shape, default_sources, find_layer, library_sources
from tests.bench.reading import (
    Figure,
    measure_reading,
    missing_for_reading,
    print_reading,
)
from tests.bench.registries import (
    Timing,
    measure_registries,
    missing_tools,
    print_registries,
)
from tests.bench.running import BenchError, run_task

_ROOT = Path(__file__).resolve().parents[2]

FULL = (
    Shape("few", files=12_000, size=800_000_000),
    Shape("few2", files=12_000, size=800_000_000, order=2),
    Shape("many", files=98_000, size=1_200_000_000),
    Shape("small", files=600, size=60_000_000, seed=3),
)
LIBS = Shape("libs", files=2_500, size=1_000_000_000)
QUICK = (
    Shape("quick-few", files=1_500, size=100_000_000),
    Shape("quick-few2", files=1_500, size=100_000_000, order=2),
    Shape("quick-many", files=12_000, size=150_000_000),
    Shape("quick-small", files=300, size=40_000_000, seed=3),
)
QUICK_LIBS = Shape("quick-libs", files=700, size=250_000_000)
PARTS = ("building", "registries", "reading")


@dataclass
class Measurement:
    """One thing to measure, and what came out, a value for each round."""

    key: str
    name: str
    does: str
    task: str
    arguments: tuple[str, ...]
    uncompressed_size: int
    entries: int
    needs: str | None = None
    """The package that a tool of others comes in."""
    note: str = ""
    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> None:
        """Measures one round. Where a tool of others fails, that is noted, and it is left out."""
        if self.note:
            return
        try:
            result = run_task(self.task, *self.arguments)
            for found in ("uncompressed_size", "entries"):
                if result.get(found, getattr(self, found)) != getattr(self, found):
                    raise BenchError(f"{found} is {result[found]}, not {getattr(self, found)}")
        except BenchError as error:
            if not self.needs:
                raise
            self.note = f"failed: {str(error).splitlines()[-1][:60]}"
            return
        self.seconds.append(result["seconds"])
        self.peaks.append(result["peak"])
        self.results.append(result)

    def ratio(self, other: Measurement) -> float:
        """The median of the rounds' ratios of this one's time to the other's."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return median(mine / others for mine, others in pairs)


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


def make_missing(shapes: Sequence[Shape], sources: Sequence[Path], work: Path) -> list[Layer]:
    """The layers, made where there are none of these shapes yet."""
    work.mkdir(parents=True, exist_ok=True)
    missing = [shape for shape in shapes if not find_layer(shape, sources, work)]
    if missing:
        print(f"Making {', '.join(shape.name for shape in missing)} in {work} ...", flush=True)
        request = {
            "shapes": [asdict(shape) for shape in missing],
            "sources": [str(source) for source in sources],
            "work": str(work),
            "excluded": [str(_ROOT)],
        }
        run_task("make_layers", json.dumps(request))
    layers = [find_layer(shape, sources, work) for shape in shapes]
    if not all(layers):
        raise BenchError("the layers could not be made")
    return [layer for layer in layers if layer]


def build_measurements(few: Layer, few2: Layer, many: Layer) -> list[Measurement]:
    """What is measured of building, in the order of a round."""
    found = []
    for layer in (few, many):

        def add(
            key: str, name: str, does: str, task: str, *others: Layer, needs: str | None = None
        ) -> None:
            layers = (layer, *others)  # noqa: B023 - called at once
            found.append(
                Measurement(
                    f"{layers[0].name}/{key}",
                    name,
                    does,
                    task,
                    tuple(str(one.path) for one in layers),
                    sum(one.uncompressed_size for one in layers),
                    sum(one.entries for one in layers),
                    needs,
                )
            )

        add("plain", "plain inflate", "zlib-ng, output forgotten", "plain_inflate")
        add("soci", "soci", "files, checkpoints, digests: a zTOC", "build")
        if layer is few:
            add("one", "soci image convert", "the whole command, image of few", "convert_image")
            add("both", "... of two layers", "few and few2 side by side", "convert_image", few2)
        add(
            "indexed_gzip",
            "indexed_gzip",
            "checkpoints only",
            "index_indexed_gzip",
            needs="indexed_gzip",
        )
        add(
            "rapidgzip",
            "rapidgzip, 2 threads",
            "checkpoints only",
            "index_rapidgzip",
            needs="rapidgzip",
        )
        add("tarfile", "Python tarfile", "files only", "list_tarfile")
    return found


def read_measurements(layer: Layer, work: Path) -> tuple[str, list[Measurement]]:
    """What is measured of reading one file, and which file that is."""
    ztoc, index = str(work / f"{layer.name}.ztoc"), str(work / f"{layer.name}.gzidx")
    path = str(layer.path)
    picked = run_task("prepare", path, ztoc, index)
    place = str(picked["offset"]), str(picked["size"])
    title = (
        f"Reading one file of {layer.name}: {picked['size']:,} bytes "
        f"at {picked['offset'] / 1e6:,.0f} MB of {layer.uncompressed_size / 1e6:,.0f} MB"
    )
    rows = (
        ("soci", "soci", "finds the file by name", "read_ours", (ztoc, picked["file"]), None),
        (
            "indexed_gzip",
            "indexed_gzip",
            "is told the offset",
            "read_indexed_gzip",
            (index, *place),
            "indexed_gzip",
        ),
        ("gzip", "Python gzip", "inflates all before it", "read_gzip", place, None),
    )
    return title, [
        Measurement(
            f"{layer.name}/read/{key}",
            name,
            does,
            task,
            (path, *arguments),
            layer.uncompressed_size,
            layer.entries,
            needs,
        )
        for key, name, does, task, arguments, needs in rows
    ]


def measure(measurements: Sequence[Measurement], runs: int) -> None:
    """Measures everything once a round."""
    for one in measurements:
        if one.needs and not importlib.util.find_spec(one.needs):
            one.note = "not installed"
    for round_number in range(1, runs + 1):
        for one in measurements:
            if sys.stderr.isatty():
                print(
                    f"\r\033[Kround {round_number} of {runs}: {one.key}",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
            one.run()
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def check_same_content(reads: Sequence[Measurement]) -> None:
    """All ways to read the file must give the same bytes."""
    contents = {result["sha256"] for one in reads for result in one.results}
    if len(contents) > 1:
        raise BenchError(f"{', '.join(one.key for one in reads)} do not agree on the content")


def print_layers(layers: Sequence[Layer]) -> None:
    print("Layers")
    for layer in layers:
        print(
            f"  {layer.name:<11}{layer.files:>8,} files {layer.entries:>8,} entries "
            f"{layer.uncompressed_size / 1e6:>8,.1f} MB, {layer.compressed_size / 1e6:,.1f} MB "
            f"compressed ({layer.compressor})"
        )


def print_builds(measurements: Sequence[Measurement], layers: Sequence[Layer]) -> None:
    print()
    print(
        f"{'Building':<22}{'median s':>9} {'min-max':>13}{'ratio':>7}{'MB/s':>7}{'peak MB':>9}  what"
    )
    for layer in layers:
        rows = [one for one in measurements if one.key.startswith(f"{layer.name}/")]
        if not rows:
            continue
        plain = rows[0]
        print(layer.name)
        for one in rows:
            if one.note or not one.seconds:
                print(f"  {one.name:<20}{one.note}")
                continue
            middle = median(one.seconds)
            spread = f"{min(one.seconds):.2f}-{max(one.seconds):.2f}"
            print(
                f"  {one.name:<20}{middle:>9.2f} {spread:>13}{one.ratio(plain):>7.2f}"
                f"{one.uncompressed_size / middle / 1e6:>7,.0f}"
                f"{median(one.peaks) / 1e6:>9,.0f}  {one.does}"
            )
            if ztoc := one.results[-1].get("ztoc_size"):
                rest = (median(one.peaks) - ztoc) / 1e6
                print(f"{'':<60}{rest:>7,.0f}  ... without the {ztoc / 1e6:,.1f} MB of zTOC")
    print("ratio: to plain inflate of the layer in the same round; MB/s: uncompressed")


def print_reads(title: str, reads: Sequence[Measurement]) -> None:
    print()
    print(title)
    print(f"{'':<22}{'load ms':>9}{'read ms':>10}{'total ms':>10}{'peak MB':>9}  how")
    for one in reads:
        if one.note or not one.seconds:
            print(f"  {one.name:<20}{one.note}")
            continue
        load, read = (median(result[part] for result in one.results) for part in ("load", "read"))
        print(
            f"  {one.name:<20}{load * 1e3:>9,.1f}{read * 1e3:>10,.1f}"
            f"{median(one.seconds) * 1e3:>10,.1f}{median(one.peaks) / 1e6:>9,.0f}  {one.does}"
        )


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


def print_targets(targets: Sequence[Target]) -> None:
    print()
    print("Targets")
    for target in targets:
        print(
            f"  {target.name:<40} {target.bound} {target.limit:,g}: {target.ratio:,.2f} "
            f"{'ok' if target.met else 'MISSED'}"
        )


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """Where this was measured."""
    versions: dict[str, str | None] = {}
    for package in ("zlib-ng", "indexed_gzip", "rapidgzip"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "packages": versions,
    }


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measures how zTOCs are built.")
    parser.add_argument("--runs", type=int, help="rounds (default: 5, with --quick 3)")
    parser.add_argument(
        "--work", type=Path, default=Path(".bench"), help="folder for the layers (default: .bench)"
    )
    parser.add_argument("--quick", action="store_true", help="smaller layers, for a first look")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for the layers' sizes")
    parser.add_argument(
        "--source",
        type=Path,
        action="append",
        help="take files from this folder; can be given again (default: /usr and others)",
    )
    parser.add_argument(
        "--only",
        choices=PARTS,
        action="append",
        help="measure this part; can be given again (default: all)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--no-fail", action="store_true", help="succeed when a target is missed")
    options = parser.parse_args(arguments)
    if options.runs is None:
        options.runs = 3 if options.quick else 5
    if options.runs < 1 or options.scale <= 0:
        parser.error("--runs and --scale must be greater than 0")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    work: Path = options.work.resolve()
    report: dict[str, Any] = {"machine": machine(), "runs": options.runs}
    try:
        layers = _layers(options, work)
        where = report["machine"]
        print(
            f"Python {where['python']}, {where['system']}, {where['processors']} processors; "
            + ", ".join(f"{name} {number or '-'}" for name, number in where["packages"].items())
        )
        print_layers(layers)
        report["layers"] = [{**asdict(layer), "path": layer.path.name} for layer in layers]
        targets = []
        parts = options.only or PARTS
        if "building" in parts:
            targets += _building(layers, work, options.runs, report)
        if "registries" in parts:
            targets += _registries(layers, work, options.runs, report)
        if "reading" in parts:
            targets += _reading(layers, work, options.runs, report)
    except (BenchError, RuntimeError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    print_targets(targets)
    if options.json:
        report["targets"] = [{**asdict(target), "met": target.met} for target in targets]
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if options.no_fail or all(target.met for target in targets) else 1


def _layers(options: argparse.Namespace, work: Path) -> list[Layer]:
    """few, few2, many, small and libs, made where they are missing."""
    sources = [source.resolve() for source in options.source or default_sources()]
    libraries = sources if options.source else library_sources()
    shapes = [shape.scaled(options.scale) for shape in (QUICK if options.quick else FULL)]
    libs = (QUICK_LIBS if options.quick else LIBS).scaled(options.scale)
    return make_missing(shapes, sources, work) + make_missing([libs], libraries, work)


def _building(
    layers: Sequence[Layer], work: Path, runs: int, report: dict[str, Any]
) -> list[Target]:
    few, few2, many, *_ = layers
    builds = build_measurements(few, few2, many)
    reads = [read_measurements(layer, work) for layer in (few, many)]
    measure([*builds, *(one for _, group in reads for one in group)], runs)
    for _, group in reads:
        check_same_content(group)
    print_builds(builds, layers)
    for title, group in reads:
        print_reads(title, group)
    report["builds"] = [_figures(one) for one in builds]
    report["reads"] = [_figures(one) for _, group in reads for one in group]
    return find_targets(builds, few, many)


def _registries(
    layers: Sequence[Layer], work: Path, runs: int, report: dict[str, Any]
) -> list[Target]:
    few, _, many, small, _ = layers
    if missing := missing_tools():
        print(f"\nRegistries: not measured, because {' and '.join(missing)} is not installed")
        return []
    timings = measure_registries((many, few, small), work, runs, _say)
    print_registries(timings, (many, few, small))
    report["registries"] = [asdict(one) for one in timings.values()]
    return find_registry_targets(timings)


def _reading(
    layers: Sequence[Layer], work: Path, runs: int, report: dict[str, Any]
) -> list[Target]:
    few, _, many, small, libs = layers
    if missing := missing_for_reading():
        print(f"\nReading: not measured, because {' and '.join(missing)} cannot be used")
        return []
    figures = measure_reading((many, few, small), libs, few, work, runs, _say)
    print_reading(figures, (many, few, small), libs)
    report["reading"] = [asdict(one) for one in figures.values()]
    return find_reading_targets(figures)


def _figures(one: Measurement) -> dict[str, Any]:
    return {"name": one.key, "what": one.does, "note": one.note, "rounds": one.results}


if __name__ == "__main__":
    sys.exit(main())
