"""What people see: remarks and progress on stderr, results on stdout.

Progress bars are drawn on a terminal only; a pipe or a log gets none of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from soci_cli.commands.remarks import Remarks
from soci_cli.progress import Observer, SilentObserver, Task
from soci_cli.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


def escape_what_cannot_be_shown() -> None:
    """Lets letters that the locale does not have be escaped, where Python would fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Output:
    """Where text goes. `quiet` keeps remarks and progress away, never results and errors."""

    def __init__(self) -> None:
        self.quiet = False
        self.debug = False
        self._end_log: Callable[[], None] | None = None
        self._remarks = Remarks(_to_stderr, lambda: not (self.debug or sys.stderr.isatty()))

    def result(self, text: str) -> None:
        """One line of the result, to stdout."""
        print(text)

    def json(self, value: Any, *, indent: int | None = 2) -> None:
        """A result for scripts, to stdout."""
        is_utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        print(json.dumps(value, indent=indent, ensure_ascii=not is_utf8))

    def note(self, text: str, kind: str = "") -> None:
        """A remark that the user should see; `kind` as for `Observer.note`."""
        if not self.quiet:
            self._remarks.add(printable(text), "" if self.debug else printable(kind))

    def detail(self, text: str) -> None:
        """A remark for somebody who sits at a terminal."""
        if sys.stderr.isatty():
            self.note(text)

    def warn(self, text: str) -> None:
        """Something looks wrong but does not stop the command."""
        self._remarks.add(f"soci: warning: {printable(text)}")

    def error(self, text: str) -> None:
        """What went wrong."""
        self._remarks.error(f"soci: {printable(text)}")

    def show_log(self) -> None:
        """From now on everything is said that the library logs: `--debug`."""
        from soci_cli.processes.debugging import show_log

        self.debug = True
        if self._end_log is None:
            self._end_log = show_log(self.log_line)

    def log_line(self, line: str) -> None:
        """One line of the library's log, of this process or of another one."""
        self._remarks.write(line)

    def close(self) -> None:
        """The last of the remarks, and of the log."""
        self._remarks.close()
        if self._end_log is not None:
            self._end_log()
            self._end_log = None

    @contextmanager
    def progress(self) -> Iterator[Observer]:
        """An observer for library calls; it draws a bar a layer on a terminal."""
        if self.quiet:
            yield SilentObserver()
        elif not sys.stderr.isatty():
            yield _Lines(self)
            self._remarks.sum_up()
        else:
            with _bars() as progress:
                self._remarks.write = _Bars(self, progress).write
                try:
                    yield _Bars(self, progress)
                    self._remarks.sum_up()
                finally:
                    self._remarks.write = _to_stderr


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


class _Lines(SilentObserver):
    """Remarks only."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def note(self, message: str, kind: str = "") -> None:
        self._output.note(message, kind)


def _bars() -> Progress:
    # rich takes a tenth of a second to import: only who sits at a terminal pays.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[outcome]}"),
        console=Console(stderr=True),
    )


class _Bars(_Lines):
    def __init__(self, output: Output, progress: Progress) -> None:
        super().__init__(output)
        self._progress = progress

    def start(self, name: str, total: int | None) -> Task:
        return _Bar(self._progress, self._progress.add_task(name, total=total, outcome=""))

    def write(self, line: str) -> None:
        """A line above the bars."""
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress = progress
        self._task = task

    def advance(self, amount: int) -> None:
        self._progress.advance(self._task, amount)

    def finish(self, outcome: str) -> None:
        total = self._progress.tasks[self._task].total
        done = outcome not in ("failed", "stopped")
        self._progress.update(
            self._task, outcome=outcome, completed=total if done else None, refresh=True
        )
        self._progress.stop_task(self._task)


def human_size(size: int) -> str:
    """A size as people read it, in binary units: 1.5 MiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 span, 2 spans."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def columns(rows: list[list[str]]) -> list[str]:
    """Rows as lines with aligned columns."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
