"""Blobs of a registry that breaks: read on, or an error; and the time that all may take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from soci_cli.errors import RegistryError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.targets.copy import read_blob
from soci_cli.targets.registry import RetryPolicy
from tests.support.places import describe
from tests.support.servers.actions import (
    Action,
    CutAnswer,
    FlipByte,
    FloodAnswer,
    IgnoreRange,
    Pause,
    Reply,
    ResetAnswer,
    SetHeaders,
    ShortenAnswer,
    error_reply,
)
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.exchange import Exchange
from tests.support.servers.fault_proxy import Fault
from tests.targets.registry.pulls import BLOB, LAYER, MANIFEST, SIZE, app
from tests.targets.registry.tools import (
    QUICK,
    Struck,
    fails,
    pull,
    push,
    source_at,
)


@pytest.fixture(scope="module")
def image(docker_registry: DockerRegistry) -> Descriptor:
    """pull/app:1, whose first layer is LAYER."""
    return push(docker_registry.host, "pull/app:1", size=SIZE)


@pytest.fixture
def upstream(docker_registry: DockerRegistry, image: Descriptor) -> str:
    return docker_registry.host


def test_downloads_resume_by_range(struck: Struck, image: Descriptor, tmp_path: Path) -> None:
    proxy = struck(
        Fault(ResetAnswer(after=100_000), path=BLOB, times=1),
        Fault(CutAnswer(after=100_000), path=BLOB, times=1),
        Fault(Pause(5, at=50_000), path=BLOB, times=1),
    )
    assert pull(app(proxy, timeout=0.3), tmp_path) == image
    ranges = [seen.headers.get("range") for seen in proxy.seen("GET", BLOB)]
    assert ranges == [
        None,
        f"bytes=100000-{SIZE - 1}",
        f"bytes=200000-{SIZE - 1}",
        f"bytes=250000-{SIZE - 1}",
    ]


def test_registry_that_ignores_range(struck: Struck, image: Descriptor, tmp_path: Path) -> None:
    proxy = struck(
        Fault(ResetAnswer(after=100_000), path=BLOB, times=1), Fault(IgnoreRange(), path=BLOB)
    )
    assert pull(app(proxy), tmp_path) == image
    with app(proxy).fetch(describe(LAYER), 1000, 10) as stream:
        assert stream.read() == LAYER[1000:1010]


def test_many_breaks_with_progress(struck: Struck, image: Descriptor, tmp_path: Path) -> None:
    """A link that breaks all the time, but lets something through each time."""
    cut = struck(Fault(ResetAnswer(after=70_000), path=BLOB))
    assert pull(app(cut, retries=RetryPolicy(2, 0.01, 0.02)), tmp_path) == image
    assert len(cut.seen("GET", BLOB)) == 5


def test_breaks_without_progress(struck: Struck, tmp_path: Path) -> None:
    """A peer that gives a byte each time is not asked for ever."""
    dripping = struck(Fault(ResetAnswer(after=1), path=BLOB))
    with fails("reset by peer", kind=RegistryError):
        pull(app(dripping), tmp_path)
    assert len(dripping.seen("GET", BLOB)) == QUICK.attempts


WRONG: list[tuple[Action, str]] = [
    (FlipByte(150_000), "does not have that digest"),
    (ShortenAnswer(to=1000), "has 1000 bytes"),
    (FloodAnswer(SIZE + 1, declared=SIZE + 1), f"has {SIZE + 1} bytes"),
    (FloodAnswer(SIZE + (9 << 20)), "does not have that digest"),
    (Reply(206, {"Content-Range": "bytes 5-9/10"}, b"12345"), "another range"),
    (Reply(206, {"Content-Range": "9" * 60_000}, b"12345"), "another range"),
]


@pytest.mark.parametrize(("action", "said"), WRONG, ids=lambda value: repr(value)[:30])
def test_wrong_blobs(action: Action, said: str, struck: Struck, tmp_path: Path) -> None:
    proxy = struck(Fault(action, path=BLOB))
    with fails(said):
        pull(app(proxy), tmp_path)
    assert not list(tmp_path.rglob(describe(LAYER).digest[7:]))


@pytest.mark.parametrize("told", ["\xb2", "-5", "0x10", "1, 2", "", "5" * 5000])
def test_content_length_that_is_no_number(struck: Struck, told: str) -> None:
    def odd(exchange: Exchange) -> None:
        answer = exchange.ask()
        sent = f"HTTP/1.1 200 OK\r\nContent-Length: {told}\r\nConnection: close\r\n\r\n"
        exchange.request.wfile.write(sent.encode("latin-1") + b"".join(answer.body))
        exchange.hang_up()

    proxy = struck(Fault(odd, path=BLOB))
    try:
        assert read_blob(app(proxy), describe(LAYER)) == LAYER
    except RegistryError as error:
        assert told == "1, 2", error  # this one may be refused


@pytest.mark.parametrize(
    "content_range", ["bytes 0-9/5", "bytes 7-3/300000", "bytes 10-19/1", "x", "", "bytes */300000"]
)
def test_ranges_that_lie(struck: Struck, content_range: str) -> None:
    reply = Reply(206, {"Content-Range": content_range}, b"0123456789")
    with (
        fails("another range"),
        app(struck(Fault(reply, path=BLOB))).fetch(describe(LAYER), 10, 10) as stream,
    ):
        stream.read()


def test_layer_with_a_content_encoding(struck: Struck, image: Descriptor, tmp_path: Path) -> None:
    """Stores that take a layer for a compressed something else say so; the bytes are what counts."""
    proxy = struck(Fault(SetHeaders({"Content-Encoding": "gzip"}), path=BLOB))
    assert pull(app(proxy), tmp_path) == image


def test_a_reader_that_failed_stays_so(struck: Struck) -> None:
    """Going on would leave a hole."""
    proxy = struck(Fault(ResetAnswer(after=1000), path=BLOB, times=1))
    with app(proxy, retries=RetryPolicy(1)).fetch(describe(LAYER)) as stream:
        for _ in range(3):
            with fails("reset by peer", kind=RegistryError):
                stream.read()
    assert len(proxy.log) == 1


# Time


def test_slow_documents_end(struck: Struck) -> None:
    """A byte now and then keeps no client waiting for ever."""

    def drip(exchange: Exchange) -> None:
        def body() -> Iterator[bytes]:
            while True:
                exchange.wait(0.02)
                yield b" "

        exchange.answer(200, [("Content-Length", "100000")], body())

    proxy = struck(Fault(drip, path=MANIFEST))
    begun = time.monotonic()
    with fails("no answer in time", kind=RegistryError):
        app(proxy, timeout=0.05, retries=RetryPolicy(2, 0.01)).resolve()
    assert time.monotonic() - begun < 2


def test_retry_after_is_honoured(struck: Struck, image: Descriptor) -> None:
    def seconds(status: int) -> float:
        reply = error_reply(status, "WAIT", Retry_After="1")
        begun = time.monotonic()
        assert app(struck(Fault(reply, path=MANIFEST, times=1))).resolve() == image
        return time.monotonic() - begun

    with ThreadPoolExecutor() as pool:
        assert all(1 <= found < 1.6 for found in pool.map(seconds, [429, 503]))


def test_too_long_a_pause_is_refused(struck: Struck) -> None:
    proxy = struck(Fault(error_reply(429, "TOOMANYREQUESTS", Retry_After="3600")))
    with fails("429", "3600 seconds", kind=RegistryError):
        app(proxy).resolve()
    assert len(proxy.log) == 1


def test_pauses_grow_and_vary() -> None:
    policy = RetryPolicy()
    assert all(0.1 < policy.pause(1) < 1 for _ in range(100))
    assert len({policy.pause(1) for _ in range(10)}) == 10
    for failures in range(1, 12):
        assert policy.pause(failures) <= policy.longest
    assert policy.pause(12) >= policy.longest / 2
    asked = {policy.pause(1, 7.0) for _ in range(10)}
    assert len(asked) == 10 and all(7.0 <= pause <= 9.0 for pause in asked)
    assert sum(policy.longest for _ in range(policy.attempts)) < 60


def test_unknown_hosts_and_closed_ports() -> None:
    begun = time.monotonic()
    with fails("the host cannot be found", "https://registry.invalid/v2/"):
        source_at("registry.invalid", "app:1", retries=RetryPolicy()).resolve()
    assert time.monotonic() - begun < 3, "trying again does not help"
    with fails("connection refused", "(4 attempts)"):
        source_at("127.0.0.1:1", "app:1").resolve()
