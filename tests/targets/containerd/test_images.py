"""Images of containerd, and what keeps their parts: leases, and labels for its garbage collection."""

from __future__ import annotations

import json

import pytest

from soci_cli.errors import NotFoundError, StorageError, UsageError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.media_types import OCI_MANIFEST
from soci_cli.targets import copy_graph
from soci_cli.targets.containerd.client import Containerd, Lease
from soci_cli.targets.containerd.place import gc_labels
from tests.support.images import noise
from tests.support.places import describe, push_image, push_index
from tests.support.servers.containerd import ContainerdServer
from tests.targets.containerd.tools import FULL, fails, push, read, source_at, target_at, write


def test_create_and_update(client: Containerd, containerd: ContainerdServer) -> None:
    first, second = push(client), push(client, "other:2", seed=1)
    assert client.image(FULL).target == first
    containerd.ctr("images", "label", FULL, "a=b", "c=d", namespace=client.namespace)
    with target_at(client) as target:
        assert target.resolve() == first
        target.tag(second)
        assert target.resolve() == second
    assert client.image(FULL).target == second
    assert client.image(FULL).labels == {"a": "b", "c": "d"}
    client.label_image(FULL, {"a": "", "e": "f"})
    assert client.image(FULL).labels == {"c": "d", "e": "f"}
    assert [image.name for image in client.images()] == [FULL, "docker.io/library/other:2"]
    assert [image.name for image in client.images("name~=other")] == ["docker.io/library/other:2"]
    client.delete_image(FULL)
    for call in (client.image, client.delete_image):
        with fails(FULL, kind=NotFoundError):
            call(FULL)
    with fails(FULL, kind=NotFoundError):
        client.label_image(FULL, {"a": "b"})


def test_annotations_of_the_target(client: Containerd) -> None:
    root = push(client)
    named = {"org.opencontainers.image.ref.name": "x", "mine": "stays"}
    with target_at(client, "app:2") as target:
        target.tag(
            Descriptor(root.media_type, root.digest, root.size, annotations=named),
        )
    assert source_at(client, "app:2").resolve().annotations == {"mine": "stays"}


