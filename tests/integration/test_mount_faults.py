"""Mounted images whose registry does anything but answer, and whose servers are killed."""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.integration.mounts import (
    PATIENCE,
    Facts,
    Person,
    checksum,
    checksums,
    facts,
    wait_for,
)
from tests.integration.published import (
    CONTENT,
    OTHER,
    QUIET,
    SUMS,
    Published,
    compare,
    drop,
    new_folder,
)
from tests.support.holders import crash
from tests.support.servers import Fault, FaultProxy, TokenServer
from tests.support.servers.actions import (
    CutAnswer,
    FlipByte,
    Hang,
    IgnoreRange,
    Pause,
    Reset,
    ResetAnswer,
    ShortenAnswer,
    Throttle,
    error_reply,
    pass_on,
)
from tests.support.servers.exchange import Body, Exchange

pytestmark = pytest.mark.usefixtures("need_fuse")


# Faults.


class Cycle:
    """An action that strikes every second request, each time with the next of several actions."""

    def __init__(self, *actions: Callable[[Exchange], None]) -> None:
        self._turns = itertools.cycle(actions)
        self._calls = itertools.count()
        self._mutex = threading.Lock()
        self.struck = 0

    def __call__(self, exchange: Exchange) -> None:
        with self._mutex:
            strikes = next(self._calls) % 2 == 0
            action = next(self._turns) if strikes else None
            self.struck += strikes
        if action is None:
            pass_on(exchange, exchange.ask())
        else:
            action(exchange)


def test_faults_while_the_tree_is_read(
    plain: Published, proxy: FaultProxy, token_server: TokenServer, person: Person
) -> None:
    challenge = f'Bearer realm="{token_server.realm}",service="registry.test"'
    cycle = Cycle(
        Reset(),
        ResetAnswer(20_000),
        CutAnswer(30_000),
        error_reply(503, "UNAVAILABLE"),
        ShortenAnswer(1000),
        FlipByte(500),
        error_reply(429, "TOOMANYREQUESTS", Retry_After="0"),
        error_reply(401, "UNAUTHORIZED", WWW_Authenticate=challenge),
        Throttle(2_000_000),
        error_reply(500, "UNKNOWN"),
    )
    with person.mounted(plain.at(proxy.host), None, *QUIET) as place:
        for digest in plain.layers:
            proxy.add(Fault(cycle, f"/blobs/{digest}", "GET"))
        names = sorted(CONTENT)
        random.Random(1).shuffle(names)  # so that not everything is fetched ahead
        for name in names:
            assert checksum(place / name) == SUMS[name]
        assert checksums(place) == SUMS
        assert cycle.struck >= 10, cycle.struck


def test_a_registry_that_ignores_range(plain: Published, proxy: FaultProxy, person: Person) -> None:
    with person.mounted(plain.at(proxy.host), None, *QUIET) as place:
        proxy.add(Fault(IgnoreRange(), "/blobs/", "GET"))
        assert checksums(place) == SUMS
        for digest in plain.layers:
            assert len(proxy.seen("GET", f"/blobs/{digest}")) <= 6


@dataclass(frozen=True)
class WrongByte:
    """Changes one byte of the blob wherever an answer holds it."""

    at: int

    def __call__(self, exchange: Exchange) -> None:
        answer = exchange.ask()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", exchange.seen.headers.get("range", ""))
        start = int(asked[1]) if asked else 0
        data = bytearray(b"".join(answer.body))
        if 0 <= self.at - start < len(data):
            data[self.at - start] ^= 0xFF
        pass_on(exchange, replace(answer, body=Body(iter([bytes(data)]))))


