"""Logs: what comes again is counted, files stay small."""

from __future__ import annotations

from pathlib import Path

from soci_cli.processes.log import Log, LogFile


def test_log_folds_what_comes_again() -> None:
    lines: list[str] = []
    with Log(lines.append) as log:
        for _ in range(6):
            log("the same\nover two lines")
        log("another")
        log("another")
    texts = [line.partition("Z ")[2] for line in lines]
    assert texts == [
        "the same over two lines",
        "the line above came once more",
        "the line above came 2 times more",
        "the line above came 4 times more",
        "the line above came 5 times more",
        "another",
        "the line above came once more",
    ]
    assert log.count == 8
    assert log.recent == ["the same over two lines", "another"]


def test_log_file_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with LogFile(path, 10_000) as file, Log(file.write) as log:
        for number in range(2000):
            log(f"line {number}")
    text = path.read_text()
    assert len(text) <= 10_100
    lines = text.splitlines()
    assert lines[-1].endswith("Z line 1999")
    numbers = [int(line.rpartition(" ")[2]) for line in lines]
    assert numbers == list(range(numbers[0], 2000))
    assert path.stat().st_mode & 0o777 == 0o600
