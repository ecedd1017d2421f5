"""Several things at once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from soci_cli.errors import NotFoundError
from soci_cli.parallel import Stop, run_all

PROJECT = Path(__file__).parent.parent

HANG = """
import os, signal, threading
from soci_cli.parallel import run_all

def hang(item, stop):
    if item == 1:
        os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()

run_all(hang, [0, 1, 2], 2)
"""


@pytest.mark.parametrize("concurrency", [0, 1, 3, 100])
def test_the_results_are_in_order(concurrency: int) -> None:
    assert run_all(lambda item, stop: item * 2, range(50), concurrency) == list(range(0, 100, 2))
    assert run_all(lambda item, stop: item, [], concurrency) == []


def test_as_many_as_asked_for_run_at_once() -> None:
    barrier = threading.Barrier(4, timeout=60)
    run_all(lambda item, stop: barrier.wait(), range(8), 4)


def test_an_error_ends_the_others() -> None:
    ended: list[int] = []

    def work(item: int, stop: Stop) -> None:
        if item == 1:
            raise NotFoundError("one")
        try:
            while True:
                stop.check()
                time.sleep(0.001)
        finally:
            ended.append(item)

    with pytest.raises(NotFoundError, match="one"):
        run_all(work, range(10), 2)
    assert ended == [0]  # and those that waited never began


def test_an_error_does_not_wait_for_what_hangs() -> None:
    released, ended = threading.Event(), threading.Event()

    def work(item: int, stop: Stop) -> None:
        if item:
            raise NotFoundError("one")
        released.wait(60)  # as a registry that says nothing
        ended.set()

    with pytest.raises(NotFoundError, match="one"):
        run_all(work, range(2), 2)
    assert not ended.is_set()
    released.set()


def test_ctrl_c_leaves_what_hangs_behind() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANG], capture_output=True, text=True, cwd=PROJECT, timeout=60
    )
    assert done.returncode != 0
    assert "KeyboardInterrupt" in done.stderr
