"""Writing to a registry that breaks: complete and correct, or an error and the tag where it was."""

from __future__ import annotations

import re
import threading
import tracemalloc
from collections.abc import Iterator

import pytest

from soci_cli.errors import (
    NotFoundError,
    UsageError,
)
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.media_types import OCI_LAYER, OCI_MANIFEST
from soci_cli.targets.copy import copy_blob, copy_graph, read_blob
from soci_cli.targets.layout import Layout
from soci_cli.targets.registry import RetryPolicy
from soci_cli.targets.registry.place import RegistryTarget
from soci_cli.trial_registry import RegistryServer
from tests.support.images import noise
from tests.support.places import copy, describe, push_image
from tests.support.servers.actions import (
    Action,
    Redirect,
    Reply,
    Reset,
    SetHeaders,
    error_reply,
    html_reply,
)
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.exchange import Exchange
from tests.support.servers.fault_proxy import Fault, FaultProxy
from tests.targets.registry.pushes import SIZE, UPLOAD, layout_blobs, own
from tests.targets.registry.tools import Struck, fails, push, registries, source_at, target_at


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """One for all tests, because there are many; each has repositories of its own."""
    with RegistryServer(tmp_path_factory.mktemp("embedded")) as server:
        yield server


# How it goes when nothing breaks


def test_round_trip(docker_registry: DockerRegistry, layout: Layout, chunks: None) -> None:
    with FaultProxy(docker_registry.host) as proxy, target_at(proxy.host, "trip:1") as target:
        root = copy(layout, target)
        methods = [
            seen.method for seen in proxy.log if re.search("blobs|uploads", seen.path) is not None
        ]
        assert methods.count("HEAD") == 3
        assert methods.index("HEAD") < methods.index("POST")
        assert methods.count("PATCH") == 8
        pushed = proxy.seen("PUT", "/manifests/")
        assert [seen.path.rpartition("/")[2] for seen in pushed] == [root.digest, "1"]
        again = len(proxy.log)
        copy(layout, target_at(proxy.host, "trip:2"))
        assert not [seen for seen in proxy.log[again:] if "upload" in seen.path]
        assert len(proxy.seen("PUT", "/manifests/")) == 3
    source = source_at(docker_registry.host, "trip:2")
    assert source.resolve() == root
    assert read_blob(source, root) == read_blob(layout, root)


def test_manifests_are_sent_as_they_are(docker_registry: DockerRegistry) -> None:
    """Odd spaces and the order of keys count for the digest."""
    with target_at(docker_registry.host, "exact:1") as target:
        root = push_image(target)
        odd = read_blob(target, root).replace(b":", b" :\t").replace(b" :\t", b":", 1)
        odd = odd.replace(b"sha256 :\t", b"sha256:") + b"\n"
        target.push(describe(odd, OCI_MANIFEST), odd)
        target.tag(describe(odd, OCI_MANIFEST))
    source = source_at(docker_registry.host, "exact:1")
    assert read_blob(source, source.resolve()) == odd


def test_connections_and_parallel_uploads(
    docker_registry: DockerRegistry, layout: Layout, chunks: None
) -> None:
    both = threading.Barrier(2, timeout=5)

    def meet(exchange: Exchange) -> None:
        both.wait()
        answer = exchange.ask()
        exchange.answer(answer.status, answer.headers, answer.body)

    with FaultProxy(docker_registry.host) as proxy:
        proxy.add(Fault(meet, path=UPLOAD, method="PATCH", times=2))
        with target_at(proxy.host, "parallel:1", timeout=10.0) as target:
            copy(layout, target)
        # Two blobs at a time, each with a thread that sends and one that reads.
        assert proxy.connections <= 4
        assert len(proxy.log) > 20


def test_empty_blob(docker_registry: DockerRegistry) -> None:
    with target_at(docker_registry.host, "empty:1") as target:
        target.push(describe(b""), b"")
        assert read_blob(target, describe(b"")) == b""


