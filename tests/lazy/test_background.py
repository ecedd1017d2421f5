"""What is fetched in the background, and ahead for prefetch artifacts."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from soci_cli.errors import RegistryError
from soci_cli.lazy import Fetching
from soci_cli.lazy.background import BackgroundFetcher, BackgroundOptions
from tests.lazy.plain_layers import (
    AT_ONCE,
    COUNT,
    SPAN,
    Layer,
    can_read_now,
    layer,
    quiet,
    read,
    spans_at,
)
from tests.lazy.tools import (
    NoBytes,
    eventually,
    fetching_at,
)


def test_the_background_fetches_all(fetching: Fetching) -> None:
    both = [spans_at(fetching, seed) for seed in range(2)]
    read(both[0][0], 3)
    layers = [Layer(NoBytes()), *(Layer(spans) for spans, _ in both)]
    with BackgroundFetcher(layers, fetching, AT_ONCE) as background:
        assert background.wait(30)
    assert [place.sent for _, place in both] == [len(layer())] * 2
    assert fetching.stats.report().background.spans == 2 * COUNT - 1
    assert all(spans.presence().spans_here == COUNT for spans, _ in both)
    assert all(spans.presence().size_here == len(layer()) for spans, _ in both)


def test_the_background_waits_for_silence(fetching: Fetching, pool: ThreadPoolExecutor) -> None:
    hanging, gated = spans_at(fetching, 1)
    gated.gate = threading.Semaphore(0)
    reader = pool.submit(read, hanging, 0, 1)
    eventually(lambda: len(gated.requests) == 1)
    spans, place = spans_at(fetching)
    with BackgroundFetcher([Layer(spans)], fetching, AT_ONCE) as background:
        assert not background.wait(0.2)
        assert not place.requests
        gated.gate.release(100)
        reader.result(30)
        assert background.wait(30)
    long = BackgroundOptions(silence_period=1000, fetch_period=0.001)
    with BackgroundFetcher([Layer(hanging)], fetching, long) as background:
        assert not background.wait(0.1)
    assert len(gated.requests) == 1


@pytest.mark.parametrize(
    "options", [BackgroundOptions(enabled=False), BackgroundOptions(True, 0, 0.001, 0)]
)
def test_no_background(fetching: Fetching, options: BackgroundOptions) -> None:
    spans, place = spans_at(fetching)
    with BackgroundFetcher([Layer(spans)], fetching, options) as background:
        assert background.wait(30)
    assert not place.requests


def test_the_background_tries_again(fetching: Fetching) -> None:
    spans, place = spans_at(fetching)
    place.failures = [RegistryError("no")] * 3
    with BackgroundFetcher([Layer(spans)], fetching, AT_ONCE) as background:
        assert background.wait(30)
    assert not spans.missing()


def test_the_background_does_not_push_out_what_it_fetched(tmp_path: Path) -> None:
    with fetching_at(tmp_path, limit=8 * SPAN) as fetching:
        spans, place = spans_at(fetching)
        with BackgroundFetcher([Layer(spans)], fetching, AT_ONCE) as background:
            assert background.wait(30)
        assert 3 * SPAN <= place.sent <= 8 * SPAN


def test_prefetch(fetching: Fetching) -> None:
    spans, place = spans_at(fetching)
    options = BackgroundOptions(enabled=False)
    layers = [Layer(NoBytes()), Layer(spans)]
    with BackgroundFetcher(layers, fetching, options) as background:
        background.prefetch(0, [(0, 5)])
        background.prefetch(1, [(2, 3), (3, 3), (14, 1 << 31), (1 << 30, 1 << 31)])
        eventually(lambda: len(spans.missing()) == COUNT - 4)
        quiet(spans)
    assert fetching.stats.report().prefetch.spans == 4
    assert place.sent == 4 * SPAN
    assert all(can_read_now(spans, number) for number in (2, 3, 14, 15))


def test_prefetch_of_a_layer_that_hangs_ends(fetching: Fetching) -> None:
    spans, place = spans_at(fetching)
    place.gate = threading.Semaphore(0)
    background = BackgroundFetcher([Layer(spans)], fetching, BackgroundOptions(enabled=False))
    background.prefetch(0, [(0, COUNT)])
    eventually(lambda: len(place.requests) == 2)
    begin = time.monotonic()
    background.close()
    fetching.close()
    assert time.monotonic() - begin < 10
    place.gate.release(100)
