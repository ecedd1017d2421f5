"""Measuring how zTOCs are built and files read out of layers, beside other tools."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.layers import Layer
from tests.bench.running import BenchError, run_task


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


def say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
