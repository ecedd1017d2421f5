"""The reference's command line against containerd, and what nerdctl does with it."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from soci_cli.targets.containerd.client import Containerd, Lease
from soci_cli.targets.containerd.place import ContainerdTarget
from soci_cli.targets.containerd.streams import ContentStream
from soci_cli.targets.places import connect
from tests.support.commands import SOCI, Done, Soci, environment, process
from tests.support.images import Json, LayoutMaker, gz, layer_tar, noise, sha256, tar_of
from tests.support.servers.containerd import ContainerdServer
from tests.support.servers.docker_registry import DockerRegistry

NAMESPACE = "k8s.io"
INDEX_V1 = "application/vnd.amazon.soci.index.v1+json"
LABEL = "containerd.io/gc.ref.content.soci-index"
SMALL = ("--min-layer-size", "0")
NONE = "sha256:" + "0" * 64
FILE = noise(5, 300_000)


@dataclass(frozen=True)
class Image:
    """An image of containerd: its full name, and what it is made of."""

    name: str
    namespace: str
    manifests: list[Json]
    layers: list[Json]


class Machine:
    """A containerd with images, and the command line that talks to it."""

    def __init__(self, server: ContainerdServer, soci: Soci, folder: Path) -> None:
        self.server = server
        self.root = soci.store
        self._soci = soci
        self._folder = folder

    def __call__(self, *arguments: str | Path, namespace: str = NAMESPACE) -> Done:
        flags = ("--address", self.server.address, "--namespace", namespace)
        return self._soci(*flags, *arguments)

    def ctr(self, *arguments: str | Path) -> str:
        return self.server.ctr(*arguments, namespace=NAMESPACE)

    def digests(self, *arguments: str) -> list[str]:
        return self(*arguments, "-q").good().text.split()

    def blobs(self) -> set[str]:
        self.server.collect(NAMESPACE)
        return self.server.blobs(NAMESPACE)

    def labels(self, name: str) -> dict[str, str]:
        for line in self.ctr("images", "ls", f"name=={name}").splitlines()[1:]:
            return dict(pair.split("=", 1) for pair in line.split()[-1].split(",") if "=" in pair)
        return {}

    def load(
        self, name: str, architectures: Sequence[str] = ("amd64",), namespace: str = NAMESPACE
    ) -> Image:
        """Imports an image of two layers for each platform, of which none is like another image's."""
        maker = LayoutMaker(self._folder / re.sub(r"\W", "-", name))
        seed = int(sha256(name.encode())[7:13], 16)
        manifests, every = [], []
        for number, architecture in enumerate(architectures):
            layers = [
                gz(layer_tar(seed + number)),
                gz(tar_of({"a/b": FILE, f"name-{seed}-{number}": b"x" * number})),
            ]
            config = maker.config(
                [sha256(gzip.decompress(layer)) for layer in layers], architecture=architecture
            )
            blobs = [maker.blob(layer) for layer in layers]
            every += blobs
            manifests.append(
                maker.manifest(blobs, config)
                | {"platform": {"os": "linux", "architecture": architecture}}
            )
        root = maker.index(manifests) if len(manifests) > 1 else manifests[0]
        tag = {"io.containerd.image.name": name}
        maker.tag(root, name.rpartition(":")[2], **tag)
        archive = self._folder / "import.tar"
        subprocess.run(["tar", "-cf", archive, "-C", maker.root, "."], check=True)
        importing = ("images", "import", "--no-unpack", "--all-platforms")
        self.server.ctr(*importing, archive, namespace=namespace)
        return Image(name, namespace, manifests, every)


@pytest.fixture
def docker_registry(need_docker_registry: str, tmp_path: Path) -> Iterator[DockerRegistry]:
    """A new registry, since every containerd pushes under the same names."""
    with DockerRegistry(tmp_path / "registry") as registry:
        yield registry


