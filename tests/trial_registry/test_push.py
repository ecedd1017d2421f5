"""Pushing (distribution spec, "Push"): uploads of all kinds, mounts and manifests."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from soci_cli.oci.media_types import (
    DOCKER_CONFIG,
    DOCKER_LAYER_FOREIGN_GZIP,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
)
from soci_cli.trial_registry import RegistryServer
from tests.trial_registry.client import Client, Json, codes, described, digest_of, encode, index_of

DATA = bytes(range(256)) * 300
WRONG = digest_of(b"something else")
BOTH = pytest.mark.parametrize("algorithm", ["sha256", "sha512"])


def pieces(data: bytes) -> Iterator[bytes]:
    """As an iterator a body is sent with Transfer-Encoding: chunked."""
    for start in range(0, len(data), 10_000):
        yield data[start : start + 10_000]


def check_pulls(client: Client, name: str, data: bytes, algorithm: str = "sha256") -> None:
    done = client("GET", f"{name}/blobs/{digest_of(data, algorithm)}")
    assert (done.status_code, done.content) == (200, data)


def check_made(client: Client, done: Any, data: bytes, algorithm: str = "sha256") -> None:
    assert done.status_code == 201, done.text
    assert done.headers["Docker-Content-Digest"] == digest_of(data, algorithm)
    assert client("GET", done.headers["Location"]).content == data


@BOTH
@pytest.mark.parametrize("data", [DATA, b""], ids=["some", "empty"])
def test_a_single_post(client: Client, algorithm: str, data: bytes) -> None:
    params = {"digest": digest_of(data, algorithm)}
    done = client("POST", "a/blobs/uploads/", params=params, data=data)
    check_made(client, done, data, algorithm)


@BOTH
@pytest.mark.parametrize("hint", [True, False])
def test_post_then_put(client: Client, algorithm: str, hint: bool) -> None:
    more = {"digest-algorithm": algorithm} if hint else {}
    location = client.start_upload("a", **more)
    digest = digest_of(DATA, algorithm)
    check_made(
        client, client("PUT", location, params={"digest": digest}, data=DATA), DATA, algorithm
    )


@BOTH
@pytest.mark.parametrize("last_by_put", [True, False])
def test_chunks(client: Client, algorithm: str, last_by_put: bool) -> None:
    location = client.start_upload("a")
    size, step = len(DATA), 30_000
    params = {"digest": digest_of(DATA, algorithm)}
    for start in range(0, size, step):
        piece = DATA[start : start + step]
        headers = {"Content-Range": f"{start}-{start + len(piece) - 1}"}
        # Chunks that are out of order are refused, and say where to go on.
        for wrong in (start + step, start - step):
            if wrong >= 0:
                bad = {"Content-Range": f"{wrong}-{wrong + len(piece) - 1}"}
                refused = client("PATCH", location, data=piece, headers=bad)
                assert (refused.status_code, codes(refused)) == (416, ["BLOB_UPLOAD_INVALID"])
                assert refused.headers["Location"] == location
                assert refused.headers["Range"] == f"0-{max(0, start - 1)}"
        if last_by_put and start + step >= size:
            done = client("PUT", location, params=params, data=piece, headers=headers)
            break
        done = client("PATCH", location, data=piece, headers=headers)
        assert done.status_code == 202
        assert done.headers["Range"] == f"0-{start + len(piece) - 1}"
        status = client("GET", location)
        assert (status.status_code, status.content) == (204, b"")
        assert status.headers["Range"] == done.headers["Range"]
        assert location.endswith(status.headers["Docker-Upload-UUID"])
        location = status.headers["Location"]
    if not last_by_put:
        done = client("PUT", location, params=params)
    check_made(client, done, DATA, algorithm)
    assert codes(client("GET", location)) == ["BLOB_UPLOAD_UNKNOWN"]


def test_a_stream(client: Client) -> None:
    location = client.start_upload("a")
    done = client("PATCH", location, data=pieces(DATA))
    assert (done.status_code, done.headers["Range"]) == (202, f"0-{len(DATA) - 1}")
    done = client("PATCH", location, data=pieces(b"more"))
    params = {"digest": digest_of(DATA + b"more!")}
    check_made(client, client("PUT", location, params=params, data=pieces(b"!")), DATA + b"more!")


@pytest.mark.parametrize("sizes", [("0-9", 5), ("0-4", 10), ("0-3", 0)])
@pytest.mark.parametrize("streamed", [True, False])
def test_chunks_of_another_size(client: Client, sizes: tuple[str, int], streamed: bool) -> None:
    location = client.start_upload("a")
    body = pieces(sizes[1] * b"x") if streamed else sizes[1] * b"x"
    done = client("PATCH", location, data=body, headers={"Content-Range": sizes[0]})
    assert (done.status_code, codes(done)) == (400, ["SIZE_INVALID"])
    assert client("GET", location).headers["Range"] == "0-0"
    check_made(client, client("PUT", location, params={"digest": digest_of(DATA)}, data=DATA), DATA)


@pytest.mark.parametrize("wrong", ["bytes 0-4/5", "x", "4-0", "-", "0-" + 40 * "9"])
def test_nonsense_for_a_chunk(client: Client, wrong: str) -> None:
    done = client(
        "PATCH", client.start_upload("a"), data=b"hello", headers={"Content-Range": wrong}
    )
    assert (done.status_code, codes(done)) == (400, ["BLOB_UPLOAD_INVALID"])


def test_content_that_is_not_what_it_says(client: Client, root: Path) -> None:
    params = {"digest": WRONG}
    first = client("POST", "a/blobs/uploads/", params=params, data=DATA)
    location = client.start_upload("a")
    client("PATCH", location, data=DATA)
    for done in (first, client("PUT", location, params=params)):
        assert (done.status_code, codes(done)) == (400, ["DIGEST_INVALID"])
    assert client("HEAD", f"a/blobs/{WRONG}").status_code == 404
    assert client("GET", location).status_code == 404
    assert not list(root.glob(".ingest-*"))
    for bad in ("", "sha256:bad", "md5:" + 32 * "0"):
        done = client("PUT", client.start_upload("a"), params={"digest": bad}, data=DATA)
        assert (done.status_code, codes(done)) == (400, ["DIGEST_INVALID"])


def test_an_upload_is_cancelled(client: Client, root: Path) -> None:
    location = client.start_upload("a")
    client("PATCH", location, data=DATA)
    assert list(root.glob(".ingest-*"))
    assert codes(client("GET", location.replace("/a/", "/b/"))) == ["BLOB_UPLOAD_UNKNOWN"]
    assert client("DELETE", location).status_code == 204
    assert not list(root.glob(".ingest-*"))
    for method in ("GET", "PATCH", "DELETE"):
        assert codes(client(method, location)) == ["BLOB_UPLOAD_UNKNOWN"]


def test_mounts(client: Client) -> None:
    digest = client.push_blob("a/one", DATA)

    def mount(**params: str) -> Any:
        return client("POST", "b/two/blobs/uploads/", params=params)

    for begun in (
        mount(mount=digest),
        mount(mount=WRONG, **{"from": "a/one"}),
        mount(mount=digest, **{"from": "nobody"}),
        mount(mount=digest, **{"from": "../x"}),
    ):
        assert begun.status_code == 202
        assert client("GET", begun.headers["Location"]).status_code == 204
        assert client("HEAD", f"b/two/blobs/{digest}").status_code == 404
    check_made(client, mount(mount=digest, **{"from": "a/one"}), DATA)
    assert mount(mount="x").status_code == 400
    # What two repositories have stays until both have deleted it.
    assert client("DELETE", f"a/one/blobs/{digest}").status_code == 202
    check_pulls(client, "b/two", DATA)
    assert client("HEAD", f"a/one/blobs/{digest}").status_code == 404


# Manifests


def test_manifests_are_kept_byte_by_byte(client: Client) -> None:
    data = b"\n" + encode(client.make_image("a")) + b" "
    for reference in ("v1", digest_of(data), digest_of(data, "sha512")):
        done = client.put_manifest("a", reference, data)
        digest = reference if ":" in reference else digest_of(data)
        assert done.status_code == 201
        assert done.headers["Docker-Content-Digest"] == digest
        assert done.headers["ETag"] == f'"{digest}"'
        assert "OCI-Subject" not in done.headers
        assert client("GET", done.headers["Location"]).content == data
        assert client("GET", f"a/manifests/{reference}").content == data


def test_kinds_of_manifests(client: Client) -> None:
    child = client.push_image("a")
    inner = index_of([child])
    client.put_manifest("a", digest_of(encode(inner)), inner)
    config = b"{}"
    client.push_blob("a", config)
    for document in (
        inner,
        index_of([described(encode(inner), OCI_INDEX)]),
        index_of([]),
        client.make_image("a", layers=[]),
        client.make_image("a", artifactType="application/x"),
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": described(config, DOCKER_CONFIG),
            "layers": [described(b"x", DOCKER_LAYER_FOREIGN_GZIP, urls=["https://example.com/x"])],
        },
    ):
        assert client.put_manifest("a", "v", document).status_code == 201
        done = client("GET", "a/manifests/v")
        assert done.headers["Content-Type"] == document["mediaType"]
        assert done.content == encode(document)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 5000,
        b'{"schemaVersion":1,"fsLayers":[]}',
        b'{"schemaVersion":2,"config":{"digest":"sha256:x","size":1}}',
        encode({**index_of([]), "mediaType": "text/plain"}),
        encode({**index_of([]), "config": {}}),
        encode(index_of([], subject={"digest": "x", "size": 1})),
    ],
)
def test_what_is_no_manifest(client: Client, data: bytes) -> None:
    done = client.put_manifest("a", "v1", data)
    assert (done.status_code, codes(done)) == (400, ["MANIFEST_INVALID"])
    assert client("GET", "a/tags/list").status_code == 404


def test_a_manifest_that_is_not_what_it_says(client: Client) -> None:
    done = client.put_manifest("a", WRONG, index_of([]))
    assert (done.status_code, codes(done)) == (400, ["DIGEST_INVALID"])
    done = client.put_manifest("a", "sha256:baddigeststring", index_of([]))
    assert (done.status_code, codes(done)) == (400, ["DIGEST_INVALID"])
    done = client.put_manifest("a", "v1", index_of([]), **{"Content-Type": OCI_MANIFEST})
    assert (done.status_code, codes(done)) == (400, ["MANIFEST_INVALID"])
    kind = f"{OCI_INDEX}; charset=utf-8"
    assert client.put_manifest("a", "v1", index_of([]), **{"Content-Type": kind}).ok


def test_parts_that_are_missing(client: Client) -> None:
    whole = client.make_image("a")
    client.push_image("other", seed=5)
    elsewhere = client.make_image("other", seed=5)
    for document in (
        {**whole, "config": described(b"no config")},
        {**whole, "layers": [*whole["layers"], described(b"no layer")]},
        index_of([described(b"no manifest", OCI_MANIFEST)]),
        elsewhere,
    ):
        done = client.put_manifest("a", "v1", document)
        assert (done.status_code, codes(done)) == (404, ["MANIFEST_BLOB_UNKNOWN"])
    assert client("HEAD", "a/manifests/v1").status_code == 404


@pytest.mark.parametrize("streamed", [True, False])
def test_large_manifests(client: Client, streamed: bool) -> None:
    limit = 4 << 20

    def padded(size: int) -> bytes:
        data = encode(index_of([], annotations={"x": ""}))
        return data.replace(b'""', b'"' + bytes(size - len(data)).replace(b"\0", b"x") + b'"')

    for size, status in ((limit, 201), (limit + 1, 413)):
        body = pieces(padded(size)) if streamed else padded(size)
        done = client("PUT", "a/manifests/v", data=body, headers={"Content-Type": OCI_INDEX})
        assert done.status_code == status
        assert status == 201 or codes(done) == ["MANIFEST_INVALID"]


# Conditions


def test_conditions(client: Client) -> None:
    first, second = index_of([]), index_of([], annotations={"a": "b"})
    one, two = (f'"{digest_of(encode(document))}"' for document in (first, second))

    def put(document: Json, **headers: str) -> int:
        return client.put_manifest(
            "a", "v", document, **{key.replace("_", "-"): text for key, text in headers.items()}
        ).status_code

    assert put(first, If_Match=one) == 412
    assert put(first, If_Match="*") == 412
    assert put(first, If_None_Match="*") == 201
    assert put(second, If_None_Match="*") == 412
    assert put(second, If_Match=two) == 412
    assert put(second, If_Match=f"W/{one}") == 412
    assert put(second, If_Match=f'"x", {one}') == 201
    assert client("HEAD", "a/manifests/v").headers["ETag"] == two
    assert put(first, If_Match="*") == 201
    assert codes(client.put_manifest("a", "v", second, **{"If-Match": two})) == ["DENIED"]


def test_conditions_keep_what_others_add(server: RegistryServer, client: Client) -> None:
    """Eight clients that each add one entry to an index under one tag lose nothing."""
    children = [client.push_image("a", seed=number) for number in range(8)]

    def add(child: Json) -> int:
        mine = Client(server.address)
        for attempt in range(200):
            now = mine("GET", "a/manifests/all")
            found = now.json()["manifests"] if now.ok else []
            condition = {"If-Match": now.headers["ETag"]} if now.ok else {"If-None-Match": "*"}
            done = mine.put_manifest("a", "all", index_of([*found, child]), **condition)
            if done.status_code == 201:
                return attempt
            assert done.status_code == 412
        raise AssertionError("never succeeded")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, children))
    found = client("GET", "a/manifests/all").json()["manifests"]
    assert sorted(entry["digest"] for entry in found) == sorted(c["digest"] for c in children)


def test_many_at_once(server: RegistryServer, root: Path) -> None:
    """Several threads push the same and different blobs and images into shared repositories."""

    def work(number: int) -> None:
        mine = Client(server.address)
        name = f"shared/{number % 2}"
        for round_ in range(5):
            data = DATA + b"%d" % (round_ if number % 3 else number)
            mine.push_blob(name, data)
            check_pulls(mine, name, data)
            image = mine.push_image(name, f"t{number}-{round_}", seed=round_)
            assert mine("HEAD", f"{name}/manifests/{image['digest']}").ok

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    with RegistryServer(root) as again:
        client = Client(again.address)
        tags = sum(len(client("GET", f"shared/{n}/tags/list").json()["tags"]) for n in (0, 1))
        assert tags == 8 * 5
