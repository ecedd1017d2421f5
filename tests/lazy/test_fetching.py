"""What is fetched next and ahead of readers; what is counted; and what stays open."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from soci_cli.errors import RegistryError, SociError, StorageError
from soci_cli.lazy import Cache, Fetching
from soci_cli.lazy.background import BackgroundFetcher
from soci_cli.lazy.entries import OpenEntries
from soci_cli.lazy.span_queue import ImageRequests, Priority
from tests.lazy.plain_layers import (
    AT_ONCE,
    COUNT,
    SPAN,
    Layer,
    can_read_now,
    layer,
    open_files,
    quiet,
    read,
    read_all,
    spans_at,
)
from tests.lazy.tools import (
    Place,
    eventually,
    fetching_at,
    no_thread,
    read_now,
    spans_of,
)
from tests.support.machine import PROJECT


@pytest.mark.parametrize("priority", [Priority.READAHEAD, Priority.PREFETCH, Priority.BACKGROUND])
def test_a_reader_overtakes_a_full_queue(
    fetching: Fetching, pool: ThreadPoolExecutor, priority: Priority
) -> None:
    spans, place = spans_at(fetching)
    place.gate = threading.Semaphore(0)
    spans.fetch(range(COUNT), priority)
    eventually(lambda: len(place.requests) == fetching.requests)
    waiting = pool.submit(read, spans, COUNT - 1)
    eventually(lambda: len(place.requests) == fetching.requests + 1)
    assert place.requests[-1] == ((COUNT - 1) * SPAN, SPAN)
    place.gate.release(100)
    waiting.result(30)


def test_what_waits_moves_up_when_it_is_read(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    with Fetching(Cache(tmp_path, 1 << 30), requests=1) as fetching:
        spans, place = spans_at(fetching)
        place.gate = threading.Semaphore(0)
        spans.fetch(range(COUNT), Priority.BACKGROUND)
        eventually(lambda: len(place.requests) == 1)
        first = pool.submit(read, spans, 9)
        eventually(lambda: len(place.requests) == 2)
        second = pool.submit(read, spans, 12)
        eventually(lambda: fetching.fetcher.waiting == 2)
        place.gate.release()
        eventually(lambda: len(place.requests) == 3)
        assert place.requests[2] == (12 * SPAN, SPAN)
        place.gate.release(100)
        first.result(30)
        second.result(30)
        quiet(spans)
        assert place.sent == len(layer())  # nothing came twice


def test_a_layer_that_hangs_holds_no_other(fetching: Fetching, pool: ThreadPoolExecutor) -> None:
    hanging, place = spans_at(fetching, 1)
    place.gate = threading.Semaphore(0)
    stuck: list[Future[None]] = [pool.submit(read, hanging, number, 1) for number in range(12)]
    eventually(lambda: fetching.fetcher.waiting == 12)
    spans, _ = spans_at(fetching)
    for number in range(COUNT):
        read(spans, number)
    begin = time.monotonic()
    fetching.close()
    hanging.close()
    assert time.monotonic() - begin < 10
    for one in stuck:
        with pytest.raises(SociError):
            one.result(30)
    with pytest.raises(SociError):
        read(hanging, 0)
    place.gate.release(100)


def test_threads_end_when_there_is_nothing_to_do(
    fetching: Fetching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("soci_cli.lazy.fetcher._IDLE", 0.01)
    spans, _ = spans_at(fetching)
    for number in (3, 8):
        read(spans, number)
        eventually(lambda: not any(t.name == "soci-fetch" for t in threading.enumerate()))


def test_no_more_threads(fetching: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    spans, place = spans_at(fetching)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        for number in range(40):
            with pytest.raises(StorageError, match="can't start new thread"):
                read(spans, number % COUNT)
    assert spans.is_quiet
    assert not place.requests
    read(spans, 3)


# Errors.


def test_an_error_says_where_and_is_not_remembered(fetching: Fetching) -> None:
    spans, place = spans_at(fetching)
    place.failures = [RegistryError("GET http://127.0.0.1: no", 503)]
    with pytest.raises(RegistryError, match=r"span 3 of layer sha256:.* in place: GET") as caught:
        read(spans, 3)
    assert caught.value.status == 503
    read(spans, 3)
    assert fetching.stats.report().errors == 1


def test_a_file_that_is_cut_while_it_is_open(fetching: Fetching) -> None:
    spans, place = spans_at(fetching)
    read(spans, 3)
    for path in fetching.cache.root.rglob("3"):
        os.truncate(path, 100)
    assert not can_read_now(spans, 3)
    read(spans, 3)
    assert len(place.requests) == 2
    assert can_read_now(spans, 3)


def test_what_is_on_the_disk_only_is_waited_for(tmp_path: Path) -> None:
    """A whole span is read and its checksum is made: nothing for the one thread that serves a mount."""
    with fetching_at(tmp_path) as fetching:
        read(spans_at(fetching)[0], 3)
    with fetching_at(tmp_path) as fetching:
        spans, place = spans_at(fetching)
        assert not can_read_now(spans, 3)
        read(spans, 3)
        assert can_read_now(spans, 3)
        assert not place.requests


# Ahead of readers.


def test_single_reads_fetch_nothing_ahead(tmp_path: Path) -> None:
    with fetching_at(tmp_path, readahead=8 * SPAN) as fetching:
        spans, place = spans_at(fetching)
        for number in (5, 0, 15, 9, 12, 5):
            read(spans, number)
            quiet(spans)
        assert place.sent == 5 * SPAN


def test_reading_in_order_fetches_ahead(tmp_path: Path) -> None:
    with fetching_at(tmp_path, readahead=4 * SPAN) as fetching:
        spans, place = spans_at(fetching)
        read_all(spans, 2)
        quiet(spans)
        assert place.sent == SPAN
        read_all(spans, 3, file=b"f")
        quiet(spans)
        assert place.sent == 4 * SPAN
        # What is here drives it on, and it never gets too far.
        for number in range(4, COUNT):
            assert can_read_now(spans, number, b"g", SPAN)
            quiet(spans)
            assert place.sent <= (number - 2 + 1 + 4) * SPAN
        report = fetching.stats.report()
        assert place.sent == (COUNT - 2) * SPAN == report.demand.fetched
        assert {one.file for one in report.files} == {"f", "g"}
        assert sum(one.spans for one in report.files) == COUNT - 3


def test_reading_pieces_in_order_fetches_nothing_ahead(tmp_path: Path) -> None:
    with fetching_at(tmp_path, readahead=4 * SPAN) as fetching:
        spans, place = spans_at(fetching)
        for number in range(COUNT):
            read(spans, number)
            quiet(spans)
            assert place.sent == (number + 1) * SPAN


def test_two_readers_in_order_at_once(tmp_path: Path) -> None:
    with fetching_at(tmp_path, readahead=3 * SPAN) as fetching:
        spans, _ = spans_at(fetching)
        for step in range(8):
            for number in (step, 8 + step):
                if step < 2:
                    read_all(spans, number)
                else:
                    assert can_read_now(spans, number, size=SPAN)
                quiet(spans)


def test_without_readahead(fetching: Fetching) -> None:
    spans, place = spans_at(fetching)
    for number in range(8):
        read_all(spans, number)
        quiet(spans)
    assert place.sent == 8 * SPAN


def test_many_readers_of_a_source_that_ignores_range(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with fetching_at(tmp_path, readahead=4 * SPAN) as fetching:
        spans, place = spans_of(layer(), fetching, Place(layer(), ranges=False), SPAN)
        read(spans, 1)  # shows it
        for one in [pool.submit(read, spans, number) for number in range(COUNT)]:
            one.result(60)
        assert place.requests[1:] == [(0, len(layer()))]


# What is counted.


def test_the_counts_add_up(tmp_path: Path) -> None:
    with fetching_at(tmp_path) as fetching:
        spans, _ = spans_at(fetching)
        for number in (1, 2):
            read(spans, number)
    with fetching_at(tmp_path) as fetching:
        spans, place = spans_at(fetching)
        for number in (1, 1, 3, 3, 4):
            read(spans, number, file=b"dir/f\xff" if number == 3 else b"g")
        read(spans, 2)
        assert not can_read_now(spans, 5)
        with BackgroundFetcher([Layer(spans)], fetching, AT_ONCE) as background:
            background.prefetch(0, [(6, 7)])
            eventually(lambda: fetching.stats.report().prefetch.spans == 2)
            assert background.wait(30)
        report = fetching.stats.report()
    sources = (report.demand, report.prefetch, report.background, report.cache)
    assert [one.spans for one in sources] == [2, 2, COUNT - 6, 2]
    assert sum(one.uncompressed for one in sources) == len(layer())
    assert sum(one.fetched for one in sources) == place.sent
    assert report.cache.fetched == 0
    assert (report.hits, report.misses, report.hit_rate) == (4, 2, 4 / 6)
    assert sorted((one.file, one.spans, one.fetched) for one in report.files) == [
        ("dir/f\\xff", 1, SPAN),
        ("g", 1, SPAN),
    ]
    json.dumps(dataclasses.asdict(report))


def test_many_files_are_counted(fetching: Fetching) -> None:
    stats = fetching.stats
    for number in range(20_000):
        stats.charge("layer", b"%d" % number, number)
    files = stats.report().files
    assert len(files) == 1000
    assert [one.fetched for one in files] == list(range(19_999, 18_999, -1))


# What stays open.


def test_entries_that_leave_stay_open_for_their_readers(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 30)
    before = open_files()
    entries = OpenEntries(count=3)
    for number in range(10):
        cache.put(f"a/{number}", b"%d" % number * 100)
        entry = cache.find(f"a/{number}")
        assert entry is not None
        entries.put(str(number), entry)
        if number == 2:
            kept = entry
        del entry
    assert len(entries) == 3
    assert open_files() == before + 4
    cache.remove("a/2")
    assert kept.read(0, 100) == b"2" * 100
    assert not kept.is_linked
    del kept
    entries.clear()
    assert open_files() == before


def test_evicted_entries_are_let_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 30)
    entries = OpenEntries()
    for number in range(64):
        cache.put(f"a/{number}", b"x")
        if number == 63:
            cache.prune()
            cache.put(f"a/{number}", b"x")
        entry = cache.find(f"a/{number}")
        assert entry is not None
        entries.put(str(number), entry)
    assert len(entries) == 1


def test_many_readers_while_entries_go(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    with fetching_at(tmp_path, limit=4 * SPAN, readahead=2 * SPAN) as fetching:
        fetching.fetcher.open = OpenEntries(count=3)
        before = open_files()
        spans, _ = spans_at(fetching)

        def work(seed: int) -> None:
            source = random.Random(seed)
            for _ in range(30):
                at = source.randrange(COUNT * SPAN - 1)
                length = min(source.randrange(1, 2 * SPAN), COUNT * SPAN - at)
                data = read_now(spans, at, length)
                assert (data or spans.read(at, length)) == layer()[at : at + length]

        for one in [pool.submit(work, seed) for seed in range(6)]:
            one.result(60)
        quiet(spans)

        def is_closed() -> bool:
            fetching.fetcher.open.clear()  # what is being opened ahead of readers comes later
            return open_files() <= before + 1

        eventually(is_closed)


def test_two_processes_with_a_small_cache(tmp_path: Path) -> None:
    work = """
        import random, sys
        from pathlib import Path
        from tests.lazy.plain_layers import COUNT, SPAN, layer, spans_at
        from tests.lazy.tools import fetching_at
        source = random.Random(int(sys.argv[2]))
        with fetching_at(Path(sys.argv[1]), limit=5 * SPAN, readahead=SPAN) as fetching:
            spans, _ = spans_at(fetching)
            for _ in range(60):
                at = source.randrange(COUNT * SPAN - 100_000)
                assert spans.read(at, 100_000) == layer()[at : at + 100_000]
            print(fetching.stats.report().cache.spans)
        """
    both = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(work), str(tmp_path), str(seed)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
        )
        for seed in (1, 2)
    ]
    for one in both:
        assert one.communicate(timeout=60)[0].strip().isdigit()
    assert [one.returncode for one in both] == [0, 0]
    assert not list(tmp_path.rglob(".*.part"))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert size <= 7 * SPAN


def test_where_the_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with fetching_at(tmp_path / "file" / "cache", readahead=4 * SPAN) as fetching:
        spans, place = spans_at(fetching)
        for number in range(COUNT):
            read(spans, number)
            quiet(spans)
        assert fetching.fetcher.open.is_holding
        assert place.sent == len(layer())
        assert spans.read(0, len(layer())) == layer()
        with BackgroundFetcher([Layer(spans)], fetching, AT_ONCE) as background:
            assert background.wait(30)
        assert place.sent == len(layer())


def test_what_is_larger_than_what_is_held(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with fetching_at(tmp_path / "file" / "cache") as fetching:
        fetching.fetcher.open = OpenEntries(held=SPAN - 1)
        spans, place = spans_at(fetching)
        for _ in range(3):
            read(spans, 5)
        assert len(place.requests) == 1
        read(spans, 6)
        assert len(fetching.fetcher.open) == 1


def test_requests_of_an_image_at_once(tmp_path: Path) -> None:
    """Of all layers of an image together; what readers wait for comes all the same."""
    limits = ImageRequests(limit=2)
    with Fetching(Cache(tmp_path, 1 << 30), image=limits) as fetching:
        both = [spans_at(fetching, seed) for seed in range(2)]
        for _, place in both:
            place.gate = threading.Semaphore(0)
        for spans, _ in both:
            spans.fetch(range(COUNT), Priority.READAHEAD)
        eventually(lambda: sum(len(place.requests) for _, place in both) == 2)
        assert limits.receiving == 2
        reader = threading.Thread(target=read, args=(both[1][0], 15, 1))
        reader.start()
        eventually(lambda: limits.receiving == 3)
        for _, place in both:
            assert place.gate is not None
            place.gate.release(100)
        reader.join(30)
        eventually(lambda: not any(spans.missing() for spans, _ in both))
        assert limits.receiving == 0


def test_the_size_of_requests(tmp_path: Path) -> None:
    limits = ImageRequests(chunk_size=8 * SPAN, in_all=1)
    with Fetching(Cache(tmp_path, 1 << 30), image=limits) as fetching:
        spans, place = spans_at(fetching)
        for one in spans.fetch(range(COUNT), Priority.READAHEAD):
            one.future.result(30)
        assert [length for _, length in place.requests] == [8 * SPAN] * 2
        assert place.busiest == 1
