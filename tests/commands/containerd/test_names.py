"""Which images are meant: addresses, namespaces, names, and the flags and variables that say so."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from soci_cli.targets import Store
from soci_cli.targets.containerd.client import Containerd
from soci_cli.targets.places import connect
from tests.commands.containerd.machine import (
    NAMESPACE,
    NONE,
    SMALL,
    Machine,
)
from tests.support.commands import Done, Soci, process
from tests.support.images import LayoutMaker, gz, layer_tar, make_image, noise, sha256
from tests.support.servers.docker_registry import DockerRegistry


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


class Ways:
    """Commands that name containerd by flags or by variables, beside a local store that must not change."""

    def __init__(
        self, machine: Machine, soci: Soci, way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.server = machine.server
        self.ctr = machine.ctr
        self._soci = soci
        self._flags = ["--address", machine.server.address, "--namespace", NAMESPACE]
        if way == "variables":
            monkeypatch.setenv("CONTAINERD_ADDRESS", machine.server.address)
            monkeypatch.setenv("CONTAINERD_NAMESPACE", NAMESPACE)
            self._flags = []
        self._before = self.local()

    def __call__(self, *arguments: str | Path) -> Done:
        done = self._soci(*self._flags, *arguments)
        assert self.local() == self._before, arguments
        return done

    def local(self) -> list[tuple[str, str]]:
        images = Store(self._soci.store).images()
        return [(image.name, image.descriptor.digest) for image in images]

    def listed(self) -> dict[str, str]:
        """The images of containerd, name and digest."""
        rows = [line.split() for line in self.ctr("images", "ls").splitlines()[1:]]
        return {row[0]: row[2] for row in rows}


@pytest.fixture(params=["flags", "variables"])
def ways(
    machine: Machine,
    soci: Soci,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> Ways:
    """Here and there are images of the same name, which differ."""
    make_image(tmp_path / "local", [gz(layer_tar(1234))])
    for name in ("both:1", "both:2"):
        soci("image", "load", "-i", tmp_path / "local", "--name", name).good()
        machine.load(f"docker.io/library/{name}")
    return Ways(machine, soci, request.param, monkeypatch)


def test_images_of_containerd_are_listed(ways: Ways) -> None:
    there = ways.listed()
    for words in ("images", "image ls"):
        lines = ways(*words.split(), "--format", "json").good().text.splitlines()
        assert {line["name"]: line["digest"] for line in map(json.loads, lines)} == there
        assert ways(*words.split(), "-q").good().text.split() == list(there.values())
    text = ways("images", "both:1", "--no-trunc").good().text.splitlines()
    assert len(text) == 2
    assert text[1].split()[:4] == ["both:1", there["docker.io/library/both:1"], "linux/amd64", "-"]
    ways("create", *SMALL, "both:2").good()
    ways("image", "convert", "--soci", "--soci-min-layer-size", "0", "both:1", "both:3").good()
    # Kubernetes gives names that nobody could write.
    ways.ctr("images", "tag", "docker.io/library/both:1", "sha256:" + "a" * 64)
    rows = [line.split() for line in ways("images").good().text.splitlines()[1:]]
    assert [(row[0], row[3]) for row in rows] == [
        ("both:1", "-"),
        ("both:2", "v1"),
        ("both:3", "v2"),
        ("sha256:" + "a" * 64, "-"),
    ]
    ways("rmi", "sha256:" + "a" * 64).good()
    assert len(ways.listed()) == 3


def test_images_of_containerd_are_removed(ways: Ways) -> None:
    done = ways("rmi", "both:1").good()
    assert done.text.splitlines() == ["Untagged: docker.io/library/both:1"]
    assert list(ways.listed()) == ["docker.io/library/both:2"]
    ways("rmi", "both:1").bad(1, "docker.io/library/both:1", "containerd")
    ways("image", "rm", "-f", "both:1", "docker.io/library/both:2").good()
    assert ways.listed() == {}
    assert ways.ctr("content", "ls", "-q") == ""


def test_images_of_containerd_get_names(ways: Ways) -> None:
    there = ways.listed()
    ways("create", *SMALL, "both:1").good()
    ways("image", "tag", "both:1", "new:1").good()
    ways("image", "tag", "both:1", "both:2").good()
    first = there["docker.io/library/both:1"]
    assert ways.listed() == dict.fromkeys(
        (f"docker.io/library/{name}" for name in ("both:1", "both:2", "new:1")), first
    )
    # The SOCI index stays as long as one of them.
    ways("rmi", "both:1").good()
    assert "SOCI v1, 2 of 2 layers indexed" in ways("image", "inspect", "new:1").good().text
    ways("image", "tag", "nosuch:1", "new:2").bad(1, "nosuch:1", "containerd")
    ways("image", "tag", "new:1", "UPPER").bad(2, "UPPER")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_images_are_pulled_into_containerd(
    ways: Ways,
    docker_registry: DockerRegistry,
    tmp_path: Path,
    version: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"{docker_registry.host}/pulled/app:1"
    convert = ("image", "convert", "--soci", "--soci-min-layer-size", "0", "--all-platforms")
    here = ("--root", tmp_path / "other")
    two = LayoutMaker(tmp_path / "two")
    manifests = []
    for architecture in ("amd64", "arm64"):
        layers = [gz(layer_tar(seed, 30_000)) for seed in (77, 78 + len(architecture))]
        config = two.config(
            [sha256(gzip.decompress(one)) for one in layers], architecture=architecture
        )
        platform = {"os": "linux", "architecture": architecture}
        manifests.append(
            two.manifest([two.blob(one) for one in layers], config) | {"platform": platform}
        )
    two.tag(two.index(manifests))
    if version == "v2":
        process(*convert, "oci:two", f"docker://{name}", home=tmp_path).good()
    else:
        env = {"CONTAINERD_ADDRESS": "", "CONTAINERD_NAMESPACE": ""}
        load = ("image", "load", "-i", "two", "--name", name)
        process(*here, *load, home=tmp_path, env=env).good()
        push = ("push", "--all-platforms", "--soci-min-layer-size", "0", name)
        process(*here, *push, home=tmp_path, env=env).good()
        (tmp_path / "v1.toml").write_text("[pull_modes.soci_v1]\nenable = true\n")
        monkeypatch.setenv("SOCI_CONFIG", str(tmp_path / "v1.toml"))
    pulled = ways("pull", "-p", "linux/arm64", name).good()
    assert pulled.err == f"linux/arm64: SOCI {version}; 2 layers pulled\n"
    assert ways.listed()[name] == pulled.last
    # All of that platform is there and stays, and nothing of the other.
    ways.server.collect(NAMESPACE)
    shown = json.loads(ways("image", "inspect", "--format", "json", name).good().text)
    facts = {one["platform"]: one for one in shown["manifests"]}
    assert facts["linux/arm64"]["soci"] == version
    assert all(layer["ztoc"]["problem"] == "" for layer in facts["linux/arm64"]["layers"])
    assert facts["linux/amd64"]["problem"] == "not here"
    assert ways("cat", "-p", "linux/arm64", name, "etc/77/4").good().out == noise(4, 400)
    docker_registry.close()
    ways.ctr("images", "export", tmp_path / "out.tar", "--platform", "linux/arm64", name)
    assert not ways.server.leases(NAMESPACE)
    # Without any SOCI: the layers alone.
    ways("rmi", name).good()
    assert name not in ways.listed()


def test_what_is_not_for_containerd_says_so(ways: Ways, tmp_path: Path) -> None:
    save = ways("image", "save", "-o", tmp_path / "out.tar", "both:1")
    save.bad(2, "image save", "containerd", "--address", "CONTAINERD_ADDRESS")
    assert not (tmp_path / "out.tar").exists()
    load = ways("image", "load", "-i", tmp_path / "local", "--name", "loaded:1")
    load.bad(2, "image load", "containerd")
    assert len(ways.listed()) == 2
