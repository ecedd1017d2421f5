"""Days of a process that reads images, by a clock that the test moves: it stays as it was at first."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections import Counter
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
    RegistryServer,
    RetryPolicy,
    copy_graph,
    open_image,
    open_source,
    open_target,
    parse_place,
)
from soci_cli.errors import SociError
from tests.support.images import gz, make_image, noise, options, run_convert, tar_of
from tests.support.scale import scaled
from tests.support.servers.actions import CutAnswer, Hang, Reset, error_reply
from tests.support.servers.fault_proxy import Fault, FaultProxy

DAYS = scaled(100)
FILES = 200
READERS = 8
FAULTS = (Hang(), Reset(), CutAnswer(after=50_000), error_reply(503, "UNAVAILABLE"))
QUICK = RegistryOptions(retries=RetryPolicy(first=0.001, longest=0.01), timeout=2.0, hosts_dirs=())


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


def right(image: LazyImage, file: File, expected: bytes) -> bool:
    """Whether a file could be read; when it could, its bytes must be right."""
    try:
        found = b"".join(image.pieces(file))
    except SociError:
        return False
    assert found == expected
    return True


def hour(
    image: LazyImage, files: list[File], clock: Clock, choice: random.Random, hangs: bool
) -> Counter[bool]:
    """Readers read at random. Where the registry hangs, time passes until the last of them gave up."""
    with ThreadPoolExecutor(READERS) as pool:
        numbers = [choice.randrange(FILES) for _ in range(READERS * 5)]
        reads = [pool.submit(right, image, files[number], content(number)) for number in numbers]
        while wait(reads, 0.2).not_done:
            clock.now += 31 if hangs else 0
    clock.now += 3600
    return Counter(one.result() for one in reads)


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
    calm, rough = Counter[bool](), Counter[bool]()
    with (
        RegistryServer(tmp_path / "registry") as server,
        FaultProxy(server.address) as proxy,
        closing(Registries(QUICK, {})) as registries,
    ):
        place = parse_place(f"docker://{proxy.host}/app:1")
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
                    fault = choice.choice(FAULTS) if choice.random() < 0.2 else None
                    proxy.clear()
                    if fault is not None:
                        proxy.add(Fault(fault, "/blobs/", "GET"))
                    counts = hour(image, files, clock, choice, isinstance(fault, Hang))
                    (calm if fault is None else rough).update(counts)
                    if choice.random() < 0.1:
                        cache.prune(choice.randrange(3_000_000))
                if day == DAYS // 10:
                    begin = resources()
                most = Resources(*map(max, most, resources()))
    assert not calm[False]
    assert rough[True]
    assert most.threads <= begin.threads + 40
    assert most.files <= begin.files + 60
    assert most.memory <= begin.memory + 40
    print(
        f"\n{DAYS} days: {calm[True]} reads in calm hours and {rough.total()} in bad ones, of which "
        f"{rough[False]} ended in an error; at most {most.threads} threads, {most.files} open "
        f"files, {most.memory} MiB ({begin.memory} MiB after the first days)"
    )
