"""Which readers go through a layer in order, and what is fetched ahead of them."""

from __future__ import annotations

import itertools
import random

from soci_cli.lazy.readahead import Readahead

KIB, MIB = 1 << 10, 1 << 20


def test_as_much_as_was_read_on_end() -> None:
    ahead = Readahead(64 * MIB)
    assert ahead.after(10 * MIB, 512 * KIB) is None
    assert ahead.after(10 * MIB + 512 * KIB, 512 * KIB) == (11 * MIB, 12 * MIB)
    # In large steps.
    assert ahead.after(11 * MIB, 128 * KIB) is None
    assert ahead.after(11 * MIB + 128 * KIB, 896 * KIB) == (12 * MIB, 14 * MIB)
    # The same once more is no news.
    assert ahead.after(11 * MIB, 1024 * KIB) is None


def test_no_more_than_is_allowed() -> None:
    ahead = Readahead(2 * MIB)
    fetched = [found for at in range(0, 64 * MIB, MIB) if (found := ahead.after(at, MIB))]
    assert all(end - begin <= 2 * MIB for begin, end in fetched)
    assert fetched[-1][1] <= 66 * MIB
    assert all(one[1] == two[0] for one, two in itertools.pairwise(fetched))
    assert Readahead(0).after(0, MIB) is None


def test_small_files_in_order() -> None:
    """A little is left out between them, and some are."""
    ahead = Readahead(64 * MIB)
    sizes = random.Random(1)
    at, fetched = 0, None
    while fetched is None:
        fetched = ahead.after(at, 6 * KIB)
        at += 6 * KIB + sizes.choice([KIB, KIB, 12 * KIB])
        assert at < 3 * MIB
    assert fetched[0] < at


def test_pieces_of_libraries() -> None:
    """As a program reads that starts: nothing is fetched ahead."""
    ahead = Readahead(64 * MIB)
    places = random.Random(2)
    for library in (40, 0, 20, 60):
        at = library * MIB
        for _ in range(40):
            assert ahead.after(at, 64 * KIB) is None
            at += places.choice([-128, 256, 512]) * KIB


def test_a_long_way_with_gaps() -> None:
    ahead = Readahead(64 * MIB)
    fetched = [ahead.after(at, 64 * KIB) for at in range(0, 24 * MIB, MIB)]
    assert not any(fetched[:16])
    assert fetched[16] is not None
    begin, end = fetched[16]
    assert 16 * MIB < begin < end <= 21 * MIB


def test_readers_are_told_apart() -> None:
    ahead = Readahead(64 * MIB)
    for step in range(4):
        for reader in range(8):
            at = reader * 100 * MIB + step * MIB
            found = ahead.after(at, MIB)
            assert (found is not None) == (step > 0), (step, reader)
