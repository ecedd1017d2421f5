"""How registries behave, one row each, with the source that tells of it; the client does the right thing.

Most rows stand a proxy that behaves so before the project's own registry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection
from itertools import count
from urllib.parse import parse_qs, urlsplit

import pytest

from soci_cli.errors import LostUploadError, RegistryError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.media_types import OCI_INDEX, OCI_MANIFEST
from soci_cli.targets.copy import read_blob
from soci_cli.targets.protocol import SENDINGS
from soci_cli.targets.registry.place import _types_in
from soci_cli.targets.registry.retry import retry_after
from soci_cli.targets.registry.upload import BlobUpload
from tests.support.images import noise
from tests.support.places import describe, push_json
from tests.support.servers.actions import (
    Action,
    DropHeaders,
    Redirect,
    Reply,
    ReplyEarly,
    SetHeaders,
    error_reply,
    html_reply,
)
from tests.support.servers.exchange import Exchange
from tests.support.servers.fault_proxy import Fault, FaultProxy
from tests.targets.registry.pushes import UPLOAD, own, send, stored
from tests.targets.registry.tools import Struck, fails, push, source_at, target_at

MIB = 1 << 20
LARGE, SMALL = noise(6, 5 * MIB), noise(7, 3 * MIB)
TYPE = "application/vnd.example.index"


def writer(proxy: FaultProxy, data: bytes, chunk: int = 2 * MIB) -> BlobUpload:
    target = target_at(proxy.host, f"{own('app', proxy)}:1")
    return BlobUpload(target.repository, describe(data), "x", None, chunk)


def answer(exchange: Exchange, status: int = 0, headers: Mapping[str, str] | None = None) -> None:
    """Passes the request on; the answer has another status, and these headers besides."""
    given = exchange.ask()
    changed = {name.lower(): value for name, value in (headers or {}).items()}
    kept = [(name, value) for name, value in given.headers if name.lower() not in changed]
    exchange.answer(status or given.status, [*kept, *(headers or {}).items()], given.body)


def break_off(exchange: Exchange, size: int) -> None:
    """The registry gets and keeps `size` bytes of a PATCH; then the connection to the client breaks."""
    first = int(exchange.seen.headers["content-range"].partition("-")[0])
    body = b"".join(exchange.body().first(size))
    with closing(HTTPConnection(exchange.upstream, timeout=10)) as connection:
        headers = {"Content-Range": f"{first}-{first + len(body) - 1}"}
        connection.request("PATCH", exchange.path, body, headers)
        assert connection.getresponse().status == 202
    exchange.drain()
    exchange.reset()


# Writing. A row's fault is before uploads of a blob of 5 MiB, and of one of 3 MiB, in pieces of 2 MiB.


@dataclass(frozen=True)
class Writing:
    """A way to take uploads, made anew for each test, and what the log must show afterwards."""

    name: str
    source: str
    fault: Callable[[], Fault]
    shows: Callable[[FaultProxy], bool] = lambda proxy: True
    sizes: tuple[bytes, ...] = field(default=(LARGE, SMALL))


def ecr() -> Fault:
    """What came before a break is kept, and nothing tells how much that is."""
    numbers = count(1)
    told: dict[str, str] = {}

    def action(exchange: Exchange) -> None:
        upload = urlsplit(exchange.path).path
        if exchange.method == "GET":
            answer(exchange, 204, {"Range": told.get(upload, "0-0")})
        elif next(numbers) == 2:
            break_off(exchange, MIB)
        else:
            given = exchange.ask()
            headers = dict(given.headers)
            if given.status == 202:
                headers["Range"] = told.setdefault(upload, headers["Range"])
            status = 201 if given.status == 202 else given.status
            exchange.answer(status, list(headers.items()), given.body)

    return Fault(action, path=UPLOAD, method="PATCH|GET")


def limit(status: int, *, hangs_up: bool = False) -> Callable[[], Fault]:
    def action(exchange: Exchange) -> None:
        if int(exchange.seen.headers.get("content-length", 0)) <= MIB:
            answer(exchange)
        elif hangs_up:
            exchange.reset()
        else:
            ReplyEarly(html_reply(status))(exchange)

    return lambda: Fault(action, path=UPLOAD, method="PATCH|PUT")


def least_length() -> Fault:
    """No chunk but the last may be smaller; one breaks off besides."""
    breaks = count()
    smaller: set[str] = set()

    def action(exchange: Exchange) -> None:
        upload = urlsplit(exchange.path).path
        if exchange.method == "POST":
            answer(exchange, 0, {"OCI-Chunk-Min-Length": str(3 * MIB)})
            return
        length = int(exchange.seen.headers["content-length"])
        if upload in smaller and length:
            exchange.drain()
            error_reply(416, "BLOB_UPLOAD_INVALID")(exchange)
            return
        if exchange.method == "PATCH" and length < 3 * MIB:
            smaller.add(upload)
        if exchange.method == "PATCH" and next(breaks) == 0:
            break_off(exchange, MIB + MIB // 2)
        answer(exchange)

    return Fault(action, path="/blobs/uploads/", method="POST|PATCH|PUT")


def done_early(status: int) -> Callable[[], Fault]:
    """The blob is there with the last PATCH, and the PUT is refused."""

    def action(exchange: Exchange) -> None:
        exchange.ask()
        exchange.drain()
        error_reply(status, "BLOB_UPLOAD_INVALID")(exchange)

    return lambda: Fault(action, path=UPLOAD, method="PUT")


def patch_says(status: int) -> Callable[[], Fault]:
    return lambda: Fault(lambda exchange: answer(exchange, status), path=UPLOAD, method="PATCH")


def twice_at_most(proxy: FaultProxy) -> bool:
    """No more than one body of each blob is larger than the limit, and those of the second none."""
    too_large = [
        seen
        for seen in proxy.log
        if int(seen.headers.get("content-length", 0)) > MIB and seen.method != "POST"
    ]
    return len(too_large) <= 4


WRITING = [
    Writing("a break in the second chunk", "aws/containers-roadmap#2831", ecr),
    Writing("201 to PATCH", "aws/containers-roadmap#2831", patch_says(201)),
    Writing(
        "204 to PATCH", "OCI distribution-spec 1.0, before 1.1 settled on 202", patch_says(204)
    ),
    Writing("bodies of 1 MiB", "nginx, client_max_body_size", limit(413), twice_at_most),
    Writing("416 for too large chunks", "ghcr.io", limit(416), sizes=(LARGE,)),
    Writing("hanging up at 1 MiB", "RFC 9110, section 15.5.14", limit(0, hangs_up=True)),
    Writing(
        "OCI-Chunk-Min-Length", "OCI distribution-spec 1.1, Pushing a blob in chunks", least_length
    ),
    *(
        Writing(
            f"a last PUT refused with {status}", "regclient, scheme/reg/blob.go", done_early(status)
        )
        for status in (400, 404, 405, 409, 416)
    ),
]


@pytest.mark.parametrize("row", WRITING, ids=lambda row: row.name)
def test_uploads(struck: Struck, row: Writing) -> None:
    for data in row.sizes:
        proxy = struck(row.fault())
        for left in reversed(range(SENDINGS)):
            try:
                send(writer(proxy, data), data)
                break
            except LostUploadError:  # as `copy_blob` does
                assert left
        assert row.shows(proxy), proxy.log
        assert stored(proxy, data)


def test_a_limit_that_was_met_is_kept(struck: Struck) -> None:
    """Nothing larger than the limit is sent to that registry any more."""
    proxy = struck(limit(413)())
    target = target_at(proxy.host, f"{own('app', proxy)}:1")
    for data in (SMALL, noise(8, 3 * MIB)):
        proxy.clear()
        send(BlobUpload(target.repository, describe(data), "x", None, 8 * MIB), data)
        assert stored(proxy, data)
    assert all(int(seen.headers.get("content-length", 0)) <= MIB for seen in proxy.log)


def test_a_limit_below_all_pieces(struck: Struck) -> None:
    proxy = struck(Fault(ReplyEarly(html_reply(413)), path=UPLOAD, method="PATCH|PUT"))
    with fails("413", "client_max_body_size", kind=RegistryError):
        send(writer(proxy, SMALL), SMALL)


def test_chunks_nobody_can_hold(struck: Struck) -> None:
    told = SetHeaders({"OCI-Chunk-Min-Length": "9" * 15})
    proxy = struck(Fault(told, path="/blobs/uploads/", method="POST"))
    send(writer(proxy, SMALL), SMALL)  # as a whole, which is the last chunk as well
    assert stored(proxy, SMALL)


def test_a_tag_that_must_not_change(struck: Struck) -> None:
    """Amazon ECR with tag immutability refuses the same digest too (aws/containers-roadmap#2380)."""
    refused = error_reply(400, "TAG_INVALID", "the tag cannot be overwritten")
    proxy = struck()
    name = f"{own('immutable', proxy)}:1"
    first = push(proxy.host, name)
    proxy.add(Fault(refused, path="/manifests/1$", method="PUT"))
    assert push(proxy.host, name) == first
    with fails("TAG_INVALID", kind=RegistryError):
        push(proxy.host, name, seed=1)


# Reading.


@dataclass(frozen=True)
class Reading:
    """A way to answer ranges of a blob."""

    name: str
    source: str
    action: Action


READING = [
    Reading("206 without Content-Type", "RFC 9110, section 8.3", DropHeaders(("content-type",))),
    Reading(
        "the unit in capitals",
        "RFC 9110, section 14.1: range units are case-insensitive",
        SetHeaders({"Content-Range": f"Bytes 10-19/{len(SMALL)}"}),
    ),
    Reading(
        "a total that is not told",
        "RFC 9110, section 14.4",
        SetHeaders({"Content-Range": "bytes 10-19/*"}),
    ),
]


@pytest.mark.parametrize("row", READING, ids=lambda row: row.name)
def test_ranges(struck: Struck, row: Reading) -> None:
    proxy = struck()
    send(writer(proxy, SMALL), SMALL)
    proxy.add(Fault(row.action, path="/blobs/sha256", method="GET"))
    source = source_at(proxy.host, f"{own('app', proxy)}:1")
    with source.fetch(describe(SMALL), 10, 10) as stream:
        assert stream.read() == SMALL[10:20]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 503])