def test_memory(struck: Struck) -> None:
    """300 MB go by in a chunk of 16 MiB, and many blobs leave nothing behind."""
    size = 300 << 20
    piece = bytes(1 << 20)
    import hashlib

    whole = hashlib.sha256()
    for _ in range(size >> 20):
        whole.update(piece)

    def swallow(exchange: Exchange) -> None:
        exchange.drain()
        where = f"/v2/big/blobs/uploads/{exchange.seen.body_bytes}"
        status = {"POST": 202, "PATCH": 202, "PUT": 201, "HEAD": 404}[exchange.method]
        Reply(status, {"Location": where})(exchange)

    proxy = struck(Fault(swallow), host="127.0.0.1:1")
    tracemalloc.start()
    try:
        with target_at(proxy.host, "big:1", timeout=20.0) as target:
            writer = target.open_writer(Descriptor(OCI_LAYER, f"sha256:{whole.hexdigest()}", size))
            for _ in range(size >> 20):
                writer.write(piece)
            writer.commit()
            writers = []
            for number in range(8):
                data = noise(number, 5 << 20)
                writers.append(target.open_writer(describe(data)))
                writers[-1].write(data)
                writers[-1].commit()
            held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30 << 20
    assert held < 12 << 20


# The tag


TAG = "/manifests/1$"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(error_reply(500, "UNKNOWN", "oh no"), path=UPLOAD), "oh no"),
        (Fault(error_reply(403, "DENIED", "read only"), path="/blobs/uploads/"), "read only"),
        (Fault(error_reply(401, "UNAUTHORIZED"), path=UPLOAD, method="PATCH", skip=2), "401"),
        (Fault(Reset(), path=UPLOAD, method="PATCH", skip=3), "reset"),
        (
            Fault(error_reply(400, "MANIFEST_INVALID", "no"), path="/manifests/sha", method="PUT"),
            "no",
        ),
        (Fault(error_reply(413, "SIZE_INVALID"), path="/manifests/sha", method="PUT"), "413"),
        (Fault(Redirect("{path}"), path="/manifests/sha", method="PUT"), "too often"),
        (
            Fault(
                SetHeaders({"Docker-Content-Digest": describe(b"").digest}),
                path="/manifests/sha",
                method="PUT",
            ),
            "instead of",
        ),
        (Fault(error_reply(429, "TOOMANYREQUESTS"), path=TAG, method="PUT"), "429"),
        (Fault(html_reply(500), path=TAG, method="PUT"), "500"),
    ],
    ids=repr,
)
def test_no_tag_moves_after_an_error(
    fault: Fault, said: str, struck: Struck, layout: Layout, chunks: None, embedded: RegistryServer
) -> None:
    proxy = struck(fault)
    name = f"{own('kept', proxy)}:1"
    before = push(embedded.address, name, seed=77)
    with (
        fails(said),
        target_at(proxy.host, name) as target,
    ):
        copy(layout, target)
    assert source_at(embedded.address, name).resolve() == before


def test_tag_gets_over_faults(struck: Struck, layout: Layout) -> None:
    proxy = struck(
        Fault(Reset(), path=TAG, method="PUT", times=1),
        Fault(error_reply(503, "BUSY"), path=TAG, method="PUT", times=1),
    )
    with target_at(proxy.host, "over:1") as target:
        root = copy(layout, target)
    assert source_at(proxy.host, "over:1").resolve() == root


