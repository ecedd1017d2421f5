"""SOCI indexes of images of containerd: made, listed, pushed, removed."""

from __future__ import annotations

import json

import pytest
import requests

from soci_cli.targets.containerd.client import Containerd, Lease
from soci_cli.targets.containerd.place import ContainerdTarget
from soci_cli.targets.containerd.streams import ContentStream
from tests.commands.containerd.machine import (
    FILE,
    LABEL,
    NAMESPACE,
    SMALL,
    Machine,
    referrers,
)
from tests.support.commands import Soci
from tests.support.servers.docker_registry import DockerRegistry


def test_artifacts_in_the_local_store(machine: Machine, docker_registry: DockerRegistry) -> None:
    host = docker_registry.host
    image = machine.load(f"{host}/local/app:1")
    before = machine.blobs()
    done = machine("--content-store", "soci", "create", *SMALL, image.name).good()
    assert done.out == b""
    assert machine.blobs() == before
    assert machine.labels(image.name).keys() <= {"io.cri-containerd.image"}
    (digest,) = machine.digests("index", "ls")
    done = machine("push", "--plain-http", image.name).good()
    assert done.text == f"{digest}\n"
    assert digest in done.err
    (referrer,) = referrers(host, "local/app", image.manifests[0]["digest"])
    assert referrer["digest"] == digest
    # Neither the image itself nor its layers are pushed.
    tags = requests.get(f"http://{host}/v2/local/app/tags/list", timeout=10).json()["tags"]
    assert tags == [image.manifests[0]["digest"].replace(":", "-")]
    assert machine("push", "-q", "--plain-http", image.name).good().err == ""


def test_artifacts_in_containerd(machine: Machine, docker_registry: DockerRegistry) -> None:
    host = docker_registry.host
    image = machine.load(f"{host}/inside/app:1", ("amd64", "arm64"))
    create = ("create", *SMALL)  # containerd is the default for an image of containerd
    before = machine.blobs()
    machine(*create, "-p", "linux/arm64", image.name).good()
    machine(*create, "-p", "linux/amd64", image.name).good()
    amd64, arm64 = machine.digests("index", "ls")
    assert machine.labels(image.name)[LABEL] == amd64
    listed = machine("index", "ls", "--format", "json").good().text.splitlines()
    assert {json.loads(line)["namespace"] for line in listed} == {NAMESPACE}
    # They live as long as the image.
    kept = machine.blobs()
    assert {amd64, arm64, *machine.digests("ztoc", "ls")} <= kept
    assert len(kept) == len(before) + 2 + 4 + 1
    machine("push", "--plain-http", "--all-platforms", image.name).good()
    assert len(referrers(host, "inside/app", image.manifests[1]["digest"])) == 1
    machine.ctr("images", "rm", "--sync", image.name)
    assert machine.blobs() & {amd64, arm64, *machine.digests("ztoc", "ls")} == set()
    assert machine.digests("index", "ls") == [amd64, arm64]
    machine("rebuild-db").good()
    assert machine.digests("index", "ls") == machine.digests("ztoc", "ls") == []


def test_ztocs_in_containerd_are_used_again(machine: Machine) -> None:
    image = machine.load("registry.example/again:1")
    create = ("--content-store", "containerd", "create", *SMALL)
    machine(*create, image.name).good()
    (first,) = machine.digests("index", "ls")
    for layer in image.layers:
        machine.ctr("content", "rm", layer["digest"])
    machine(*create, image.name).good()
    assert machine.digests("index", "ls") == [first]
    # All layers are gone, and are worked on side by side: whichever is met first is named.
    failed = machine(*create, "--span-size", "65536", image.name).bad(1, "has no blob", "pull")
    assert [layer for layer in image.layers if layer["digest"] in failed.err]


