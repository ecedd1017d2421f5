"""Days of a process that reads images, by a clock that the test moves: it stays as it was at first."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from soci_cli import (
    Cache,
    Fetcher,
    Fetching,
    File,
    LazyImage,
    Registries,
    RegistryOptions,
    RetryPolicy,
    copy_graph,
    open_image,
    open_source,
    open_target,
    parse_place,
)
from soci_cli.closing import Closing
from soci_cli.errors import SociError
from tests.soak.programs import FAULTS
from tests.support.images import gz, make_image, noise, options, run_convert, tar_of
from tests.support.machine import PROJECT
from tests.support.scale import scaled

DAYS = scaled(100)
FILES = 200
READERS = 8
QUICK = RegistryOptions(retries=RetryPolicy(first=0.001, longest=0.01), timeout=2.0, hosts_dirs=())


class Registry(Closing):
    """A registry in a process of its own, which fails as it is told."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.programs", "serving", folder],
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "begun"
        self.host = self._line()

    def fail(self, how: str) -> None:
        """From now on it fails in one of the ways of FAULTS."""
        assert self._process.stdin
        self._process.stdin.write(f"{how}\n")
        self._process.stdin.flush()
        assert self._line() == "done"

    def close(self) -> None:
        self._process.communicate(timeout=60)

    def _line(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Resources(NamedTuple):
    """Threads, open files, and resident MiB of a process."""

    threads: int
    files: int
    memory: int


def resources() -> Resources:
    """Those of this process now."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    memory = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
    opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    return Resources(threading.active_count(), opened, memory >> 10)


def failure(image: LazyImage, file: File, expected: bytes) -> str:
    """Why a file could not be read, or ""; what was read must be right."""
    try:
        found = b"".join(image.pieces(file))
    except SociError as error:
        return str(error)
    assert found == expected
    return ""


def hour(
    image: LazyImage, files: list[File], clock: Clock, choice: random.Random, hangs: bool
) -> list[str]:
    """Readers read at random; what failed. Where the registry hangs, time passes until all gave up."""
    with ThreadPoolExecutor(READERS) as pool:
        numbers = [choice.randrange(FILES) for _ in range(READERS * 5)]
        reads = [pool.submit(failure, image, files[number], content(number)) for number in numbers]
        while wait(reads, 0.2).not_done:
            clock.now += 31 if hangs else 0
    clock.now += 3600
    return [error for one in reads if (error := one.result())]


def content(number: int) -> bytes:
    return noise(number, 40_000)


def test_days(tmp_path: Path) -> None:
    names = [f"data/{number}" for number in range(FILES)]
    layers = [
        gz(tar_of({names[number]: content(number) for number in range(start, FILES, 3)}))
        for start in range(3)
    ]
    run_convert(make_image(tmp_path / "image", layers).root, tmp_path / "lazy", options())
    choice, clock = random.Random(3), Clock()
    hours = bad_hours = failed = 0
    with (
        Registry(tmp_path / "registry") as registry,
        closing(Registries(QUICK, {})) as registries,
    ):
        place = parse_place(f"docker://{registry.host}/app:1")
        with (
            open_source(parse_place(f"oci:{tmp_path}/lazy"), tmp_path) as lazy,
            open_target(place, tmp_path, registries=registries) as target,
        ):
            copy_graph(lazy, target, lazy.resolve())
            target.tag(lazy.resolve())
        cache = Cache(tmp_path / "cache", 3_000_000)
        with (
            open_source(place, tmp_path, registries) as source,
            Fetcher(clock) as fetcher,
            Fetching(cache, readahead=1 << 20, fetcher=fetcher) as fetching,
            open_image(source, fetching) as image,
        ):
            files = [image.find(name.encode()) for name in names]
            begin, most = resources(), resources()
            for day in range(DAYS):
                for _ in range(24):
                    how = choice.choice(list(FAULTS)) if choice.random() < 0.25 else "none"
                    registry.fail(how)
                    errors = hour(image, files, clock, choice, how == "hang")
                    hours += 1
                    bad_hours += how != "none"
                    failed += len(errors)
                    assert how != "none" or not errors, (day, errors)
                    registry.fail("none")
                    while not fetcher.is_quiet:  # what was under way when the fault was there
                        time.sleep(0.05)
                    if choice.random() < 0.1:
                        cache.prune(choice.randrange(3_000_000))
                most = Resources(*map(max, most, resources()))
                if day == DAYS // 10:
                    begin = most
    assert failed
    assert most.threads <= begin.threads + 16
    assert most.files <= begin.files + 64  # entries that went are let go of by and by
    assert most.memory <= begin.memory + 40
    print(
        f"\n{DAYS} days: {hours * READERS * 5} reads; in {bad_hours} of {hours} hours the registry failed, "
        f"and {failed} reads with it; at most {most.threads} threads, {most.files} open files, "
        f"{most.memory} MiB ({begin.memory} MiB after the first days)"
    )
