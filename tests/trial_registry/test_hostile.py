"""Clients that send nonsense, go away, or are slow: never a crash, a hang or a file left behind."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.errors import InvalidDataError
from soci_cli.oci.digest import parse_digest
from soci_cli.trial_registry import RegistryServer
from soci_cli.trial_registry._http import Refused, parse_content_range, parse_range, split_target
from soci_cli.trial_registry._names import entry_annotations, is_repository, is_tag, place_of_entry
from tests.support.images import sha256
from tests.support.scale import examples
from tests.trial_registry.client import Client, digest_of, index_of

DIGEST = digest_of(b"hello")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """One registry for the requests that hypothesis makes; it must stand all of them."""
    with RegistryServer(tmp_path_factory.mktemp("shared") / "layout") as server:
        Client(server.address).push_blob("a", b"hello")
        yield server
        assert Client(server.address)("GET", f"a/blobs/{DIGEST}").content == b"hello"
        assert {path.name for path in server.root.iterdir()} == {
            "blobs",
            "index.json",
            "oci-layout",
        }
        assert [path.name for path in server.root.parent.iterdir()] == ["layout"]


def connect(server: RegistryServer) -> socket.socket:
    host, _, port = server.address.partition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def send(server: RegistryServer, data: bytes) -> bytes:
    """Everything that is answered to these bytes, after which nothing more is sent."""
    with connect(server) as raw:
        try:
            raw.sendall(data)
            raw.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it was refused before all was sent
        answer = b""
        try:
            while piece := raw.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


def request(head: str, body: bytes = b"") -> bytes:
    return head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n" + body


# Requests that are broken


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\r\n\r\n", None),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n", 400),
        (b"GET /v2/ HTTP/9.9\r\n\r\n", 505),
        (b"GET /v2/ HTTP/x\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"BREW /v2/ HTTP/1.1\r\n\r\n", 405),
        (b"GET /" + 70_000 * b"a" + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /v2/ HTTP/1.1\r\nX: " + 70_000 * b"a" + b"\r\n\r\n", 431),
        (b"GET /v2/ HTTP/1.1\r\n" + 200 * b"X: y\r\n" + b"\r\n", 431),
        (request("GET http://[::1/v2/ HTTP/1.1"), 200),
        (request("GET http://example.com/v2/ HTTP/1.1"), 200),
        (request("GET /v2/a/blobs/../../../../etc/passwd HTTP/1.1"), 404),
        (request("GET /v2/../../etc/passwd HTTP/1.1"), 404),
        (request("GET /v2/a/manifests/..%2f..%2findex.json HTTP/1.1"), 404),
        (request("GET /v2/a/blobs/sha256:..%2f..%2findex.json HTTP/1.1"), 404),
        (request("GET /v2/a%00/tags/list HTTP/1.1"), 400),
        (request("GET /v2/a%0d%0aX:y/tags/list HTTP/1.1"), 404),
        (request("GET /v2/a/tags/list?" + 200 * "n=1&" + " HTTP/1.1"), 400),
        (request("PUT /v2/a/manifests/x HTTP/1.1\nContent-Length: -1"), 400),
        (request("PUT /v2/a/manifests/x HTTP/1.1\nContent-Length: +1"), 400),
        (request("PUT /v2/a/manifests/x HTTP/1.1\nContent-Length: 1_0"), 400),
        (request("PUT /v2/a/manifests/x HTTP/1.1\nContent-Length: " + 5000 * "9"), 400),
        (request("PUT /v2/a/manifests/x HTTP/1.1\nContent-Length: " + 17 * "9"), 413),
        (request("PUT /v2/a/manifests/x HTTP/1.1\nContent-Length: 1\nContent-Length: 2"), 400),
        (
            request(
                "PUT /v2/a/manifests/x HTTP/1.1\nContent-Length: 1\nTransfer-Encoding: chunked"
            ),
            400,
        ),
        (request("PUT /v2/a/manifests/x HTTP/1.1\nTransfer-Encoding: gzip, chunked"), 400),
    ],
)
def test_broken_requests(shared: RegistryServer, data: bytes, status: int | None) -> None:
    found = statuses(send(shared, data))
    assert found == ([status] if status else [])


@pytest.mark.parametrize(
    "body",
    [
        b"x\r\n",
        b"-1\r\nx",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5;" + 5000 * b"e" + b"\r\nhello\r\n0\r\n\r\n",
        b"fffffffffffffffffff\r\n",
        b"0\r\n" + 200 * b"a: b\r\n" + b"\r\n",
    ],
)
def test_broken_chunks(shared: RegistryServer, body: bytes) -> None:
    head = "PUT /v2/a/manifests/x HTTP/1.1\nTransfer-Encoding: chunked"
    # What follows is not read as a request.
    answer = send(shared, request(head, body) + request("GET /v2/ HTTP/1.1"))
    assert statuses(answer) == [400]
    location = Client(shared.address).start_upload("a")
    head = f"PATCH {location} HTTP/1.1\nTransfer-Encoding: chunked"
    assert statuses(send(shared, request(head, b"2\r\nab\r\n" + body))) == [400]
    assert Client(shared.address)("GET", location).headers["Range"] == "0-0"
    assert Client(shared.address)("DELETE", location).status_code == 204


def test_chunks_with_extensions_and_trailers(shared: RegistryServer) -> None:
    head = f"POST /v2/a/blobs/uploads/?digest={DIGEST} HTTP/1.1\nTransfer-Encoding: chunked"
    body = b"2;a=b\r\nhe\r\n0003\r\nllo\r\n0\r\nX: y\r\n\r\n"
    assert statuses(send(shared, request(head, body) + request("GET /v2/ HTTP/1.1"))) == [201, 200]


def test_older_versions_of_http(shared: RegistryServer) -> None:
    answer = send(shared, request("GET /v2/ HTTP/1.0\nConnection: keep-alive"))
    assert statuses(answer) == [200]
    assert b"Connection: close" in answer
    assert statuses(send(shared, b"GET /v2/\r\n\r\n")) == [200]


def test_a_client_that_waits_for_a_word(shared: RegistryServer) -> None:
    head = f"POST /v2/a/blobs/uploads/?digest={DIGEST} HTTP/1.1\nContent-Length: 5"
    with connect(shared) as raw:
        raw.sendall(request(head + "\nExpect: 100-continue"))
        assert raw.recv(100).startswith(b"HTTP/1.1 100 ")
        raw.sendall(b"hello")
        assert raw.recv(100).startswith(b"HTTP/1.1 201 ")


def test_the_answer_comes_before_a_large_body_was_sent(shared: RegistryServer) -> None:
    done = Client(shared.address).put_manifest("a", "x", bytes(30 << 20))
    assert done.status_code == 413


# Clients that go away


def wait_until_told(told: list[int]) -> None:
    end = time.monotonic() + 10
    while not told and time.monotonic() < end:
        time.sleep(0.005)
    assert told == [499]


@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("method", ["PATCH", "PUT", "POST", "manifest"])
def test_clients_that_go_away(root: Path, method: str, framing: str) -> None:
    told: list[int] = []

    def observe(method: str, path: str, status: int, sent: int, received: int) -> None:
        if status == 499:
            told.append(status)

    with RegistryServer(root, observer=observe) as server:
        client = Client(server.address)
        location = client.start_upload("a")
        target = {
            "PATCH": f"PATCH {location}",
            "PUT": f"PUT {location}?digest={DIGEST}",
            "POST": f"POST /v2/a/blobs/uploads/?digest={DIGEST}",
            "manifest": "PUT /v2/a/manifests/x",
        }[method]
        data = b"5\r\nhello\r\n5\r\nwor" if "chunked" in framing else b"hello"
        with connect(server) as raw:
            raw.sendall(request(f"{target} HTTP/1.1\n{framing}", data))
        wait_until_told(told)
        # A session goes on where it was; everything else is gone.
        assert client("GET", location).status_code == 204
        received = int(client("GET", location).headers["Range"][2:])
        assert len(list(root.glob(".ingest-*"))) == (1 if method in ("PATCH", "PUT") else 0)
        if method == "PATCH" and "Length" in framing:
            assert received == 4
            done = client("PUT", location, params={"digest": digest_of(b"hello!")}, data=b"!")
            assert done.status_code == 201
        assert client("HEAD", f"a/blobs/{DIGEST}").status_code == 404
    assert not list(root.glob(".ingest-*"))


def test_a_client_that_does_not_read(server: RegistryServer, client: Client) -> None:
    digest = client.push_blob("a", bytes(20 << 20))
    with connect(server) as raw:
        raw.sendall(request(f"GET /v2/a/blobs/{digest} HTTP/1.1"))
        assert raw.recv(10)
        assert client("HEAD", f"a/blobs/{digest}").ok
    # Nor does one that is still connected hold up the end.
    stuck = connect(server)
    stuck.sendall(request(f"GET /v2/a/blobs/{digest} HTTP/1.1"))
    assert stuck.recv(10)
    begun = time.monotonic()
    server.close()
    assert time.monotonic() - begun < 3
    stuck.close()


# Anything at all

RELAXED = examples(60)
# What can be in a header or in a request line.
VISIBLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)
LINE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f\x85"))


@RELAXED
@given(st.binary(max_size=300))
def test_any_bytes(shared: RegistryServer, data: bytes) -> None:
    for status in statuses(send(shared, data)):
        assert status < 500 or status == 505


@RELAXED
@given(
    st.one_of(
        LINE,
        st.from_regex(r"bytes=[0-9]{0,30}-[0-9]{0,30}(,[0-9]{0,3}-[0-9]{0,3})?", fullmatch=True),
    )
)
def test_any_range(shared: RegistryServer, header: str) -> None:
    head = f"GET /v2/a/blobs/{DIGEST} HTTP/1.1\nRange: {header}"
    assert statuses(send(shared, request(head)))[0] in (200, 206, 416)


@RELAXED
@given(
    st.sampled_from(["GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"]),
    st.sampled_from(["", "a", "b/c", "blobs/uploads"]) | st.text(VISIBLE),
    st.sampled_from(["blobs", "manifests", "tags", "referrers", "blobs/uploads"]),
    st.sampled_from(["list", "latest", ""]) | st.text(VISIBLE),
    st.dictionaries(
        st.sampled_from(["n", "last", "digest", "mount", "from", "artifactType", "x"]),
        st.sampled_from([DIGEST.replace("5", "6"), "a", "1"]) | st.text(VISIBLE),
    ),
)
def test_any_target(
    shared: RegistryServer, method: str, name: str, kind: str, rest: str, query: dict[str, str]
) -> None:
    parameters = "&".join(f"{key}={value}" for key, value in query.items())
    head = f"{method} /v2/{name}/{kind}/{rest}?{parameters} HTTP/1.1"
    assert all(status < 500 for status in statuses(send(shared, request(head))))


@given(LINE | st.from_regex(r"bytes=[0-9]{0,4}-[0-9]{0,4}", fullmatch=True), st.integers(0, 1000))
def test_ranges_are_inside(header: str, size: int) -> None:
    try:
        part = parse_range(header, size)
    except Refused as refused:
        assert refused.status == 416
    else:
        assert part is None or (part[0] >= 0 and part[1] > 0 and sum(part) <= size)


@given(LINE | st.from_regex(r"[0-9]{0,20}-[0-9]{0,20}", fullmatch=True))
def test_any_content_range(header: str) -> None:
    try:
        chunk = parse_content_range(header)
    except Refused as refused:
        assert refused.status == 400
    else:
        assert chunk is not None
        assert chunk[0] >= 0 < chunk[1]


@given(st.text())
def test_any_request_target(target: str) -> None:
    try:
        path, query = split_target(target)
    except Refused as refused:
        assert refused.status == 400
    else:
        assert all(isinstance(text, str) for text in (path, *query, *query.values()))


NAME = st.from_regex(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+){0,3}", fullmatch=True)
TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True)


@given(NAME, TAG | st.binary().map(sha256))
def test_entries_are_found_again(name: str, reference: str) -> None:
    """What the registry writes into index.json means the same after a restart."""
    from soci_cli.oci import Descriptor

    digest = reference if ":" in reference else DIGEST
    if not is_repository(name):
        assert len(name) > 255
        return
    entry = Descriptor("x", digest, 1, annotations=entry_annotations(name, reference))
    assert place_of_entry(entry, "default") == (name, reference)


@given(st.text() | st.text("a:/@.-_1"))
def test_any_name(text: str) -> None:
    from soci_cli.oci import Descriptor
    from soci_cli.targets._index_json import CONTAINERD_NAME, REF_NAME

    is_tag(text)
    for key in (REF_NAME, CONTAINERD_NAME):
        entry = Descriptor("x", DIGEST, 1, annotations={key: text})
        repository, reference = place_of_entry(entry, "default")
        assert is_repository(repository)
        assert is_tag(reference) or parse_digest(reference) == DIGEST


def test_digests_are_the_only_paths() -> None:
    with pytest.raises(InvalidDataError):
        parse_digest("sha256:../../index.json")


def test_an_index_of_very_many(client: Client) -> None:
    entry = {"mediaType": "x", "digest": DIGEST, "size": 5}
    client.push_blob("a", b"hello")
    assert client.put_manifest("a", "v", index_of([entry] * 10_000)).status_code == 201
    assert client.put_manifest("a", "v", index_of([entry] * 10_001)).status_code == 400
