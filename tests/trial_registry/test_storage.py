"""The layout behind the registry: read by other tools, kept over restarts, taken over from others."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest

from soci_cli.errors import SociError, StorageError, UsageError
from soci_cli.targets import Layout, WritableLayout, children_of, read_blob
from soci_cli.trial_registry import RegistryServer
from tests.support.images import LayoutMaker, sha256
from tests.support.places import index_json, push_image
from tests.support.tools import skopeo
from tests.trial_registry.client import Client, described, digest_of, encode, index_of

GOLDEN = Path(__file__).parent.parent / "golden" / "images"
REF_NAME = "org.opencontainers.image.ref.name"
PLAIN = "--dest-tls-verify=false"


def names(root: Path) -> list[str]:
    """The names of the entries of index.json, in order."""
    entries = index_json(root)["manifests"]
    return [entry.get("annotations", {}).get(REF_NAME, "") for entry in entries]


def graph(source: Layout) -> set[str]:
    """The digests of everything that an image needs, read and checked by this program."""
    todo, found = [source.resolve()], set()
    while todo:
        descriptor = todo.pop()
        found.add(descriptor.digest)
        assert source.exists(descriptor)
        if "manifest" in descriptor.media_type or "index" in descriptor.media_type:
            todo += children_of(descriptor, read_blob(source, descriptor), source.name)
    return found


# Other tools


@pytest.mark.parametrize("image", sorted(path.name for path in GOLDEN.iterdir()))
def test_skopeo_pushes_and_pulls(
    tmp_path: Path, root: Path, need_skopeo: str, client: Client, image: str
) -> None:
    """Also what docker calls a manifest; and the layout can be read beside the registry."""
    remote = f"docker://{client.url.removeprefix('http://')}/team/app:1.0"
    skopeo(f"oci:{GOLDEN / image}", remote, "--all", "--preserve-digests", PLAIN)
    expected = Layout(GOLDEN / image)
    everything = graph(expected)
    with Layout(root, "team/app:1.0") as kept:
        assert kept.resolve().digest == expected.resolve().digest
        assert graph(kept) == everything
    # Only skopeo's own kind of folder takes Docker's lists as they are.
    back = tmp_path / "back"
    skopeo(remote, f"dir:{back}", "--all", "--preserve-digests", "--src-tls-verify=false")
    assert {sha256(path.read_bytes()) for path in back.iterdir()} >= everything
    assert names(root) == ["team/app:1.0"]
    if not image.startswith("docker-"):  # skopeo does not find Docker's manifests in a layout
        skopeo(f"oci:{root}:team/app:1.0", f"oci:{tmp_path}/again:y", "--all", "--preserve-digests")


# Restarts


def state(client: Client) -> object:
    """All that a client can find out by lists."""
    found = {}
    for name in client("GET", "_catalog").json()["repositories"]:
        tags = client("GET", f"{name}/tags/list").json()["tags"]
        found[name] = {tag: client("GET", f"{name}/manifests/{tag}").content for tag in tags}
    return found


def test_a_restart_keeps_everything(root: Path) -> None:
    with RegistryServer(root) as server:
        client = Client(server.address)
        for name in ("a", "team/app", "example.com/app", "localhost/x", "docker.io/library/y"):
            image = client.push_image(name, "1.0")
            old = client.push_image(name, "moved", seed=1)
            client.push_image(name, "moved", seed=2)
            subject = client.push_image(name, subject=image)
            child = client.push_image(name, seed=3)
            index = index_of([child])
            client.put_manifest(name, digest_of(encode(index), "sha512"), index)
        before = state(client)
    for _ in range(2):
        with RegistryServer(root) as server:
            client = Client(server.address)
            assert state(client) == before
            for name in ("a", "team/app", "example.com/app", "localhost/x", "docker.io/library/y"):
                for digest in (old, subject, child):
                    path = f"{name}/manifests/{digest['digest']}"
                    assert client("GET", path).headers["Content-Type"] == old["mediaType"]
                sha512 = digest_of(encode(index), "sha512")
                assert client("GET", f"{name}/manifests/{sha512}").json() == index
                found = client("GET", f"{name}/referrers/{image['digest']}").json()["manifests"]
                assert [entry["digest"] for entry in found] == [subject["digest"]]
                layer = json.loads(client("GET", f"{name}/manifests/1.0").content)["layers"][0]
                assert client("HEAD", f"{name}/blobs/{layer['digest']}").ok
                assert client("HEAD", f"nobody/blobs/{layer['digest']}").status_code == 404


def test_entries_by_digest_go_when_a_tag_leads_there(client: Client, root: Path) -> None:
    subject = client.push_image("a", "v1")
    child = client.push_image("a", seed=1)
    referrer = client.push_image("a", seed=2, subject=subject)
    assert names(root) == ["a:v1", f"a@{child['digest']}", f"a@{referrer['digest']}"]
    client.put_manifest("a", "all", index_of([child, referrer]))
    assert names(root) == ["a:v1", f"a@{referrer['digest']}", "a:all"]
    # The child is found again when the index goes.
    client("DELETE", f"a/manifests/{digest_of(encode(index_of([child, referrer])))}")
    assert names(root) == ["a:v1", f"a@{referrer['digest']}", f"a@{child['digest']}"]
    client("DELETE", f"a/manifests/{child['digest']}")
    client("DELETE", "a/manifests/v1")
    assert set(names(root)) == {f"a@{referrer['digest']}", f"a@{subject['digest']}"}


# Layouts that were there before


def test_an_existing_layout_is_served(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "My App_")
    layer = maker.blob(b"a layer")
    manifest = maker.manifest([layer])
    inner = maker.index([manifest])
    maker.entries += [
        {**manifest, "annotations": {REF_NAME: "1.0"}},
        {**manifest, "annotations": {REF_NAME: "docker.io/library/app:1.0"}},
        {
            **inner,
            "annotations": {
                REF_NAME: "2.0",
                "io.containerd.image.name": "registry.example.com:5000/team/app:2.0",
            },
        },
        {**inner, "annotations": {"some": "thing"}},
        described(b"a manifest that is not there", manifest["mediaType"]),
        {**described(b"no manifest at all"), "annotations": {REF_NAME: "???"}},
    ]
    (maker.root / "index.json").write_text(
        json.dumps({"schemaVersion": 2, "manifests": maker.entries, "extra": 1})
    )
    before = index_json(maker.root)
    with RegistryServer(maker.root) as server:
        client = Client(server.address)
        repositories = client("GET", "_catalog").json()["repositories"]
        assert repositories == ["library/app", "my-app", "team/app"]
        assert client("GET", "my-app/tags/list").json()["tags"] == ["1.0"]
        for path in ("my-app/manifests/1.0", "library/app/manifests/1.0"):
            assert client("GET", path).headers["Docker-Content-Digest"] == manifest["digest"]
        for path in ("team/app/manifests/2.0", f"my-app/manifests/{inner['digest']}"):
            assert client("GET", path).headers["Docker-Content-Digest"] == inner["digest"]
        assert client("GET", f"team/app/blobs/{layer['digest']}").content == b"a layer"
        assert index_json(maker.root) == before
        # What is replaced keeps its place and its names; all else stays.
        new = client.push_image("library/app", "1.0", seed=9)
        after = index_json(maker.root)
        assert after["extra"] == 1
        assert after["manifests"][1] == {
            **new,
            "annotations": before["manifests"][1]["annotations"],
        }
        assert after["manifests"][0] == before["manifests"][0]
        assert after["manifests"][2:6] == before["manifests"][2:]
        assert names(maker.root)[6:] == [f"library/app@{manifest['digest']}"]
    with Layout(maker.root, "docker.io/library/app:1.0") as layout:
        assert layout.resolve().digest == new["digest"]


def test_others_may_write_into_the_layout(client: Client, root: Path) -> None:
    client.push_image("a", "v1")
    with WritableLayout(root, "other") as target:
        target.tag(push_image(target))
    client.push_image("a", "v2", seed=1)
    client("DELETE", "a/manifests/v1")
    assert names(root)[:2] == ["other", "a:v2"]
    assert len(graph(Layout(root, "other"))) == 4


def test_damaged_layouts(tmp_path: Path) -> None:
    """What cannot be read is not served, and links lead nowhere."""
    maker = LayoutMaker(tmp_path / "app")
    secret = tmp_path / "secret"
    secret.write_bytes(b"a secret")
    layer = described(b"a secret")
    maker.path(layer["digest"]).symlink_to(secret)
    linked = maker.manifest([layer])
    broken = maker.manifest([], annotations={"b": "c"})
    maker.path(broken["digest"]).write_bytes(b"{}")
    gone = maker.index([described(b"gone", linked["mediaType"])])
    for tag, entry in (("linked", linked), ("broken", broken), ("gone", gone)):
        maker.entries.append({**entry, "annotations": {REF_NAME: tag}})
    (maker.root / "index.json").write_text(
        json.dumps({"schemaVersion": 2, "manifests": maker.entries})
    )
    with RegistryServer(maker.root) as server:
        client = Client(server.address)
        assert client("GET", "app/tags/list").json()["tags"] == ["gone", "linked"]
        assert client("GET", f"app/blobs/{layer['digest']}").status_code == 404
    for text in ("{", "[]", '{"schemaVersion":1}'):
        (maker.root / "index.json").write_text(text)
        with pytest.raises(SociError):
            RegistryServer(maker.root)


def test_folders_that_are_no_layout(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="choose another folder"):
        RegistryServer(tmp_path)
    with pytest.raises(StorageError):
        RegistryServer(tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with RegistryServer(tmp_path / "some" / "where"):
        assert (tmp_path / "some" / "where" / "oci-layout").exists()


# The server


def test_what_it_tells_and_leaves() -> None:
    told = []
    threads = threading.active_count()
    server = RegistryServer(observer=lambda *facts: told.append(facts))
    with server:
        root = server.root
        client = Client(server.address)
        digest = client.push_blob("a", b"12345")
        location = client.start_upload("a")
        client("PATCH", location, data=b"123")
        assert client("GET", f"a/blobs/{digest}", headers={"Range": "bytes=1-3"}).status_code == 206
        assert list(root.glob(".ingest-*"))
        open_one = Client(server.address)
        open_one("GET", "/v2/")
    assert [facts[0] for facts in told] == ["POST", "POST", "PATCH", "GET", "GET"]
    assert told[2:4] == [
        ("PATCH", location, 202, 0, 3),
        ("GET", f"/v2/a/blobs/{digest}", 206, 3, 0),
    ]
    assert not root.exists()
    assert threading.active_count() == threads
    server.close()


def test_addresses(tmp_path: Path) -> None:
    with RegistryServer(tmp_path / "a", "localhost") as server:
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(SociError, match=f"{port}: Address already in use"):
            RegistryServer(tmp_path / "b", "127.0.0.1", port)
        assert not (tmp_path / "b").exists()
    with RegistryServer(tmp_path / "a", port=port):
        pass
    with pytest.raises(UsageError):
        RegistryServer(port=65536)
    with pytest.raises(SociError, match="cannot listen"):
        RegistryServer(host="no.such.host.invalid")


def test_a_folder_that_vanishes(server: RegistryServer, client: Client, root: Path) -> None:
    """Disk errors are told, and the server goes on."""
    digest = client.push_blob("a", b"x")
    shutil.rmtree(root)
    assert client("GET", f"a/blobs/{digest}").status_code == 404
    done = client("POST", "a/blobs/uploads/", params={"digest": digest}, data=b"x")
    assert done.status_code == 500
    assert "No such file" in done.json()["errors"][0]["message"]
    assert client("GET", "/v2/").ok
