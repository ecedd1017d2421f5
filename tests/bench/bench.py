"""The benchmark: how long building a zTOC takes, beside plain inflate and beside other tools.

    python -m tests.bench.bench [--runs 5] [--quick] [--json FILE]

It makes layers of the machine's own files (layers.py) and measures each thing once a round, in a
process of its own (tasks.py). Machines are noisy, so things are compared within a round, and what is
shown is the median of the rounds. The last lines are the targets of the project; missing one fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.bench.building import (
    Measurement,
    build_measurements,
    check_same_content,
    measure,
    print_builds,
    print_reads,
    read_measurements,
    say,
)
from tests.bench.engines import measure_engines, missing_for_engines, print_engines, python_layer
from tests.bench.layers import Layer, Shape, default_sources, find_layer, library_sources
from tests.bench.reading import (
    measure_reading,
    missing_for_reading,
    print_reading,
)
from tests.bench.registries import (
    measure_registries,
    missing_tools,
    print_registries,
)
from tests.bench.running import BenchError, run_task
from tests.bench.targets import (
    Target,
    find_engine_targets,
    find_reading_targets,
    find_registry_targets,
    find_targets,
    find_whole_targets,
    print_targets,
)
from tests.bench.whole import measure_whole, print_whole

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
PARTS = ("building", "registries", "reading", "engines", "whole")


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


def print_layers(layers: Sequence[Layer]) -> None:
    print("Layers")
    for layer in layers:
        print(
            f"  {layer.name:<11}{layer.files:>8,} files {layer.entries:>8,} entries "
            f"{layer.uncompressed_size / 1e6:>8,.1f} MB, {layer.compressed_size / 1e6:,.1f} MB "
            f"compressed ({layer.compressor})"
        )


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
        if "engines" in parts:
            targets += _engines(
                layers, None if options.source else python_layer(work), work, options.runs, report
            )
        if "whole" in parts:
            targets += _whole(layers, work, options.runs, report)
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
    timings = measure_registries((many, few, small), work, runs, say)
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
    figures = measure_reading((many, few, small), libs, few, work, runs, say)
    print_reading(figures, (many, few, small), libs)
    report["reading"] = [asdict(one) for one in figures.values()]
    return find_reading_targets(figures)


def _engines(
    layers: Sequence[Layer], python: Layer | None, work: Path, runs: int, report: dict[str, Any]
) -> list[Target]:
    few, _, many, small, libs = layers
    if missing := missing_for_engines():
        print(f"\nEngines: not measured: {' and '.join(missing)}")
        return []
    figures = measure_engines((many, few, small), libs, python, work, runs, say)
    print_engines(figures, (many, few, small), libs)
    report["engines"] = [asdict(one) for one in figures.values()]
    return find_engine_targets(figures)


def _whole(layers: Sequence[Layer], work: Path, runs: int, report: dict[str, Any]) -> list[Target]:
    _, _, many, _, libs = layers
    if missing := missing_for_engines():
        print(f"\nWhole images: not measured: {' and '.join(missing)}")
        return []
    figures = measure_whole(many, libs, work, runs, say)
    print_whole(figures, many, libs)
    report["whole"] = [asdict(one) for one in figures.values()]
    return find_whole_targets(figures)


def _figures(one: Measurement) -> dict[str, Any]:
    return {"name": one.key, "what": one.does, "note": one.note, "rounds": one.results}


if __name__ == "__main__":
    sys.exit(main())
