"""Finding and deleting (distribution spec, "Content Discovery" and "Content Management")."""

from __future__ import annotations

from typing import Any

import pytest

from soci_cli.oci.media_types import OCI_CONFIG, OCI_INDEX
from soci_cli.trial_registry import RegistryServer
from tests.trial_registry.client import Client, Json, codes, described, digest_of, encode, index_of

MISSING = digest_of(b"nothing of this kind")


def pages(client: Client, path: str, key: str) -> list[Any]:
    """The items of each page, going from Link to Link."""
    found = []
    while path:
        done = client("GET", path)
        assert done.status_code == 200
        found.append(done.json()[key])
        link = done.links.get("next")
        path = link["url"] if link else ""
    return found


def test_tags(client: Client) -> None:
    assert codes(client("GET", "a/tags/list")) == ["NAME_UNKNOWN"]
    tags = ["1", "10", "2", "B", "a", "latest"]
    for tag in reversed(tags):
        client.push_image("a", tag)
    done = client("GET", "a/tags/list")
    assert done.json() == {"name": "a", "tags": tags}
    assert "Link" not in done.headers


def test_the_catalog(client: Client) -> None:
    assert client("GET", "_catalog").json() == {"repositories": []}
    for name in ("b", "a/c", "a"):
        client.push_blob(name, b"x")
    assert client("GET", "_catalog").json() == {"repositories": ["a", "a/c", "b"]}


def referrers(client: Client, digest: str, **params: str) -> tuple[list[Json], str | None]:
    done = client("GET", f"a/referrers/{digest}", params=params)
    assert (done.status_code, done.headers["Content-Type"]) == (200, OCI_INDEX)
    index = done.json()
    assert (index["schemaVersion"], index["mediaType"]) == (2, OCI_INDEX)
    return index["manifests"], done.headers.get("OCI-Filters-Applied")


def test_referrers(client: Client) -> None:
    assert referrers(client, MISSING) == ([], None)
    subject = client.push_image("a", "v1")
    documents = [
        client.make_image("a", 1, subject=subject, artifactType="x/one", annotations={"k": "v"}),
        client.make_image("a", 2, subject=subject),
        index_of([], subject=subject, annotations={"i": "j"}),
        index_of([], subject=subject, artifactType="x/one"),
    ]
    expected = []
    for document, kind in zip(documents, ("x/one", OCI_CONFIG, None, "x/one"), strict=True):
        data = encode(document)
        done = client.put_manifest("a", digest_of(data), document)
        assert (done.status_code, done.headers["OCI-Subject"]) == (201, subject["digest"])
        entry = described(data, document["mediaType"])
        if "annotations" in document:
            entry["annotations"] = document["annotations"]
        expected.append({**entry, "artifactType": kind} if kind else entry)
    expected.sort(key=lambda entry: str(entry["digest"]))
    assert referrers(client, subject["digest"]) == (expected, None)
    filtered = [entry for entry in expected if entry.get("artifactType") == "x/one"]
    applied = referrers(client, subject["digest"], artifactType="x/one")
    assert applied == (filtered, "artifactType")
    assert referrers(client, subject["digest"], artifactType="y") == ([], "artifactType")
    assert client("GET", f"b/referrers/{subject['digest']}").json()["manifests"] == []
    client("DELETE", f"a/manifests/{expected[0]['digest']}")
    assert referrers(client, subject["digest"])[0] == expected[1:]


def test_a_subject_may_come_later(client: Client) -> None:
    coming = described(b"later")
    image = client.push_image("a", subject=coming)
    assert [entry["digest"] for entry in referrers(client, coming["digest"])[0]] == [
        image["digest"]
    ]


def test_pages_of_referrers(client: Client) -> None:
    subject = described(b"subject")
    for number in range(105):
        kind = "x/even+more" if number % 2 else "x/odd"
        document = index_of([], subject=subject, artifactType=kind, annotations={"n": str(number)})
        assert client.put_manifest("a", digest_of(encode(document)), document).ok
    found = pages(client, f"/v2/a/referrers/{subject['digest']}", "manifests")
    assert [len(page) for page in found] == [100, 5]
    assert len({entry["digest"] for page in found for entry in page}) == 105
    path = f"/v2/a/referrers/{subject['digest']}?artifactType=x/even%2Bmore"
    assert [len(page) for page in pages(client, path, "manifests")] == [52]


def test_pages_of_large_referrers(client: Client) -> None:
    """A page stays below the 4 MiB that clients read."""
    subject = described(b"subject")
    for number in range(5):
        document = index_of([], subject=subject, annotations={"x": f"{number}" * 1_500_000})
        assert client.put_manifest("a", digest_of(encode(document)), document).ok
    path: str | None = f"/v2/a/referrers/{subject['digest']}"
    count = 0
    while path:
        done = client("GET", path)
        assert len(done.content) < 4 << 20
        count += len(done.json()["manifests"])
        path = done.links["next"]["url"] if done.links else None
    assert count == 5


def test_registries_without_the_referrers_api() -> None:
    with RegistryServer(referrers_api=False) as server:
        client = Client(server.address)
        document = index_of([], subject=described(b"subject"))
        done = client.put_manifest("a", "v", document)
        assert done.status_code == 201
        assert "OCI-Subject" not in done.headers
        assert client("GET", f"a/referrers/{digest_of(b'subject')}").status_code == 404


# Deleting


def test_deleting_tags(client: Client) -> None:
    image = client.push_image("a", "one")
    client.push_image("a", "two")
    assert client("DELETE", "a/manifests/one").status_code == 202
    assert client("GET", "a/manifests/one").status_code == 404
    assert client("GET", "a/manifests/two").status_code == 200
    assert client("GET", f"a/manifests/{image['digest']}").status_code == 200
    assert client("GET", "a/tags/list").json()["tags"] == ["two"]
    done = client("DELETE", "a/manifests/one")
    assert (done.status_code, codes(done)) == (404, ["MANIFEST_UNKNOWN"])


def test_deleting_manifests_and_blobs(server: RegistryServer, client: Client) -> None:
    document = client.make_image("a")
    image = client.push_image("a", "one")
    client.push_image("a", "two")
    client.push_image("b", "one")
    file = server.root / "blobs" / image["digest"].replace(":", "/")
    assert client("DELETE", f"a/manifests/{image['digest']}").status_code == 202
    for reference in ("one", "two", image["digest"]):
        assert client("GET", f"a/manifests/{reference}").status_code == 404
    assert client("GET", "a/tags/list").json()["tags"] == []
    assert file.exists()
    assert client("GET", "b/manifests/one").status_code == 200
    client("DELETE", f"b/manifests/{image['digest']}")
    assert not file.exists()
    digest = document["layers"][0]["digest"]
    file = server.root / "blobs" / digest.replace(":", "/")
    for name, left in (("a", True), ("b", False)):
        assert client("DELETE", f"{name}/blobs/{digest}").status_code == 202
        assert client("GET", f"{name}/blobs/{digest}").status_code == 404
        assert client("DELETE", f"{name}/blobs/{digest}").status_code == 404
        assert file.exists() == left


@pytest.mark.parametrize("kind", ["blobs", "manifests"])
def test_deleting_nothing(client: Client, kind: str) -> None:
    assert client("DELETE", f"nobody/{kind}/{MISSING}").status_code == 404
