"""Which reads are retries of the kernel's."""

from __future__ import annotations

from soci_cli.lazy.fuse.retries import Retries

PAGE = 4096
ERROR = OSError()


def test_the_pages_after_a_failure() -> None:
    """The page that failed once more, then those behind it, which are asked for ahead, too."""
    now = [0.0]
    retries = Retries(lambda: now[0])
    assert not retries.error_of(7, 2, PAGE, PAGE)
    retries.failed(7, 2, PAGE, PAGE, ERROR)
    for page in (1, 2, 2, 3, 3, 40, 4, 80, 5, 6):
        now[0] += 0.1
        assert retries.error_of(7, 2, page * PAGE, PAGE)
    # The first one by itself, which waits, and is the end.
    assert not retries.error_of(7, 2, PAGE, PAGE)
    retries.failed(7, 2, PAGE, PAGE, ERROR)
    for page in (1, 1, 2, 300):
        assert not retries.error_of(7, 2, page * PAGE, PAGE)
    # The same once more.
    retries.failed(7, 2, PAGE, PAGE, ERROR)
    assert retries.error_of(7, 2, PAGE, PAGE) is ERROR
    assert not retries.error_of(7, 2, PAGE, PAGE)


def test_what_is_none() -> None:
    now = [0.0]
    retries = Retries(lambda: now[0])
    retries.failed(7, 2, PAGE, PAGE, ERROR)
    assert not retries.error_of(8, 2, PAGE, PAGE)  # another thread
    assert not retries.error_of(7, 3, PAGE, PAGE)  # another device
    assert not retries.error_of(7, 2, 0, PAGE)
    assert not retries.error_of(7, 2, PAGE + (4 << 20), PAGE)
    now[0] = 1.0
    assert not retries.error_of(7, 2, PAGE, PAGE)  # too late
    retries.failed(0, 2, PAGE, PAGE, ERROR)
    assert not retries.error_of(0, 2, PAGE, PAGE)  # of anybody


def test_it_remembers_some_threads() -> None:
    retries = Retries(lambda: 0.0)
    for thread in range(1, 1000):
        retries.failed(thread, 2, PAGE, PAGE, ERROR)
    assert not retries.error_of(1, 2, PAGE, PAGE)
    assert retries.error_of(999, 2, PAGE, PAGE)
