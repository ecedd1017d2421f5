"""How long readers wait where nothing comes any more, and how much is under way at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from soci_cli.errors import UnreachableError
from soci_cli.lazy import Cache, Fetching, LayerSpans
from soci_cli.lazy.background import BackgroundFetcher, BackgroundOptions
from soci_cli.lazy.fetcher import Fetcher
from soci_cli.lazy.span_queue import Priority
from soci_cli.oci import Descriptor
from soci_cli.parallel import Stopped
from soci_cli.targets import BlobReader
from tests.lazy.plain_layers import COUNT, SPAN, Layer, layer, spans_at
from tests.lazy.tools import Place, eventually, spans_of

DEADLINE = 30.0
SMALL = 512 << 10
"""Bytes of a span that is too far from the one after the next to come with it."""


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fetching(tmp_path: Path, clock: Clock) -> Iterator[Fetching]:
    cache = Cache(tmp_path / "cache", 1 << 30)
    with Fetcher(clock) as fetcher, Fetching(cache, deadline=DEADLINE, fetcher=fetcher) as made:
        yield made


def submit(spans: LayerSpans, number: int) -> Future[bytes]:
    return spans.submit(number * SPAN + 1000, 5000)


def content(number: int, seed: int = 0) -> bytes:
    at = number * SPAN + 1000
    return layer(seed)[at : at + 5000]


def settle() -> None:
    """Waits until the deadlines have been looked at with the clock as it is."""
    seen = threading.Event()
    threading.Timer(0.3, seen.set).start()
    assert seen.wait(30)


class SlowPlace(Place):
    """A place whose bodies come in pieces, where they are `stalled` one at each `step`."""

    def __init__(self, *blobs: bytes) -> None:
        super().__init__(*blobs)
        self.stalled = range(0)
        self.waiting: list[threading.Semaphore] = []

    def step(self, count: int = 1) -> None:
        """Lets some pieces of each body come."""
        for one in tuple(self.waiting):
            one.release(count)

    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> BlobReader:
        stream: Any = super().fetch(descriptor, offset, length)
        whole = stream.readinto

        class Slow:
            skipped = 0

            def __init__(self) -> None:
                self.at = offset
                self.step = threading.Semaphore(0)

            def readinto(slow, buffer: memoryview) -> int:
                if slow.at in self.stalled:
                    self.waiting.append(slow.step)
                    slow.step.acquire()
                    self.waiting.remove(slow.step)
                count = int(whole(buffer[:1000]))
                slow.at += count
                return count

            def close(self) -> None:
                pass

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                pass

        reader: Any = Slow()
        return reader  # type: ignore[no-any-return]


def test_a_registry_that_says_nothing(fetching: Fetching, clock: Clock) -> None:
    spans, place = spans_at(fetching)
    place.gate = threading.Semaphore(0)
    first = submit(spans, 3)
    eventually(lambda: len(place.requests) == 1)
    clock.now += DEADLINE - 1
    late = submit(spans, 9)
    settle()
    assert not first.done()
    clock.now += 1
    error = first.exception(30)
    assert isinstance(error, UnreachableError)
    assert (error.place, error.layer, error.span) == ("place", spans.layer.digest, 3)
    assert "nothing came for 30 s" in str(error)
    # Who began later waits on, and so do others.
    settle()
    assert not late.done()
    again = submit(spans, 3)
    eventually(lambda: len(place.requests) == 3)
    place.gate.release(100)
    assert again.result(30) == content(3)
    assert late.result(30) == content(9)
    eventually(lambda: spans.is_quiet)
    assert fetching.stats.report().errors == 1


def test_a_body_that_stalls(fetching: Fetching, clock: Clock) -> None:
    place = SlowPlace(layer())
    spans, _ = spans_of(layer(), fetching, place, SPAN)
    place.stalled = range(3 * SPAN + 500_000, 4 * SPAN)
    stalled = submit(spans, 3)
    eventually(lambda: len(place.waiting) == 1)
    # A line that moves, however slowly, is no silence.
    for _ in range(4):
        clock.now += DEADLINE - 1
        settle()
        place.step()
        eventually(lambda: len(place.waiting) == 1)
    assert not stalled.done()
    # Nobody else is held up.
    assert submit(spans, 7).result(30) == content(7)
    assert submit(spans, 11).result(30) == content(11)
    clock.now += DEADLINE
    assert isinstance(stalled.exception(30), UnreachableError)
    # The next reader begins anew, although the old request still hangs.
    place.stalled = range(0)
    requests = len(place.requests)
    assert submit(spans, 3).result(30) == content(3)
    assert len(place.requests) == requests + 1
    place.step(100)
    assert submit(spans, 3).result(30) == content(3)


def test_what_waits_behind_others(tmp_path: Path, clock: Clock) -> None:
    """A span whose turn has not come is no silence while others of its layer come."""
    cache = Cache(tmp_path / "cache", 1 << 30)
    with (
        Fetcher(clock) as fetcher,
        Fetching(cache, requests=1, deadline=DEADLINE, fetcher=fetcher) as fetching,
    ):
        place = SlowPlace(layer())
        place.stalled = range(len(layer()))
        spans, _ = spans_of(layer(), fetching, place, SPAN)
        reads = [submit(spans, number) for number in (0, 7, 14)]
        eventually(lambda: len(place.waiting) == 2)  # one more than usual for who waits
        for _ in range(3):
            clock.now += DEADLINE - 1
            place.step()
            settle()
            eventually(lambda: len(place.waiting) == 2)
        assert not any(read.done() for read in reads)
        place.stalled = range(0)
        place.step()
        assert [read.result(30) for read in reads] == [content(0), content(7), content(14)]


def test_the_background_is_patient(fetching: Fetching, clock: Clock) -> None:
    spans, place = spans_at(fetching)
    place.gate = threading.Semaphore(0)
    (pending,) = spans.fetch([3], Priority.BACKGROUND)
    eventually(lambda: len(place.requests) == 1)
    clock.now += 10 * DEADLINE
    settle()
    assert not pending.future.done()
    # Who joins it waits as long as everybody.
    read = submit(spans, 3)
    clock.now += DEADLINE - 1
    settle()
    assert not read.done()
    clock.now += 1
    assert isinstance(read.exception(30), UnreachableError)
    place.gate.release(100)
    assert submit(spans, 3).result(30) == content(3)


def test_a_request_that_was_silent_before_its_reader_came(fetching: Fetching, clock: Clock) -> None:
    """Who waits for what was read ahead meanwhile gets it as soon as the registry answers again."""
    spans, place = spans_at(fetching)
    gate = place.gate = threading.Semaphore(0)
    spans.fetch([3], Priority.READAHEAD)
    eventually(lambda: len(place.requests) == 1)
    clock.now += DEADLINE - 1
    place.gate = None  # of new requests
    read = submit(spans, 3)
    settle()
    assert not read.done()
    clock.now += 1
    assert read.result(30) == content(3)
    assert len(place.requests) == 2
    gate.release(100)


def test_others_of_a_request_that_is_given_up(fetching: Fetching, clock: Clock) -> None:
    """They are requested again, without those who waited too long."""
    spans, place = spans_at(fetching)
    place.gate = threading.Semaphore(0)
    ahead = spans.fetch([4, 5], Priority.READAHEAD)
    read = submit(spans, 4)
    eventually(lambda: sum(length for _, length in place.requests) == 2 * SPAN)
    clock.now += DEADLINE
    assert isinstance(read.exception(30), UnreachableError)
    place.gate.release(100)
    assert ahead[1].future.result(30).size == SPAN
    assert submit(spans, 4).result(30) == content(4)


def test_a_source_that_ignores_range_and_stalls(fetching: Fetching, clock: Clock) -> None:
    place = SlowPlace(layer())
    place.stalled = range(5 * SPAN, 6 * SPAN)
    spans, _ = spans_of(layer(), fetching, place, SPAN)
    spans._receiver._in_order = True
    first = submit(spans, 8)
    eventually(lambda: len(place.waiting) == 1)
    clock.now += DEADLINE
    assert isinstance(first.exception(30), UnreachableError)
    place.stalled = range(0)
    assert submit(spans, 8).result(30) == content(8)
    place.step(100)


def test_a_registry_that_hangs_for_long(fetching: Fetching, clock: Clock) -> None:
    """Reader after reader gives up. What hangs does not add up, and all is well when it is over."""
    spans, place = spans_at(fetching)
    place.gate = threading.Semaphore(0)
    for number in range(2 * COUNT):
        read = submit(spans, number % COUNT)
        clock.now += DEADLINE
        assert isinstance(read.exception(30), UnreachableError)
    assert len(place.requests) <= 16
    place.gate.release(100)
    for number in range(COUNT):
        assert submit(spans, number).result(30) == content(number)


def test_all_layers_together(fetching: Fetching) -> None:
    """There is a bound, also for several images, and no layer is in the way of another."""
    threads = set(threading.enumerate())
    images = [fetching, Fetching(fetching.cache, fetcher=fetching.fetcher)]
    data = [layer(seed, 6 * SMALL) for seed in range(60)]
    layers = [spans_of(one, images[at % 2], span_size=SMALL) for at, one in enumerate(data)]
    gates = [threading.Semaphore(0) for _ in layers]
    for (spans, place), gate in zip(layers, gates, strict=True):
        place.gate = gate
        for number in (0, 2, 4):
            spans.fetch([number], Priority.PREFETCH)
    eventually(lambda: sum(len(place.requests) for _, place in layers) >= 32)
    assert sum(len(place.requests) for _, place in layers) == 32
    assert len(set(threading.enumerate()) - threads) <= 34
    # Of those that have none each gets one for its readers.
    idle = [at for at, (_, place) in enumerate(layers) if not place.requests]
    reads = [layers[at][0].submit(SMALL, 100) for at in idle]
    eventually(lambda: all(len(layers[at][1].requests) == 1 for at in idle))
    assert sum(len(place.requests) for _, place in layers) == 32 + len(idle)
    gates[idle[0]].release(100)
    assert reads[0].result(30) == data[idle[0]][SMALL : SMALL + 100]
    for gate in gates:
        gate.release(100)
    for at, read in zip(idle, reads, strict=True):
        assert read.result(30) == data[at][SMALL : SMALL + 100]
    eventually(lambda: fetching.fetcher.is_quiet)
    assert all(one.stats.report().prefetch.spans for one in images)


def test_images_that_share_threads(fetching: Fetching) -> None:
    """One that is closed is no end for the others."""
    first = Fetching(fetching.cache, fetcher=fetching.fetcher)
    spans, place = spans_at(first)
    place.gate = threading.Semaphore(0)
    hanging = submit(spans, 3)
    eventually(lambda: len(place.requests) == 1)
    spans.close()
    first.close()
    assert isinstance(hanging.exception(30), Stopped)
    other, _ = spans_at(fetching, 1)
    assert submit(other, 5).result(30) == content(5, 1)
    place.gate.release()


def test_many_images_in_the_background(tmp_path: Path) -> None:
    """They take no thread each."""
    threads = set(threading.enumerate())
    fetching = Fetching(Cache(tmp_path, 1 << 30))
    layers = [spans_of(layer(seed, 6 * SMALL), fetching, span_size=SMALL) for seed in range(40)]
    options = BackgroundOptions(silence_period=0, fetch_period=0.001)
    images = [BackgroundFetcher([Layer(spans)], fetching, options) for spans, _ in layers]
    most = 0
    for image in images:
        while not image.wait(0.01):
            most = max(most, len(set(threading.enumerate()) - threads))
    fetching.close()
    assert most < 20
    assert not any(spans.missing() for spans, _ in layers)
