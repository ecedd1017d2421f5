"""Blobs read out of containerd: whole, in ranges, and wrong ones."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.errors import IntegrityError, InvalidDataError, NotFoundError, StorageError
from soci_cli.oci.digest import digest_of
from soci_cli.oci.media_types import OCI_MANIFEST
from soci_cli.targets import read_blob
from soci_cli.targets.containerd.client import Containerd
from soci_cli.targets.containerd.place import GC_REF, SOCI_INDEX_LABEL
from tests.support.images import noise
from tests.support.places import describe, push_index, push_json
from tests.support.scale import examples
from tests.support.servers.containerd import ContainerdServer, Programs
from tests.targets.containerd.tools import FULL, fails, push, read, source_at, target_at, write

LARGE = noise(1, 5_500_000)


@pytest.fixture
def large(client: Containerd) -> Containerd:
    write(client, describe(LARGE), LARGE)
    return client


def test_whole_blob(large: Containerd) -> None:
    assert read(large, describe(LARGE)) == LARGE
    buffer = bytearray(3_000_000)
    found = b""
    with source_at(large).fetch(describe(LARGE)) as stream:
        while count := stream.readinto(buffer):
            found += buffer[:count]
        assert stream.readinto(buffer) == 0
        assert stream.read() == b""
    assert found == LARGE


def test_ranges(large: Containerd) -> None:
    source = source_at(large)
    size = len(LARGE)

    @examples(30)
    @given(st.integers(0, size), st.integers(0, size), st.integers(1, 2_000_000))
    def check(one: int, other: int, step: int) -> None:
        start, end = sorted((one, other))
        with source.fetch(describe(LARGE), start, end - start) as stream:
            pieces = []
            while piece := stream.read(step):
                assert len(piece) <= step
                pieces.append(piece)
        assert b"".join(pieces) == LARGE[start:end]

    check()
    for offset, length in ((-1, 5), (0, size + 1), (size, 1), (5, -1)):
        with fails("bytes", kind=InvalidDataError):
            source.fetch(describe(LARGE), offset, length)


def test_nothing_is_left_when_reading_ends_early(large: Containerd) -> None:
    before = threading.active_count()
    for wanted in (0, 10, 2_000_000):
        stream = source_at(large).fetch(describe(LARGE))
        stream.read(wanted)
        stream.close()
        stream.close()
    assert threading.active_count() <= before + 1  # gRPC's own


def test_empty_blob(client: Containerd) -> None:
    write(client, describe(b""), b"")
    assert read(client, describe(b"")) == b""
    assert source_at(client).exists(describe(b""))


def test_missing_blob(client: Containerd) -> None:
    push(client)
    missing = describe(b"not there")
    assert not source_at(client).exists(missing)
    with fails(missing.digest, "containerd:app:1", client.namespace, "pull", kind=NotFoundError):
        source_at(client).fetch(missing)


def test_wrong_size(client: Containerd) -> None:
    data = noise(2, 1000)
    write(client, describe(data), data)
    wrong = replace(describe(data), size=999)
    assert not source_at(client).exists(wrong)
    with fails("1000", "999", kind=IntegrityError):
        source_at(client).fetch(wrong)


def test_blob_that_goes_while_it_is_read(client: Containerd) -> None:
    """containerd has opened the file, so reading goes on."""
    data = noise(3, 3_000_000)
    write(client, describe(data), data)
    with source_at(client).fetch(describe(data)) as stream:
        first = stream.read(10)
        client.delete_content(describe(data).digest)
        assert first + stream.read() == data
    with pytest.raises(NotFoundError):
        client.delete_content(describe(data).digest)


def test_damaged_blob(client: Containerd, containerd: ContainerdServer) -> None:
    """Files of the content store that were changed or cut behind containerd's back."""
    for size in (5000, 3_000_000):
        data = noise(4, size)
        descriptor = describe(data)
        write(client, descriptor, data)
        path = containerd.content / "blobs" / "sha256" / descriptor.digest.partition(":")[2]
        path.chmod(0o600)
        path.write_bytes(b"x" + data[1:])
        with fails(descriptor.digest, kind=IntegrityError):
            read_blob(source_at(client), descriptor)
        path.write_bytes(data[:-100])
        with fails("cut short", kind=IntegrityError):
            read(client, descriptor)
        path.unlink()
        # containerd believes that it has the blob, which is worth a clear line as well.
        with fails(descriptor.digest):
            read(client, descriptor)


def test_image_of_which_a_layer_is_missing(client: Containerd, tmp_path: Path) -> None:
    push(client)
    layer = describe(noise(1, 5000))
    client.delete_content(layer.digest)
    with fails(layer.digest, "containerd:app:1", "pull", kind=NotFoundError):
        read_blob(source_at(client), layer)


