"""Pulling (distribution spec, "Pull"): manifests, blobs and ranges of them."""

from __future__ import annotations

import pytest

from soci_cli.oci.media_types import OCI_MANIFEST
from soci_cli.trial_registry import RegistryServer
from tests.trial_registry.client import Client, codes, digest_of, encode, index_of

MISSING = digest_of(b"nothing of this kind")
DATA = bytes(range(256)) * 8


def test_the_api_is_there(client: Client) -> None:
    for path in ("/v2/", "/v2"):
        done = client("GET", path)
        assert (done.status_code, done.headers["Content-Type"]) == (200, "application/json")
    assert client("GET", "/").status_code == 404
    assert client("GET", "/v3/").status_code == 404


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("data", [DATA, b"{}", b""], ids=["some", "json", "empty"])
def test_a_blob(client: Client, method: str, algorithm: str, data: bytes) -> None:
    digest = client.push_blob("a/b", data, algorithm)
    for path in (digest, digest.replace(":", "%3A")):
        done = client(method, f"a/b/blobs/{path}")
        assert done.status_code == 200
        assert done.headers["Docker-Content-Digest"] == digest
        assert done.headers["ETag"] == f'"{digest}"'
        assert done.headers["Content-Length"] == str(len(data))
        assert done.headers["Content-Type"] == "application/octet-stream"
        assert done.content == (data if method == "GET" else b"")


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
def test_what_is_missing(client: Client, method: str) -> None:
    client.push_blob("there", DATA)
    # A blob belongs to the repository that it was given to.
    for path in (f"there/blobs/{MISSING}", f"other/blobs/{digest_of(DATA)}"):
        done = client(method, path)
        assert done.status_code == 404
        assert method == "HEAD" or codes(done) == ["BLOB_UNKNOWN"]
    for reference in (MISSING, "latest"):
        done = client(method, f"there/manifests/{reference}")
        assert done.status_code == 404
        assert method == "HEAD" or codes(done) == ["MANIFEST_UNKNOWN"]


def test_bad_names(client: Client) -> None:
    for path in ("A/blobs/" + MISSING, "a//b/tags/list", "..%2f../manifests/x", "-/tags/list"):
        done = client("GET", path)
        assert (done.status_code, codes(done)) == (400, ["NAME_INVALID"])
    for bad in (
        "sha256:baddigeststring",
        "sha1:" + 40 * "0",
        MISSING.upper(),
        "sha256:" + 65 * "0",
    ):
        for kind in ("blobs", "manifests", "referrers"):
            done = client("GET", f"a/{kind}/{bad}")
            assert (done.status_code, codes(done)) == (400, ["DIGEST_INVALID"])
    for bad in (".hidden", 129 * "a", "a b"):
        done = client("GET", f"a/manifests/{bad}")
        assert (done.status_code, codes(done)) == (400, ["MANIFEST_INVALID"])


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_manifest(client: Client, method: str) -> None:
    document = client.make_image("a/b")
    data = encode(document)
    assert client.put_manifest("a/b", "v1", document).status_code == 201
    for reference in ("v1", digest_of(data)):
        done = client(method, f"a/b/manifests/{reference}", headers={"Accept": OCI_MANIFEST})
        assert done.status_code == 200
        assert done.headers["Docker-Content-Digest"] == digest_of(data)
        assert done.headers["ETag"] == f'"{digest_of(data)}"'
        assert done.headers["Content-Length"] == str(len(data))
        assert done.headers["Content-Type"] == OCI_MANIFEST
        assert done.content == (data if method == "GET" else b"")


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=500-1499", 500, 1500),
        ("bytes=500-", 500, 2048),
        ("bytes=-500", 1548, 2048),
        ("bytes=-5000", 0, 2048),
        ("bytes=2000-5000", 2000, 2048),
        ("bytes=0-0", 0, 1),
        ("Bytes= 1 - 2 ", 1, 3),
        (f"bytes=7-{10**30}", 7, 2048),
    ],
)
def test_a_range(client: Client, wanted: str, start: int, end: int) -> None:
    path = f"a/blobs/{client.push_blob('a', DATA)}"
    done = client("GET", path, headers={"Range": wanted})
    assert done.status_code == 206
    assert done.content == DATA[start:end]
    assert done.headers["Content-Range"] == f"bytes {start}-{end - 1}/2048"
    assert done.headers["Content-Length"] == str(end - start)


@pytest.mark.parametrize(
    "wanted", ["bytes=2048-", "bytes=5000-10000", "bytes=500-0", "bytes=-0", f"bytes={10**30}-"]
)
def test_a_range_that_cannot_be(client: Client, wanted: str) -> None:
    path = f"a/blobs/{client.push_blob('a', DATA)}"
    done = client("GET", path, headers={"Range": wanted})
    assert done.status_code == 416
    assert done.headers["Content-Range"] == "bytes */2048"


@pytest.mark.parametrize(
    "wanted", ["bytes=0-1,3-4", "bytes=", "bytes=-", "bytes=a-b", "lines=0-1", "0-1", "bytes=--1"]
)
def test_a_range_that_is_ignored(client: Client, wanted: str) -> None:
    path = f"a/blobs/{client.push_blob('a', DATA)}"
    done = client("GET", path, headers={"Range": wanted})
    assert (done.status_code, done.content) == (200, DATA)


def test_ranges_of_nothing(client: Client) -> None:
    path = f"a/blobs/{client.push_blob('a', b'')}"
    assert client("GET", path, headers={"Range": "bytes=0-"}).status_code == 416
    assert client("GET", path, headers={"Range": "bytes=-5"}).status_code == 200


def test_connections_are_kept(server: RegistryServer, client: Client) -> None:
    import http.client

    client.push_blob("a", DATA)
    host, _, port = server.address.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.connect()
    socket = connection.sock
    document = index_of([])
    for method, path, body in (
        ("GET", "/v2/", None),
        ("GET", f"/v2/a/blobs/{digest_of(DATA)}", None),
        ("HEAD", f"/v2/a/blobs/{digest_of(DATA)}", None),
        ("GET", f"/v2/a/blobs/{MISSING}", b"a body that nobody reads"),
        ("PUT", "/v2/a/manifests/x", b"not json"),
        ("PUT", "/v2/a/manifests/x", encode(document)),
        ("DELETE", "/v2/a/manifests/x", None),
    ):
        connection.request(method, path, body)
        connection.getresponse().read()
        assert connection.sock is socket
    connection.close()


def test_methods(client: Client) -> None:
    done = client("POST", "a/tags/list")
    assert (done.status_code, done.headers["Allow"], codes(done)) == (405, "GET", ["UNSUPPORTED"])
    assert client("OPTIONS", "a/tags/list").status_code == 405