def test_the_place_of_a_redirect(struck: Struck, status: int) -> None:
    """It is used till it refuses (awslabs/soci-snapshotter 54038cfb), with Referer as Go sends it."""
    proxy, store = struck(), struck()
    send(writer(proxy, SMALL), SMALL)
    proxy.add(
        Fault(Redirect(f"{store.url}{{path}}?sig=SECRET"), path="/blobs/sha256", method="GET")
    )
    name = f"{own('app', proxy)}:1"
    source = source_at(proxy.host, name)

    def read(start: int) -> None:
        with source.fetch(describe(SMALL), start, 10) as stream:
            assert stream.read() == SMALL[start : start + 10]

    for start in range(5):
        read(start)
    asked = [seen for seen in proxy.log if seen.status == 307]
    assert len(asked) == 1 and len(store.log) == 5
    url = f"{proxy.url}{asked[0].path}"
    assert {seen.headers["referer"] for seen in store.log} == {url}
    assert not any("authorization" in seen.headers for seen in store.log)
    store.add(Fault(error_reply(status, "EXPIRED"), times=1))
    read(7)
    read(8)
    assert len([seen for seen in proxy.log if seen.status == 307]) == 2


def test_places_that_are_good_for_one_range(struck: Struck) -> None:
    """Where every second use is refused, no place is kept for long."""
    proxy, store = struck(), struck()
    send(writer(proxy, SMALL), SMALL)
    numbers, used = count(), set()
    proxy.add(
        Fault(
            lambda exchange: Redirect(f"{store.url}{exchange.path}?sig={next(numbers)}")(exchange),
            path="/blobs/sha256",
            method="GET",
        )
    )

    def once(exchange: Exchange) -> None:
        if exchange.path in used:
            error_reply(403, "EXPIRED")(exchange)
        else:
            used.add(exchange.path)
            answer(exchange)

    store.add(Fault(once))
    source = source_at(proxy.host, f"{own('app', proxy)}:1")
    for start in range(20):
        with source.fetch(describe(SMALL), start, 10) as stream:
            assert stream.read() == SMALL[start : start + 10]
    assert len([seen for seen in store.log if seen.status == 403]) == 3