def test_wrong_bytes_for_ever(plain: Published, proxy: FaultProxy, person: Person) -> None:
    ztoc = plain.ztoc(0)
    (entry,) = (file for file in ztoc.files if file.name == b"many/7")
    span = ztoc.spans.span_of(entry.uncompressed_offset + entry.uncompressed_size // 2)
    start, end = ztoc.spans.compressed_range(span)
    hit = {
        os.fsdecode(file.name)
        for file in ztoc.files
        if ztoc.spans.span_of(file.uncompressed_offset)
        <= span
        <= ztoc.spans.span_of(file.uncompressed_offset + file.uncompressed_size - 1)
    }
    digest = plain.layers[0]
    with person.mounted(plain.at(proxy.host), None, *QUIET) as place:
        proxy.add(Fault(WrongByte((start + end) // 2), f"/blobs/{digest}", "GET"))
        for name, expected in SUMS.items():
            if name in hit:
                with pytest.raises(OSError) as failed:
                    checksum(place / name)
                assert failed.value.errno == errno.EIO
            else:
                assert checksum(place / name) == expected
        log = person.log()
        for part in (plain.at(proxy.host), digest, f"span {span}", "many/7"):
            assert part in log, part
        proxy.clear()
        assert checksums(place) == SUMS


def test_a_registry_that_hangs(plain: Published, proxy: FaultProxy, person: Person) -> None:
    lower, _ = plain.layers
    with person.mounted(plain.at(proxy.host), None, *QUIET) as place:
        assert checksum(place / "many/3") == SUMS["many/3"]
        before = len(proxy.seen("GET", f"/blobs/{lower}"))
        proxy.add(Fault(Hang(), f"/blobs/{lower}"))
        drop(place / "many/3")
        readers = [
            person.start("cat", place / "data" / name, stdout=subprocess.DEVNULL)
            for name in ("noise", "text")
        ]
        wait_for(lambda: len(proxy.seen("GET", f"/blobs/{lower}")) > before, "it hangs")
        for name in OTHER:  # another layer
            assert checksum(place / name) == SUMS[name]
        assert checksum(place / "many/3") == SUMS["many/3"]  # in the cache
        assert len(facts_without_content(place)) == len(CONTENT) + 3
        for reader in readers:
            assert reader.poll() is None
            reader.kill()
            reader.communicate()
    assert not (place / "data").exists()


@pytest.mark.parametrize("engine", ["auto", "fuse"])
@pytest.mark.parametrize("fault", [Hang(), Pause(3600, at=1000)], ids=["silent", "stalled"])
def test_the_reader_s_deadline(
    plain: Published, proxy: FaultProxy, person: Person, fault: Hang | Pause, engine: str
) -> None:
    """Who waits gets an error in time; the next one begins anew, while the old request still hangs."""
    config = person.home / "config.toml"
    config.write_text(f"[soci]\nreader_deadline_sec = 1\nengine = '{engine}'\n")
    hasty = replace(person, extra=(*person.extra, ("SOCI_CONFIG", str(config))))
    lower, _ = plain.layers
    with hasty.mounted(plain.at(proxy.host), None, *QUIET) as place:
        before = len(proxy.seen("GET", f"/blobs/{lower}"))
        proxy.add(Fault(fault, f"/blobs/{lower}"))
        with pytest.raises(OSError) as failed:
            checksum(place / "data/noise")
        assert failed.value.errno == errno.EIO
        # No page that was to be read ahead waited by itself.
        assert len(proxy.seen("GET", f"/blobs/{lower}")) - before < 8
        log = hasty.log()
        for part in (plain.at(proxy.host), lower, "data/noise", "nothing came for 1 s"):
            assert part in log, part
        proxy.clear()
        assert checksums(place) == SUMS


def test_unmounting_while_a_read_hangs(plain: Published, proxy: FaultProxy, person: Person) -> None:
    place = new_folder(person.home / "place")
    person.soci("mount", "-q", *QUIET, plain.at(proxy.host), place).good()
    proxy.add(Fault(Hang(), "/blobs/"))
    with person.start("cat", place / "data/noise", stdout=subprocess.DEVNULL) as reader:
        wait_for(lambda: proxy.seen("GET", f"/blobs/{plain.layers[0]}"), "it hangs")
        person.soci("umount", place).bad(1, str(place))
        assert reader.poll() is None
        person.soci("umount", "--force", place).good()
        reader.communicate(timeout=PATIENCE)
        assert reader.returncode != 0
    assert not person.records()
    assert not place.is_mount()


def facts_without_content(place: Path) -> list[os.stat_result]:
    return [path.lstat() for path in place.rglob("*")]


# Crashes.


def test_a_server_that_is_killed(plain: Published, proxy: FaultProxy, person: Person) -> None:
    place = new_folder(person.home / "place")
    person.soci("mount", "-q", *QUIET, plain.at(proxy.host), place).good()
    proxy.add(Fault(Throttle(100_000), f"/blobs/{plain.layers[0]}"))
    reader = person.start("cat", place / "data/noise", stdout=subprocess.DEVNULL)
    wait_for(lambda: proxy.seen("GET", f"/blobs/{plain.layers[0]}"), "it reads")
    crash(person.server())
    _, errors = reader.communicate(timeout=PATIENCE)
    assert reader.returncode == 1
    assert b"cat: " in errors
    (shown,) = person.mounts()
    assert shown["state"] == "crashed"
    person.soci("umount", place).good()
    assert person.mounts() == []
    assert list(place.iterdir()) == []
    # What it fetched is good, and the rest can be fetched.
    proxy.clear()
    with person.mounted(plain.at(proxy.host), place, *QUIET):
        assert checksums(place) == SUMS


def test_a_writer_of_the_cache_that_is_killed(
    odd: Published, proxy: FaultProxy, person: Person, unpacked: Facts
) -> None:
    """A layer without a zTOC is written into the cache while it comes."""
    digest = odd.layers[2]
    fault = Fault(Throttle(50_000), f"/blobs/{digest}")
    proxy.add(fault)
    place = new_folder(person.home / "place")
    starting = person.start_soci("mount", "-q", *QUIET, odd.at(proxy.host), place)
    cache = person.home / ".cache" / "soci"

    def is_written() -> bool:
        return bool(proxy.seen("GET", f"/blobs/{digest}")) and any(cache.rglob("devices/*/.*.part"))

    wait_for(is_written, "a layer comes")
    for pid in family(starting.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    starting.communicate(timeout=PATIENCE)
    assert any(cache.rglob("devices/*/.*.part"))
    proxy.clear()
    person.soci("umount", "--all")
    with person.mounted(odd.at(proxy.host), place, *QUIET):
        compare(facts(place), unpacked)


def family(pid: int) -> list[int]:
    """A process and what it started."""
    found = [pid]
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_bytes().rpartition(b")")[2].split()[1]) == pid:
                found += family(int(path.parent.name))
    return found


def test_two_servers_with_one_small_cache(plain: Published, person: Person) -> None:
    cache = str(person.home / "cache")
    small = (("SOCI_CACHE", cache), ("SOCI_CACHE_SIZE", "600KiB"))
    people = [replace(person, extra=small, home=new_folder(person.home / str(n))) for n in range(2)]
    with (
        people[0].mounted(plain.place, None, *QUIET) as first,
        people[1].mounted(plain.place, None, *QUIET) as second,
    ):
        failures: list[BaseException] = []

        def read(place: Path, seed: int) -> None:
            names = sorted(SUMS)
            try:
                for _ in range(2):
                    random.Random(seed).shuffle(names)
                    for name in names:
                        assert checksum(place / name) == SUMS[name], name
                        drop(place / name)
            except (AssertionError, OSError) as error:
                failures.append(error)

        threads = [
            threading.Thread(target=read, args=(place, seed))
            for place, seed in ((first, 1), (first, 2), (second, 3), (second, 4))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        used = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
        assert used < 2 << 20