def test_containerd_that_stops_while_it_is_read(
    tmp_path: Path, containerd_programs: Programs
) -> None:
    data = noise(5, 30_000_000)
    with (
        ContainerdServer(tmp_path, containerd_programs) as server,
        Containerd(server.address) as client,
    ):
        write(client, describe(data), data)
        with source_at(client).fetch(describe(data)) as stream:
            stream.read(10)
            server.kill()
            with fails("cannot be reached", kind=StorageError):
                stream.read()
        server.start()
        assert read(client, describe(data)) == data


def test_timeout(client: Containerd, containerd: ContainerdServer) -> None:
    data = noise(6, 30_000_000)
    write(client, describe(data), data)
    with (
        Containerd(containerd.address, client.namespace, timeout=0.3) as hasty,
        source_at(hasty).fetch(describe(data)) as stream,
        fails("--timeout", kind=StorageError),
    ):
        stream.read(10)
        threading.Event().wait(0.4)
        stream.read()


def test_names(client: Containerd) -> None:
    root = push(client)
    source = source_at(client)
    assert source.resolve() == root
    assert source_at(client, FULL).resolve() == root
    assert source.image_name == FULL
    assert source.names() == {
        "io.containerd.image.name": FULL,
        "org.opencontainers.image.ref.name": "1",
    }
    with fails("there is no image docker.io/library/app:2", "--namespace", kind=NotFoundError):
        source_at(client, "app:2").resolve()


def test_short_name_that_is_the_whole_name(
    client: Containerd, containerd: ContainerdServer
) -> None:
    """An image that is called by a short name is found, but what is written has a full one."""
    root = push(client)
    containerd.ctr("images", "tag", FULL, "app:1", namespace=client.namespace)
    other = push(client, seed=1)
    assert source_at(client).resolve() == root
    with target_at(client) as target:
        assert target.resolve() == other
        before = target.before()
        assert before is not None
        assert before.resolve() == other


def test_name_with_a_digest(client: Containerd) -> None:
    root = push(client)
    name = f"app@{root.digest}"
    with target_at(client, name) as target:
        target.tag(root)
    source = source_at(client, name)
    assert source.resolve() == root
    assert source.names() == {"io.containerd.image.name": f"docker.io/library/{name}"}


def test_find(client: Containerd) -> None:
    root = push(client)
    found = source_at(client).find(root.digest)
    assert (found.media_type, found.digest, found.size) == (root.media_type, root.digest, root.size)
    with pytest.raises(NotFoundError):
        source_at(client).find(digest_of(b"nothing"))
    with fails("digest", kind=InvalidDataError):
        source_at(client).find("sha256:../../etc")


def test_referrers(
    client: Containerd, containerd: ContainerdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = push(client)
    assert source_at(client).referrers(root, "x") == ()
    with target_at(client) as target:
        wrong = push_index(target, [])
        right, other = (
            push_json(
                target,
                {
                    "schemaVersion": 2,
                    "mediaType": OCI_MANIFEST,
                    "artifactType": "x",
                    "config": describe(b"{}").to_json(),
                    "layers": [],
                    "subject": subject.to_json(),
                },
                OCI_MANIFEST,
            )
            for subject in (root, wrong)
        )
        for descriptor in (right, other):
            client.label_image(FULL, {f"{GC_REF}.{descriptor.digest}": descriptor.digest})
    # Labels that lead nowhere, to something else, or to another image's.
    for digest in (digest_of(b"nothing"), wrong.digest, other.digest, "no digest"):
        client.label_image(FULL, {SOCI_INDEX_LABEL: digest})
        assert source_at(client).referrers(root, "x") == ()
    # One for each platform.
    client.label_image(FULL, {SOCI_INDEX_LABEL: right.digest})
    client.label_image(FULL, {f"{SOCI_INDEX_LABEL}.linux-arm64": other.digest})
    client.label_image(FULL, {f"{SOCI_INDEX_LABEL}.linux-amd64": right.digest})
    source = source_at(client)
    (found,) = source.referrers(root, "x")
    assert (found.digest, found.artifact_type) == (right.digest, "x")
    with monkeypatch.context() as patch:
        # They are asked for once, however many manifests an image has.
        patch.setattr(Containerd, "info", None)
        assert source.referrers(root, "y") == ()
        (found,) = source.referrers(wrong, "x")
        assert found.digest == other.digest
    # They stay as long as the labels do.
    containerd.collect()
    assert {right.digest, other.digest} <= containerd.blobs(client.namespace)
    client.label_image(FULL, dict.fromkeys(client.image(FULL).labels, ""))
    assert not client.image(FULL).labels
    containerd.collect()
    assert not {right.digest, other.digest} & containerd.blobs(client.namespace)
