"""The benchmark of two checkouts, old beside new: each round measures both, one after the other.

    python -m tests.bench.compare OLD_CHECKOUT [--rounds 5] [any flag of tests.bench.bench]

OLD_CHECKOUT is another checkout with its own `.venv`. Both work on the same layers. A row is worse when
its median is worse than the old one's by more than a tenth and by more than the old one's own range; one
such row makes the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_LESS_IS_BETTER = ("s", "MB")
_ALLOWED = 0.1


@dataclass
class Row:
    """What is compared, and its values in the old and the new checkout, one for each round."""

    name: str
    unit: str
    old: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)

    @property
    def change(self) -> float:
        """The new median to the old one, where more than 1 is worse."""
        old, new = median(self.old), median(self.new)
        if self.unit not in _LESS_IS_BETTER:
            old, new = new, old
        return new / old if old else 1.0

    @property
    def is_worse(self) -> bool:
        """Whether it is worse by more than a tenth and by more than the old one's range."""
        lost = abs(median(self.new) - median(self.old))
        return self.change > 1 + _ALLOWED and lost > max(self.old) - min(self.old)


def rows_of(report: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Name, unit and value of all rows in what the benchmark wrote with --json."""
    for one in (*report.get("builds", ()), *report.get("reads", ())):
        for result in one["rounds"]:
            yield one["name"], "s", result["seconds"]
            yield f"{one['name']}, memory", "MB", result["peak"] / 1e6
    for one in report.get("registries", ()):
        yield from ((one["key"], "s", value) for value in one["seconds"])
        yield from ((f"{one['key']}, memory", "MB", value / 1e6) for value in one["peaks"])
    for one in (*report.get("reading", ()), *report.get("engines", ())):
        yield from ((one["key"], one["unit"], value) for value in one["values"])


def compare(old: Path, rounds: int, flags: Sequence[str]) -> dict[str, Row]:
    """Measures both; the rows by name. Raises CalledProcessError where a benchmark fails."""
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for checkout in (old, _ROOT) if number % 2 == 0 else (_ROOT, old):
                report = _run(checkout, Path(folder, "report.json"), flags)
                for name, unit, value in rows_of(report):
                    row = rows.setdefault(name, Row(name, unit))
                    (row.old if checkout == old else row.new).append(value)
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return rows


def _run(checkout: Path, report: Path, flags: Sequence[str]) -> dict[str, Any]:
    work = _ROOT / ".bench"
    command: list[str | Path] = [
        checkout / ".venv/bin/python",
        "-m",
        "tests.bench.bench",
        "--runs=1",
        "--no-fail",
    ]
    command += ["--work", work, "--json", report, *flags]
    subprocess.run(command, cwd=checkout, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="compare", description="Measures two checkouts in turns.")
    parser.add_argument("old", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=5)
    options, flags = parser.parse_known_args(arguments)
    rows = compare(options.old.resolve(), options.rounds, flags)
    print(f"{'':32}{'old':>12}{'range':>20}{'new':>12}{'range':>20}  worse by")
    worse = 0
    for row in rows.values():
        if not row.old or not row.new:
            continue
        cells = [f"{row.name:24}{row.unit:>8}"]
        for values in (row.old, row.new):
            low, high = min(values), max(values)
            cells.append(f"{median(values):12,.2f}{f'{low:,.2f}-{high:,.2f}':>20}")
        worse += row.is_worse
        print("".join(cells), f"{row.change:8.2f}", "WORSE" if row.is_worse else "")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
