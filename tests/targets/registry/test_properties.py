"""What holds for any header, any URL, and any sequence of faults."""

from __future__ import annotations

import re
import time
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from soci_cli.errors import NotFoundError, SociError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.manifest import parse_manifest
from soci_cli.oci.media_types import OCI_MANIFEST
from soci_cli.targets.copy import read_blob
from soci_cli.targets.registry import RetryPolicy
from soci_cli.targets.registry.download import _CONTENT_RANGE
from soci_cli.targets.registry.messages import reason_of, redacted
from soci_cli.targets.registry.retry import retry_after
from soci_cli.targets.registry.upload import _RANGE
from soci_cli.trial_registry import RegistryServer
from tests.support.commands import Soci
from tests.support.places import copy
from tests.support.scale import examples
from tests.support.servers.actions import (
    Action,
    CutAnswer,
    DropHeaders,
    FlipByte,
    FloodAnswer,
    ForgetUpload,
    IgnoreRange,
    Redirect,
    Reply,
    ReplyEarly,
    Reset,
    ResetAnswer,
    ResetUpload,
    SetHeaders,
    ShortenAnswer,
    error_reply,
    html_reply,
)
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.exchange import Exchange
from tests.support.servers.fault_proxy import Fault, FaultProxy
from tests.targets.registry.tools import (
    check_message,
    fails,
    pull,
    push,
    small_chunks,
    source_at,
    target_at,
)

# Headers


@given(st.integers(0, 10**9 - 1))
def test_retry_after_in_seconds(seconds: int) -> None:
    assert retry_after(f" {seconds} ") == seconds


@given(st.datetimes(timezones=st.timezones()))
def test_retry_after_as_a_date(moment: object) -> None:
    from datetime import datetime

    assert isinstance(moment, datetime)
    found = retry_after(format_datetime(moment))
    if found is not None and moment.year > 1901:
        assert abs(found - max(0.0, moment.timestamp() - time.time())) < 2


@given(st.text(max_size=40) | st.from_regex(r"\w{3}, \d+ \w{3} \d+ \d+:\d+:\d+ [-+]?\w+"))
@example("Mon, 01 Jan 99999999999999999999 00:00:00 GMT")
@example("Mon, 01 Jan 0001 00:00:00 -0000")
@example("Fri, 31 Dec 9999 23:59:59 -2400")
@example("\xb2")
@example("1e5")
@example("-1")
def test_any_retry_after(text: str) -> None:
    found = retry_after(text)
    assert found is None or found >= 0


@given(st.integers(0, 2**63), st.integers(0, 2**63), st.integers(0, 2**63) | st.just("*"))
def test_content_range(start: int, end: int, size: object) -> None:
    match = _CONTENT_RANGE.fullmatch(f"bytes {start}-{end}/{size}")
    assert match is not None
    assert [int(match[1]), int(match[2]), match[3]] == [start, end, str(size)]


@given(st.text(max_size=30))
def test_any_range(text: str) -> None:
    for pattern in _CONTENT_RANGE, _RANGE:
        if match := pattern.fullmatch(text):
            assert all(part == "*" or int(part) < 10**19 for part in match.groups())


# URLs in messages


_SECRET = "SECRET" + "7f3a"
_WORD = st.text("abcXYZ019.-_~%:@[]\\;!$'()*+,=\x00\x1b\n é", max_size=12)


@given(
    scheme=st.sampled_from(["http", "https", "HTTP"]),
    user=_WORD,
    host=_WORD,
    path=_WORD.map(lambda text: "/" + text),
    query=_WORD,
)
def test_redaction(scheme: str, user: str, host: str, path: str, query: str) -> None:
    for url in (
        f"{scheme}://{user}:{_SECRET}@{host}{path}?{query}",
        f"{scheme}://{_SECRET}@{host}{path}",
        f"{scheme}://{host}{path}?{query}{_SECRET}&a=b",
        f"{scheme}://{host}{path}#{_SECRET}",
        f"{scheme}://{host}{path}?a#{query}{_SECRET}",
    ):
        shown = redacted(url)
        assert _SECRET not in shown
        assert shown.isprintable()


@given(st.text(max_size=80))
def test_any_url_is_redacted(url: str) -> None:
    assert redacted(url).isprintable()
    assert len(redacted(url)) < 400


@given(st.recursive(st.text(max_size=30), lambda inner: st.builds(OSError, inner, inner)))
def test_reasons(error: object) -> None:
    outer = ValueError(error)
    outer.__context__ = outer.args[0] if isinstance(error, BaseException) else None
    assert reason_of(outer).isprintable()