# Referrers.


def pushed_referrer(proxy: FaultProxy, name: str) -> tuple[Descriptor, Descriptor]:
    """An image and a manifest that refers to it, whose type is that of its config."""
    subject = push(proxy.host, name)
    with target_at(proxy.host, name) as target:
        config = push_json(target, {}, TYPE)
        value = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.to_json(),
            "layers": [],
            "subject": {"mediaType": OCI_MANIFEST, "digest": subject.digest, "size": subject.size},
        }
        data = json.dumps(value).encode()
        descriptor = describe(data, OCI_MANIFEST)
        target.push(descriptor, data)
    return subject, descriptor


def quay(exchange: Exchange) -> None:
    """It lists the manifest's own artifactType, and filters by that."""
    wanted = "artifactType" in parse_qs(urlsplit(exchange.path).query)
    given = json.loads(b"".join(exchange.ask().body))
    for entry in given["manifests"]:
        entry.pop("artifactType", None)
    if wanted:
        given["manifests"] = []
    headers = {"Content-Type": OCI_INDEX}
    if wanted:
        headers["OCI-Filters-Applied"] = "artifactType"
    Reply(200, headers, json.dumps(given).encode())(exchange)


EMPTY = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
NOTHING = Reply(200, {"Content-Type": OCI_INDEX}, EMPTY)
REFERRERS: list[tuple[str, str, Action, bool]] = [
    ("no artifactType", "Quay 3.12, data/model/oci/manifest.py", quay, True),
    (
        "an empty list",
        "OCI distribution-spec 1.1, Backwards Compatibility",
        Reply(200, {"Content-Type": OCI_INDEX}, EMPTY),
        False,
    ),
    ("a page", "proxies that answer everything with their own pages", html_reply(200), False),
    ("a page behind a redirect", "the same, by way of a login", Redirect("/login"), False),
]