def test_image_that_others_remove_meanwhile(
    client: Containerd, containerd: ContainerdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = push(client), push(client, "other:2", seed=1)
    update = client._images.Update
    times: list[int] = []

    def late(*args: object, **more: object) -> object:
        if len(times) < limit:
            times.append(0)
            containerd.ctr("images", "rm", FULL, namespace=client.namespace)
            if limit > 1:
                try:
                    return update(*args, **more)
                finally:
                    with Containerd(containerd.address, client.namespace) as other:
                        other.put_image(FULL, first)
        return update(*args, **more)

    monkeypatch.setattr(client._images, "Update", late)
    limit = 1
    client.put_image(FULL, second)
    assert client.image(FULL).target == second
    limit = 10
    with fails(FULL, kind=NotFoundError):
        client.put_image(FULL, second)


def test_name_with_another_digest(client: Containerd) -> None:
    first, second = push(client), push(client, "other:2", seed=1)
    with (
        target_at(client, f"app@{first.digest}") as target,
        fails(second.digest, "tag", kind=UsageError, code=2),
    ):
        target.tag(second)
    with target_at(client) as target, fails("cannot be tagged", kind=NotFoundError):
        target.tag(describe(b"nothing", OCI_MANIFEST))


def test_lease_keeps_what_has_no_name_yet(client: Containerd, containerd: ContainerdServer) -> None:
    found = noise(31, 1000)
    # Something that is there without any lease or label.
    write(client, describe(found), found)
    with target_at(client) as target:
        assert not containerd.leases(client.namespace), "a lease is taken when it is needed"
        assert target.exists(describe(found))
        root = push_image(target, 3)
        containerd.collect()
        assert len(containerd.leases(client.namespace)) == 1
        assert target.exists(root)
        assert target.exists(describe(found))
        assert len(containerd.blobs(client.namespace)) == 5
        target.tag(root)
    assert not containerd.leases(client.namespace)
    containerd.collect()
    assert len(containerd.blobs(client.namespace)) == 4


def test_blob_that_is_collected_just_before_it_is_kept(
    client: Containerd, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = noise(32, 1000)
    write(client, describe(data), data)
    keep = Lease.keep

    def late(lease: Lease, digest: str) -> None:
        client.delete_content(digest)
        keep(lease, digest)

    with target_at(client) as target:
        monkeypatch.setattr(Lease, "keep", late)
        assert not target.exists(describe(data))


def test_leases_of_two_targets(client: Containerd, containerd: ContainerdServer) -> None:
    """One connection may serve several; the end of one must not be that of another."""
    with target_at(client) as one:
        with target_at(client, "other:1") as other:
            push_image(other, 4)
            root = push_image(one, 5)
            assert len(containerd.leases(client.namespace)) == 2
        containerd.collect()
        assert len(containerd.blobs(client.namespace)) == 4
        one.tag(root)


def test_lease_ends_with_an_error(client: Containerd, containerd: ContainerdServer) -> None:
    with pytest.raises(KeyboardInterrupt), target_at(client) as target:
        push_image(target, 6)
        target.open_writer(describe(noise(33, 1000))).write(b"x")
        raise KeyboardInterrupt
    assert not containerd.leases(client.namespace)
    containerd.collect()
    assert not containerd.blobs(client.namespace)
    assert not containerd.ingests(client.namespace)
    with target_at(client) as target, fails("lease", kind=NotFoundError):
        target.open_writer(describe(b"abc")).abort()
        (lease,) = containerd.leases(client.namespace)
        containerd.ctr("leases", "delete", lease, namespace=client.namespace)
        target.open_writer(describe(b"abc"))


def test_only_reading_takes_no_lease(client: Containerd, containerd: ContainerdServer) -> None:
    root = push(client)
    with target_at(client) as target:
        before = target.before()
        assert before is not None
        assert before.exists(root)
        assert target.resolve() == root
        read(client, root)
        assert not containerd.leases(client.namespace)


def test_image_stays_until_it_is_removed(client: Containerd, containerd: ContainerdServer) -> None:
    with target_at(client) as target:
        manifests = [push_image(target, seed) for seed in (7, 8)]
        inner = push_index(target, manifests[:1])
        root = push_index(target, [*manifests, inner])
        target.tag(root)
    everything = containerd.blobs(client.namespace)
    assert len(everything) == 10
    containerd.collect()
    assert containerd.blobs(client.namespace) == everything
    labels = client.info(root.digest).labels
    assert labels == {
        f"containerd.io/gc.ref.content.m.{number}": one.digest
        for number, one in enumerate([*manifests, inner])
    }
    assert set(client.info(manifests[0].digest).labels) == {
        "containerd.io/gc.ref.content.config",
        "containerd.io/gc.ref.content.l.0",
        "containerd.io/gc.ref.content.l.1",
    }
    client.delete_image(FULL)
    assert not containerd.blobs(client.namespace)


def test_parts_that_were_there_without_labels(
    client: Containerd, containerd: ContainerdServer
) -> None:
    """As after a crash between two calls, or a pull of one platform only."""
    with Containerd(containerd.address, client.namespace + "-other") as other:
        with target_at(other) as target:
            root = push_index(target, [push_image(target, seed) for seed in (9, 10)])
            target.tag(root)
        everything = containerd.blobs(other.namespace)
        source = source_at(other)
        manifests = json.loads(read(other, root))["manifests"]
        for digest in (root.digest, manifests[0]["digest"]):
            data = read(other, Descriptor("", digest, other.info(digest).size))
            write(client, describe(data), data)
        with target_at(client) as target:
            assert copy_graph(source, target, root).present == 2
            target.tag(root)
    assert containerd.blobs(client.namespace) == everything
    containerd.collect()
    assert containerd.blobs(client.namespace) == everything
    client.delete_image(FULL)
    assert not containerd.blobs(client.namespace)


def test_image_that_is_not_whole(client: Containerd, containerd: ContainerdServer) -> None:
    """A manifest of an index may be missing, and a layer that is elsewhere."""
    with target_at(client) as target:
        one = push_image(target, 11)
        root = push_index(target, [one, describe(b"{}", OCI_MANIFEST)])
        client.delete_content(describe(noise(1100, 5000)).digest)
        target.tag(root)
    containerd.collect()
    assert len(containerd.blobs(client.namespace)) == 4


def test_gc_labels_of_other_things() -> None:
    assert gc_labels(describe(b"abc"), b"abc") == {}


def test_namespaces(client: Containerd, containerd: ContainerdServer) -> None:
    root = push(client)
    with Containerd(containerd.address, client.namespace + ".2") as other:
        assert other.images() == []
        assert not list(other.list_content())
        assert not source_at(other).exists(root)
        with fails(other.namespace, "--namespace", kind=NotFoundError):
            source_at(other).resolve()
        push(other, seed=12)
        assert containerd.blobs(other.namespace) != containerd.blobs(client.namespace)
        other.delete_image(FULL)
    assert client.image(FULL).target == root
    for wrong in ("", "a b", "a/b", "../a", "ä", "a\n", "-a", "a--b", "a" * 77):
        with fails("not a namespace", kind=UsageError, code=2):
            Containerd(containerd.address, wrong)
    with Containerd(containerd.address, "a" * 76) as longest:
        assert longest.images() == []


def test_labels_that_are_too_long(client: Containerd) -> None:
    push(client)
    with fails("label", FULL, kind=StorageError):
        client.label_image(FULL, {"a": "b" * 5000})