def test_blobs_that_are_not_seen_for_a_moment(struck: Struck, layout: Layout) -> None:
    """As when another client pushes the same blob at the same time."""
    unknown = error_reply(404, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry")
    proxy = struck(Fault(unknown, path="/manifests/sha", method="PUT", times=2))
    with target_at(proxy.host, "moment:1") as target:
        copy(layout, target)
    proxy.add(Fault(unknown, path="/manifests/", method="PUT"))
    with (
        fails("blob unknown to registry", kind=NotFoundError),
        target_at(proxy.host, "moment:2") as target,
    ):
        target.tag(copy(layout, target))


def test_digest_as_the_name(docker_registry: DockerRegistry) -> None:
    root = push(docker_registry.host, "named:1", seed=8)
    where = registries()
    with target_at(where, f"{docker_registry.host}/named@{root.digest}") as target:
        assert push_image(target, seed=8) == root
        target.tag(root)
        with pytest.raises(UsageError, match="cannot name"):
            target.tag(describe(b"other", OCI_MANIFEST))


# Mounting


def test_mount(docker_registry: DockerRegistry) -> None:
    with FaultProxy(docker_registry.host) as proxy:
        where = registries()
        push(proxy.host, "mount/from:1", seed=31, size=SIZE)
        source = source_at(where, f"{proxy.host}/mount/from:1")
        target = target_at(where, f"{proxy.host}/mount/to:1")
        proxy.clear()
        with target:
            copy(source, target)
        mounted = proxy.seen("POST", "mount=sha256%3A[0-9a-f]+&from=mount%2Ffrom")
        assert [seen.status for seen in mounted] == [201] * 3
        assert not proxy.seen("PATCH|PUT", "/uploads/")
        assert not proxy.seen("GET", "/blobs/")


@pytest.mark.parametrize(
    "action",
    [error_reply(status, "NO") for status in (400, 401, 403, 404, 405, 500)],
    ids=lambda action: action.status,
)
def test_refused_mounts_are_copied(
    action: Action, docker_registry: DockerRegistry, struck: Struck
) -> None:
    push(docker_registry.host, "mount/from:2", seed=32)
    proxy = struck(Fault(action, path="mount="), host=docker_registry.host)
    where = registries()
    repo = f"mount/refused-{action.status}"  # type: ignore[attr-defined]
    with target_at(where, f"{proxy.host}/{repo}:1") as target:
        root = copy(source_at(where, f"{proxy.host}/mount/from:2"), target)
    assert source_at(docker_registry.host, f"{repo}:1").resolve() == root


def test_mount_that_opens_an_upload(docker_registry: DockerRegistry, struck: Struck) -> None:
    def unknown(exchange: Exchange) -> None:
        exchange.path = exchange.path.replace("from=mount", "from=nowhere")
        answer = exchange.ask()
        exchange.answer(answer.status, answer.headers, answer.body)

    push(docker_registry.host, "mount/from:3", seed=33)
    proxy = struck(Fault(unknown, path="mount="), host=docker_registry.host)
    where = registries()
    with target_at(where, f"{proxy.host}/mount/opened:1") as target:
        copy(source_at(where, f"{proxy.host}/mount/from:3"), target)
    assert len(proxy.seen("POST", "/uploads/")) == 3, "the upload that was opened is used"


def test_a_source_that_fails_leaves_nothing(
    docker_registry: DockerRegistry, embedded: RegistryServer, chunks: None
) -> None:
    others = set(embedded.root.rglob(".ingest*"))
    push(docker_registry.host, "half:1", seed=41, size=SIZE)
    with FaultProxy(docker_registry.host) as from_here:
        from_here.add(Fault(error_reply(500, "UNKNOWN", "gone"), path="/blobs/", skip=3))
        from_here.add(Fault(Reset(), path="/blobs/"))
        with fails(), target_at(embedded.address, "half:1") as target:
            source = source_at(from_here.host, "half:1", retries=RetryPolicy(1))
            root = source.resolve()
            for _ in range(3):
                copy_graph(source, target, root)
            target.tag(root)
    with fails(kind=NotFoundError):
        source_at(embedded.address, "half:1").resolve()
    assert set(embedded.root.rglob(".ingest*")) <= others


def test_copy_blob_says_how(docker_registry: DockerRegistry, layout: Layout) -> None:
    with target_at(docker_registry.host, "how:1") as target:
        assert isinstance(target, RegistryTarget)
        blob = layout_blobs(layout)[1]
        assert copy_blob(layout, target, blob) == "copied"
        assert copy_blob(layout, target, blob) == "already there"