@pytest.mark.parametrize("row", REFERRERS, ids=lambda row: row[0])
def test_referrers(struck: Struck, row: tuple[str, str, Action, bool]) -> None:
    _, _, action, processed = row
    faults = [
        Fault(html_reply(200), path="^/login"),
        Fault(action, path="/referrers/"),
    ]
    if not processed:
        faults.append(Fault(DropHeaders(("oci-subject",)), path="/manifests/", method="PUT"))
    proxy = struck(*faults)
    name = f"{own('referred', proxy)}:1"
    subject, descriptor = pushed_referrer(proxy, name)
    found = source_at(proxy.host, name).referrers(subject, TYPE)
    assert [(one.digest, one.artifact_type) for one in found] == [(descriptor.digest, TYPE)]
    assert not source_at(proxy.host, name).referrers(subject, "application/other")


# Pauses (RFC 9110, sections 10.2.3 and 5.6.7).

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("1.5", 1.5),
        ("99999999999999999999", 99999999999999999999.0),
        ("Sun, 06 Nov 1994 08:51:37 GMT", 120.0),
        ("Sunday, 06-Nov-94 08:51:37 GMT", 120.0),
        ("Sun Nov  6 08:51:37 1994", 120.0),
        ("Sun, 06 Nov 1994 08:49:00 GMT", 0.0),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    """By the registry's clock, which may be another one than ours."""
    assert retry_after(value, DATE) == seconds


def test_what_refused_a_manifest_is_known(struck: Struck) -> None:
    """The caller knows what its types mean, and the registry's own words are in the message."""
    detail = {
        "code": "MANIFEST_INVALID",
        "message": "invalid",
        "detail": {"message": "no such type"},
    }
    body = json.dumps({"errors": [detail]}).encode()
    proxy = struck(
        Fault(
            Reply(400, {"Content-Type": "application/json"}, body),
            path="/manifests/sha256",
            method="PUT",
        )
    )
    with fails("no such type", kind=RegistryError):
        try:
            push(proxy.host, f"{own('types', proxy)}:1")
        except RegistryError as error:
            assert OCI_MANIFEST in error.media_types
            assert error.codes == ("MANIFEST_INVALID",)
            raise


def test_types_of_a_manifest_of_nothing() -> None:
    """Go's programs write null for a list that is empty."""
    for text in (b"{}", b'{"config":null,"layers":null,"manifests":null}'):
        assert _types_in(text) == frozenset()
    assert _types_in(b'{"artifactType":"a","layers":[{"mediaType":"b"}]}') == {"a", "b"}


def test_a_blob_is_read_after_all(struck: Struck) -> None:
    """A place that hangs up is forgotten, and the registry is asked anew."""
    proxy, store = struck(), struck()
    send(writer(proxy, SMALL), SMALL)
    proxy.add(Fault(Redirect(f"{store.url}{{path}}"), path="/blobs/sha256", method="GET"))
    source = source_at(proxy.host, f"{own('app', proxy)}:1")
    assert read_blob(source, describe(SMALL), len(SMALL)) == SMALL
    store.add(Fault(lambda exchange: exchange.reset(), times=1))
    assert read_blob(source, describe(SMALL), len(SMALL)) == SMALL
    assert len([seen for seen in proxy.log if seen.status == 307]) == 2