def test_reasons_go_in_circles() -> None:
    one, other = ConnectionError("one"), ConnectionError("other")
    one.__cause__, other.__cause__ = other, one
    assert reason_of(one) == "other"


# Raw answers


_RAW = [
    b"",
    b"\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/9.9 999999 x\r\n\r\n",
    b"HTTP/1.1 abc OK\r\n\r\n",
    b"\x15\x03\x01\x00\x02\x02\x50",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nx",
    b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n{",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 70_000,
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: zstd\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nContent-Type: \x1b[31m\x00\r\nContent-Length: 2\r\n\r\n{}",
    b"HTTP/1.1 307 x\r\nLocation: \x1b[31m\x00\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 307 x\r\nLocation: \r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 401 x\r\nWWW-Authenticate: \xff\x00Bearer realm=\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 500 \x1b[31m\r\nContent-Length: 2\r\n\r\n\x1b[",
    b"HTTP/1.1 500 x\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n"
    b'{"errors": [[], 5]}',
    b"HTTP/1.1 429 x\r\nRetry-After: Mon, 01 Jan 99999999999999999999 00:00:00 GMT\r\n"
    b"Content-Length: 0\r\n\r\n",
    b"HTTP/1.1 204 x\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    b"HTTP/1.1 304 x\r\n\r\n",
]


def say(raw: bytes) -> Action:
    def action(exchange: Exchange) -> None:
        exchange.drain()
        exchange.request.wfile.write(raw)
        exchange.wait(0.02)
        exchange.hang_up()

    return action


@pytest.mark.parametrize("raw", _RAW, ids=lambda raw: repr(raw[-30:]))
def test_raw_answers(raw: bytes, tmp_path: Path) -> None:
    with FaultProxy("127.0.0.1:1", Fault(say(raw))) as proxy:
        with pytest.raises(SociError) as caught:
            pull(source_at(proxy.host, "x:1", timeout=0.5, retries=RetryPolicy(1)), tmp_path)
        check_message(str(caught.value))
        try:
            push(proxy.host, "x:1", timeout=0.5, retries=RetryPolicy(1))
        except SociError as error:
            check_message(str(error))
        else:
            assert raw.startswith(b"HTTP/1.1 200 "), "who says yes to everything has it all"


def test_a_page_stores_nothing(docker_registry: DockerRegistry) -> None:
    """A server that answers 200 and a page to whatever it is asked, or to what is said last."""
    for path in "/v2/", "/manifests/sha", "/manifests/1$":
        fault = Fault(html_reply(200), path=path, method="POST|PUT")
        with (
            FaultProxy(docker_registry.host, fault) as proxy,
            fails("HTML page", "is this a registry?"),
        ):
            push(proxy.host, "page:1", seed=path.count("s"))


def test_compressed_bombs() -> None:
    import gzip

    bomb = gzip.compress(bytes(300 << 20), 9)
    headers = {"Content-Encoding": "gzip", "Content-Type": OCI_MANIFEST}
    for status in 200, 500:
        with FaultProxy("127.0.0.1:1", Fault(Reply(status, headers, bomb))) as proxy:
            begun = time.monotonic()
            with pytest.raises(SociError) as caught:
                source_at(proxy.host, "x:1").resolve()
            check_message(str(caught.value))
            assert time.monotonic() - begun < 1


# Sequences of faults


CHUNK = 20_000
_OFFSETS = st.sampled_from([0, 1, 19_999, 20_000, 20_001, 50_000])
_ANSWERS = st.sampled_from(
    [
        error_reply(429, "TOOMANYREQUESTS", Retry_After="0"),
        error_reply(500, "UNKNOWN"),
        error_reply(503, "UNAVAILABLE"),
        error_reply(401, "UNAUTHORIZED"),
        error_reply(403, "DENIED"),
        error_reply(404, "NOT_FOUND"),
        error_reply(416, "RANGE_INVALID"),
        html_reply(200),
        html_reply(502),
        Reply(200),
        Reply(201),
        Reply(202),
        Reply(204),
        Reply(206, {"Content-Range": "bytes 0-1/2"}, b"ab"),
        ReplyEarly(error_reply(503, "BUSY")),
        Reset(),
        Redirect("{path}"),
        Redirect("/v2/"),
        ForgetUpload(),
        IgnoreRange(),
        DropHeaders(("Content-Length",)),
        DropHeaders(("Location", "Range", "Docker-Content-Digest")),
        SetHeaders({"Range": "0-0"}),
        SetHeaders({"Range": "0-9999"}),
        SetHeaders({"Content-Range": "bytes 5-6/7"}),
        SetHeaders({"Content-Type": "text/plain"}),
        FloodAnswer(5000),
        FloodAnswer(5000, declared=100),
    ]
)
_CUTS = st.sampled_from([ResetUpload, ResetAnswer, CutAnswer, ShortenAnswer, FlipByte])
_ACTIONS: st.SearchStrategy[Any] = _ANSWERS | st.builds(
    lambda kind, offset: kind(offset), _CUTS, _OFFSETS
)
_PATHS = st.sampled_from(["/blobs/sha256", "/blobs/uploads/", "/uploads/.", "/manifests/", "/v2/"])
_FAULTS = st.lists(
    st.builds(
        Fault,
        action=_ACTIONS,
        path=_PATHS,
        method=st.sampled_from([".*", "GET", "HEAD", "POST", "PATCH", "PUT"]),
        times=st.sampled_from([1, 1, 2, 3]),
        skip=st.integers(0, 6),
    ),
    min_size=1,
    max_size=6,
)


def forget_upload_only_of_uploads(fault: Fault) -> Fault:
    if isinstance(fault.action, ForgetUpload):
        return Fault(fault.action, "/blobs/uploads/.", "PATCH|PUT", fault.times, fault.skip)
    return fault


def is_complete(host: str, name: str, root: Descriptor) -> bool:
    """Whether an image is there, whole and right; False when the tag is not there."""
    source = source_at(host, name)
    try:
        found = source.resolve()
    except NotFoundError:
        return False
    assert found == root
    manifest = parse_manifest(read_blob(source, root), name)
    for blob in (manifest.config, *manifest.layers):
        read_blob(source, blob)
    return True


@pytest.fixture(scope="module")
def root(docker_registry: DockerRegistry) -> Descriptor:
    return push(docker_registry.host, "random:1", size=60_000)


@settings(examples(30), phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(reading=_FAULTS, writing=_FAULTS, embedded=st.booleans())
def test_any_sequence_of_faults(
    docker_registry: DockerRegistry,
    root: Descriptor,
    monkeypatch: pytest.MonkeyPatch,
    reading: list[Fault],
    writing: list[Fault],
    embedded: bool,
) -> None:
    """A copy is complete and correct, or ends with an error; the tag never means something broken."""
    name = f"random/{time.monotonic_ns()}:1"
    with (
        RegistryServer() as server,
        FaultProxy(docker_registry.host, *reading) as from_here,
        FaultProxy(
            server.address if embedded else docker_registry.host,
            *map(forget_upload_only_of_uploads, writing),
        ) as to_there,
        small_chunks(monkeypatch, CHUNK),
    ):
        from_here._faults = [
            armed for armed in from_here._faults if not isinstance(armed.fault.action, ForgetUpload)
        ]
        begun = time.monotonic()
        there = server.address if embedded else docker_registry.host
        try:
            source = source_at(from_here.host, "random:1", timeout=1.0)
            with target_at(to_there.host, name, timeout=1.0) as target:
                copy(source, target)
        except SociError as error:
            check_message(str(error))
            is_complete(there, name, root)
        else:
            assert is_complete(there, name, root) or _lied(to_there)
        assert time.monotonic() - begun < 10


def _lied(proxy: FaultProxy) -> bool:
    """Whether the registry answered that it took something and did not.

    So it does where it sends a manifest on to an address that answers 200 to everything.
    """
    if any(
        seen.method == "PUT" and "/manifests/" in seen.path and seen.status in (307, 308)
        for seen in proxy.log
    ):
        return True
    lies = [
        armed.fault
        for armed in proxy._faults
        if isinstance(armed.fault.action, Reply) and armed.fault.action.status < 300
    ]
    return any(
        re.search(fault.path, seen.path) and seen.answer_bytes == len(fault.action.body)
        for fault in lies
        if isinstance(fault.action, Reply)
        for seen in proxy.log
        if seen.status == fault.action.status
    )


# The command


def test_command_line(
    docker_registry: DockerRegistry,
    root: Descriptor,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    """One line on stderr, exit status 1, and nothing written."""
    soci = Soci(capfdbinary, tmp_path / "store")
    with FaultProxy(docker_registry.host) as proxy:
        proxy.add(Fault(error_reply(403, "DENIED", "not today"), path="/manifests/"))
        out = tmp_path / "out"
        place = f"docker://{proxy.host}/random:1"
        done = soci("image", "convert", "--soci", place, f"oci:{out}:1")
        done.bad(1, f"{proxy.url}/v2/random/manifests/1: 403 Forbidden", "not today")
        assert not done.out
        assert not out.exists() or not list(out.rglob("sha256/*"))