@pytest.fixture
def machine(containerd: ContainerdServer, soci: Soci, tmp_path: Path) -> Iterator[Machine]:
    yield Machine(containerd, soci, tmp_path)
    for name in containerd.ctr("images", "ls", "-q", namespace=NAMESPACE).split():
        containerd.ctr("images", "rm", "--sync", name, namespace=NAMESPACE)


def referrers(host: str, repository: str, digest: str) -> list[Json]:
    """The list under the fallback tag; docker-registry has no referrers API."""
    url = f"http://{host}/v2/{repository}/manifests/{digest.replace(':', '-')}"
    accept = {"Accept": "application/vnd.oci.image.index.v1+json"}
    answer = requests.get(url, headers=accept, timeout=10)
    if answer.status_code == 404:
        return []
    found: list[Json] = answer.json()["manifests"]
    return found


# nerdctl, as its pkg/snapshotterutil/sociutil.go runs `soci`


class Nerdctl:
    """The command lines that nerdctl builds, and its way of reading what comes back."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        program = folder / "bin" / "soci"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {" ".join(SOCI)} "$@"\n')
        program.chmod(0o755)
        self._environment = environment(folder, SOCI_ROOT=str(machine.root))
        self._program = str(program)
        self._flags = ["--address", machine.server.address, "--namespace", NAMESPACE]

    def check_version(self, required: tuple[int, ...]) -> None:
        done = subprocess.run(
            [self._program, "--version"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment,
        )
        assert done.returncode == 0
        found = re.search(r"v?(\d+\.\d+\.\d+)", done.stdout)
        assert found is not None
        assert tuple(map(int, found[1].split("."))) >= required

    def create(
        self, ref: str, *, all_platforms: bool = False, platforms: Sequence[str] = ()
    ) -> list[str]:
        words = ["create", *_platforms(all_platforms, platforms)]
        return self._run(*words, "--span-size", "65536", "--min-layer-size", "0", ref)

    def push(
        self,
        ref: str,
        *,
        all_platforms: bool = False,
        platforms: Sequence[str] = (),
        hosts: Sequence[str] = (),
    ) -> list[str]:
        words = ["push", *_platforms(all_platforms, platforms), "--skip-verify", "--plain-http"]
        if hosts:
            words += ["--hosts-dir", ",".join(hosts)]
        return self._run(*words, ref)

    def convert(self, src: str, dst: str, *, all_platforms: bool = False) -> list[str]:
        self.check_version((0, 10, 0))
        words = ["convert", *(["--all-platforms"] if all_platforms else [])]
        return self._run(*words, "--span-size", "65536", "--min-layer-size", "0", src, dst)

    def _run(self, *words: str) -> list[str]:
        running = subprocess.Popen(
            [self._program, *self._flags, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
        )
        assert running.stdout is not None
        assert running.stderr is not None
        # First one to its end, then the other.
        lines = running.stdout.read().decode().splitlines()
        lines += running.stderr.read().decode().splitlines()
        assert running.wait() == 0, lines
        return lines


def _platforms(every: bool, platforms: Sequence[str]) -> list[str]:
    words = ["--all-platforms"] if every else []
    for platform in platforms:
        words += ["--platform", platform]
    return words


def test_nerdctl_push_makes_and_pushes_an_index(
    machine: Machine, docker_registry: DockerRegistry, tmp_path: Path
) -> None:
    host = docker_registry.host
    image = machine.load(f"{host}/nerdctl/push:1", ("amd64", "arm64"))
    nerdctl = Nerdctl(tmp_path, machine)
    machine.ctr("images", "push", "--plain-http", image.name)
    nerdctl.create(image.name, platforms=["linux/amd64"])
    nerdctl.push(image.name, platforms=["linux/amd64"], hosts=["/nosuch", "/neither"])
    amd64, arm64 = (manifest["digest"] for manifest in image.manifests)
    (referrer,) = referrers(host, "nerdctl/push", amd64)
    assert referrer["artifactType"] == INDEX_V1
    assert referrers(host, "nerdctl/push", arm64) == []
    nerdctl.create(image.name, all_platforms=True)
    assert any(referrer["digest"] in line for line in nerdctl.push(image.name, all_platforms=True))
    assert len(referrers(host, "nerdctl/push", arm64)) == 1
    assert len(referrers(host, "nerdctl/push", amd64)) == 1
    # Who pulls finds it.
    env = {"SOCI_CONFIG": str(tmp_path / "soci.toml")}
    (tmp_path / "soci.toml").write_text("[pull_modes.soci_v1]\nenable = true\n")
    pull = ("--root", tmp_path / "fresh", "pull", "-p", "linux/amd64", image.name)
    pulled = process(*pull, home=tmp_path, env=env).good()
    assert "SOCI v1; 2 of 2 layers stay in the registry" in pulled.err


def test_nerdctl_converts(
    machine: Machine, docker_registry: DockerRegistry, tmp_path: Path
) -> None:
    host = docker_registry.host
    image = machine.load(f"{host}/nerdctl/convert:1")
    nerdctl = Nerdctl(tmp_path, machine)
    converted = f"{host}/nerdctl/convert:soci"
    lines = nerdctl.convert(image.name, converted)
    digest = machine.ctr("images", "ls", f"name=={converted}").splitlines()[1].split()[2]
    assert digest in lines
    assert any("changed" in line for line in nerdctl.convert(image.name, converted))
    # The whole of it is kept by the image, and pushed by any tool.
    machine.server.collect(NAMESPACE)
    machine.ctr("images", "push", "--plain-http", converted)
    fresh = ("--root", tmp_path / "fresh")
    pulled = process(*fresh, "pull", converted, home=tmp_path).good()
    assert "SOCI v2; 2 of 2 layers stay in the registry" in pulled.err
    assert pulled.last == digest
    (shown,) = [line for line in machine("index", "ls").good().text.splitlines() if "v2" in line]
    assert converted in shown
    # `nerdctl push --snapshotter soci` of what is converted: an index v1 of its own, and a warning.
    nerdctl.create(converted)
    lines = nerdctl.push(converted)
    assert any("the SOCI index v2 is not pushed here" in line for line in lines)


# create and push


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


def test_push_goes_to_where_the_image_is(
    machine: Machine, soci: Soci, docker_registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = docker_registry.host
    image = machine.load(f"{host}/where/app:1")
    machine("--content-store=soci", "create", *SMALL, image.name).good()
    (digest,) = machine.digests("index", "ls")
    with_place = ("push", "-q", "--plain-http", f"containerd:{image.name}")
    assert machine(*with_place).good().last == digest
    # The local store goes first where nothing says which containerd is meant.
    convert = ("image", "convert", "--soci", "--soci-min-layer-size", "0")
    where = f"containerd:{image.name}"
    monkeypatch.setenv("CONTAINERD_ADDRESS", machine.server.address)
    monkeypatch.setenv("CONTAINERD_NAMESPACE", NAMESPACE)
    archive = soci.store.parent / "a.tar"
    soci(*convert, where, f"oci-archive:{archive}").good()
    assert soci("push", "-q", image.name).good().last == digest
    monkeypatch.delenv("CONTAINERD_ADDRESS")
    monkeypatch.delenv("CONTAINERD_NAMESPACE")

    # Where the local store does not have it, containerd is asked, at the usual address.
    def usual(_: str | None, namespace: str | None, timeout: float | None) -> Containerd:
        return connect(machine.server.address, NAMESPACE, timeout)

    monkeypatch.setattr("soci_cli.targets.places.connect", usual)
    assert soci("push", "-q", image.name).good().last == digest
    soci("push", "-q", f"{host}/where/none:1").bad(1, "not in the local store")
    soci("image", "load", "-i", archive, "--name", image.name).good()
    pushed = soci("push", "-q", image.name).good().last
    assert pushed != digest
    assert pushed == soci("images", "-q").good().last


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


def test_a_flag_before_the_command_goes_before_a_variable(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = machine.load("registry.example/before:1")
    monkeypatch.setenv("CONTAINERD_NAMESPACE", "elsewhere")
    monkeypatch.setenv("CONTAINERD_ADDRESS", "/nowhere/containerd.sock")
    machine("create", *SMALL, image.name).good()
    assert len(machine.digests("index", "ls", "--ref", image.name)) == 1


def test_the_folder_of_the_reference_is_left_alone(machine: Machine, tmp_path: Path) -> None:
    """Scripts name it by --root; what is ours has a folder of its own there."""
    root = tmp_path / "soci-snapshotter-grpc"
    root.mkdir()
    (root / "artifacts.db").write_bytes(b"the reference's")
    image = machine.load("registry.example/root:1")
    flags = ("--root", str(root), "--content-store", "soci")
    machine(*flags, "create", *SMALL, image.name).good()
    assert {path.name for path in root.iterdir()} == {"artifacts.db", "soci-cli"}
    assert len(machine("--root", str(root), "index", "ls", "-q").good().text.split()) == 1
    assert machine("--root", str(root), "rebuild-db").good().out == b""


def test_namespaces_are_apart(
    machine: Machine, soci: Soci, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = machine.load("registry.example/apart:1", namespace="other")
    create = ("--content-store", "containerd", "create", *SMALL, image.name)
    machine(*create).bad(1, image.name, NAMESPACE)
    machine(*create, namespace="other").good()
    assert machine.digests("index", "ls") == []
    assert len(machine("index", "ls", "-q", namespace="other").good().text.split()) == 1
    monkeypatch.setenv("CONTAINERD_NAMESPACE", "other")
    assert len(soci("index", "ls", "-q").good().text.split()) == 1
    machine.server.ctr("images", "rm", "--sync", image.name, namespace="other")


@pytest.mark.parametrize(
    "flags",
    [
        "-a {address} -n {namespace}",
        "-n={namespace} --root {root} -a={address}",
        "--debug --namespace={namespace} --timeout 1m30s --address=unix://{address}",
        "--timeout=0 --address {address} --content-store soci --namespace {namespace} -q",
    ],
)
def test_global_flags_in_any_order(machine: Machine, soci: Soci, flags: str) -> None:
    image = machine.load("registry.example/flags:1")
    words = flags.format(address=machine.server.address, namespace=NAMESPACE, root=soci.store)
    soci(*words.split(), "create", *SMALL, image.name).good()
    assert len(machine.digests("index", "ls")) == 1
    # The reference takes them after the command too.
    after = ("--namespace", NAMESPACE, "-a", machine.server.address)
    soci("create", *after, *SMALL, image.name).good()
    assert "CONTAINERD_NAMESPACE" not in soci("create", "--help").good().text
    assert "CONTAINERD_NAMESPACE" in soci("--help").good().text


def test_names_are_containerds_in_every_command(machine: Machine, tmp_path: Path) -> None:
    image = machine.load("docker.io/library/names:1")
    convert = ("image", "convert", "--soci", "--soci-min-layer-size", "0")
    machine(*convert, "names:1", "names:2").good()
    assert "docker.io/library/names:2" in machine.ctr("images", "ls", "-q").split()
    shown = machine("image", "inspect", "names:2").good().text
    assert "SOCI v2, 2 of 2 layers indexed" in shown
    done = machine("convert", *SMALL, "names:1", f"oci:{tmp_path}/out").good()
    assert done.last == machine.ctr("images", "ls", "name==docker.io/library/names:2").split()[-5]
    assert image.name


def test_errors_are_one_line(machine: Machine) -> None:
    machine("index", "info", NONE).bad(1, NONE)
    machine("index", "rm", NONE).bad(1, NONE)
    machine("ztoc", "info", NONE).bad(1, NONE)
    machine("ztoc", "get-file", NONE, "x").bad(1, NONE)
    machine("prefetch", "info", NONE).bad(1, NONE)
    machine("convert", "nosuch:1", "other:1").bad(1, "docker.io/library/nosuch:1")
    machine("create", "UPPER").bad(2, "UPPER")