def test_creating_again_writes_nothing_and_reads_little(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = machine.load("registry.example/twice:1")
    # The zTOC of the larger layer has 20 checkpoints of 32 KiB.
    create = ("create", *SMALL, "--span-size", "16384", image.name)
    first = machine(*create).good()
    (index,) = machine.digests("index", "ls")
    read: list[int] = []
    begin = ContentStream.__init__

    def counted(
        stream: ContentStream, client: Containerd, digest: str, start: int, length: int
    ) -> None:
        read.append(length)
        begin(stream, client, digest, start, length)

    def forbidden(*_: object) -> None:
        raise AssertionError("something is written")

    with monkeypatch.context() as patch:
        patch.setattr(ContentStream, "__init__", counted)
        patch.setattr(Lease, "keep", forbidden)
        patch.setattr(ContainerdTarget, "open_writer", forbidden)
        for method in ("put_image", "_update_image"):
            patch.setattr(Containerd, method, forbidden)
        assert machine(*create).good().err == first.err
    assert len(read) < 30
    assert max(read) <= 64 << 10
    # Another span size is another index.
    assert machine("create", *SMALL, "--span-size", "65536", image.name).good().err != first.err
    # What is not kept by the image is made anew, also when it is still there.
    label = f"{LABEL}.linux-amd64"
    machine.ctr("images", "label", image.name, f"{LABEL}=", f"{label}=")
    machine(*create).good()
    assert machine.labels(image.name) == {LABEL: index, label: index}


def test_the_newest_index_is_pushed(machine: Machine, docker_registry: DockerRegistry) -> None:
    host = docker_registry.host
    image = machine.load(f"{host}/newest/app:1")
    subject = image.manifests[0]["digest"]
    push = ("push", "--plain-http", "-q")
    machine(*push, image.name).bad(1, "no SOCI index v1 for linux/amd64", "soci create")
    machine("create", *SMALL, image.name).good()
    first = machine(*push, "--max-concurrent-uploads", "1", image.name).good().last
    machine("create", *SMALL, "--span-size", "65536", image.name).good()
    assert machine(*push, "--existing-index", "skip", image.name).good().out == b""
    assert [one["digest"] for one in referrers(host, "newest/app", subject)] == [first]
    done = machine("push", "--plain-http", image.name).good()
    assert "another SOCI index already" in done.err
    second = done.last
    assert second != first
    assert machine(*push, "--existing-index", "allow", image.name).good().last == second
    assert {one["digest"] for one in referrers(host, "newest/app", subject)} == {first, second}
    machine(*push, "-p", "linux/s390x", image.name).bad(1, "linux/s390x")
    ignored = ("--refresh", "x", "--http-dump", "--http-trace", "--user", "a:b")
    assert machine(*push, *ignored, image.name).good().last == second


def test_a_layer_that_is_missing(machine: Machine) -> None:
    image = machine.load("registry.example/gap:1")
    missing = image.layers[1]["digest"]
    machine.ctr("content", "rm", missing)
    machine("create", *SMALL, image.name).bad(1, missing, NAMESPACE, "pull")
    machine("convert", *SMALL, image.name, "registry.example/gap:2").bad(1, missing, "pull")
    machine("create", *SMALL, "registry.example/none:1").bad(1, "registry.example/none:1", "pull")
    assert machine.digests("index", "ls") == []
    assert machine.server.leases(NAMESPACE) == []


# The other commands


def test_every_listing(machine: Machine) -> None:
    one = machine.load("registry.example/one:1")
    two = machine.load("registry.example/two:1", ("amd64", "arm64"))
    create = ("--content-store=soci", "create", *SMALL)
    machine(*create, "--prefetch-file", "/a/b", one.name).good()
    machine(*create, "--all-platforms", two.name).good()
    assert len(machine.digests("index", "ls")) == 3
    text = machine("index", "list").good().text
    assert [text.count(image.name) for image in (one, two)] == [1, 2]
    (digest,) = machine.digests("index", "ls", "--ref", one.name)
    assert len(machine.digests("index", "ls", "--ref", two.name)) == 2
    assert len(machine.digests("index", "ls", "--ref", two.name, "-p", "linux/arm64")) == 1
    assert len(machine.digests("index", "ls", "--platform", "linux/amd64")) == 2
    machine("index", "ls", "--ref", "nosuch").bad(1, "docker.io/library/nosuch:latest")
    subject = json.loads(machine("index", "info", digest).good().text)["subject"]
    assert subject["digest"] == one.manifests[0]["digest"]
    ztocs = machine.digests("ztoc", "ls", "--image-ref", one.name)
    assert len(ztocs) == 2
    assert len(machine.digests("ztoc", "list")) == 6
    (ztoc,) = machine.digests("ztoc", "ls", "--ztoc-digest", ztocs[1])
    assert json.loads(machine("ztoc", "info", ztoc).good().text)["num_files"] == 2
    assert machine("ztoc", "get-file", ztoc, "a/b").good().out == FILE
    (prefetch,) = machine.digests("prefetch", "ls")
    assert "Prefetch Spans:" in machine("prefetch", "info", prefetch).good().text
    layer = one.layers[1]["digest"]
    machine.ctr("content", "rm", layer)
    machine("ztoc", "get-file", ztoc, "a/b").bad(1, layer, "pull its image first")
    machine("index", "rm", "--ref", two.name).good()
    assert machine.digests("index", "ls") == [digest]
    machine("index", "rm", digest).good()
    assert machine.digests("ztoc", "ls") == machine.digests("prefetch", "ls") == []


def test_removing_from_containerd(machine: Machine) -> None:
    image = machine.load("registry.example/remove:1")
    machine("--content-store=containerd", "create", *SMALL, image.name).good()
    machine("convert", *SMALL, image.name, "registry.example/remove:2").good()
    v2, v1 = machine.digests("index", "ls")
    machine("index", "rm", v2).bad(2, "a part of the image registry.example/remove:2")
    machine("index", "rm", v1).good()
    assert v1 not in machine.blobs()
    assert v2 in machine.blobs()
    assert LABEL not in machine.labels(image.name)
    assert machine.digests("index", "ls") == [v2]
    machine.ctr("images", "rm", "--sync", "registry.example/remove:2")
    machine("index", "rm", v2).good()
    machine("rebuild-db").good()
    assert machine.digests("ztoc", "ls") == []


def test_a_lost_database_with_containerd(machine: Machine, soci: Soci) -> None:
    image = machine.load("registry.example/lost:1", ("amd64", "arm64"))
    machine("--content-store", "soci", "create", *SMALL, "--all-platforms", image.name).good()
    machine(
        "--content-store", "containerd", "create", *SMALL, "-p", "linux/amd64", image.name
    ).good()
    machine("convert", *SMALL, "-p", "linux/arm64", image.name, "registry.example/lost:2").good()

    def known() -> list[tuple[str, ...]]:
        rows = machine("index", "ls", "--format", "json").good().text.splitlines()
        keys = (
            "digest",
            "image_ref",
            "platform",
            "original_digest",
            "image_digest",
            "content_store",
        )
        return sorted(tuple(json.loads(row)[key] for key in keys) for row in rows)

    before, ztocs = known(), sorted(machine.digests("ztoc", "ls"))
    assert len(before) == 4
    (soci.store / "soci.db").unlink()
    assert machine("--content-store", "containerd", "rebuild-db").good().out == b""
    assert known() == before
    assert sorted(machine.digests("ztoc", "ls")) == ztocs
