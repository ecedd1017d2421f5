"""The daemon under containerd 2.4: pulls, containers, removals, restarts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.published import Published, publish
from tests.snapshotter.world import KILLED, PLUGIN, TRANSFER, UNPACK, Daemon, programs_tar
from tests.support.images import LayoutMaker, gz, noise, sha256, tar_of
from tests.support.servers import DockerRegistry, FaultProxy
from tests.support.servers.containerd import NEWER, ContainerdServer
from tests.support.servers.fixtures import need_containerd
from tests.support.tools import skopeo

TOOLS = ("sh", "cat", "ls", "mv", "rm", "mkdir", "sha256sum", "sleep")
DATA = noise(3, 700_000)
SOCI = ("--snapshotter", "soci")
RUN = ("run", "--rm", "--snapshotter", "soci")
PULL = ("images", "pull", "--snapshotter", "soci", "--plain-http")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, docker_registry: DockerRegistry) -> Published:
    """An image with programs, of three layers; the last is too small for a zTOC."""
    folder = tmp_path_factory.mktemp("runs")
    maker = LayoutMaker(folder / "layout")
    tars = [
        programs_tar(TOOLS, {"etc/gone": b"x"}),
        tar_of({"data/noise": DATA, "etc/.wh.gone": b"", "data/old": b"old"}),
        tar_of({"data/small": b"a small layer\n", "data/.wh.old": b""}),
    ]
    blobs = [maker.blob(gz(tar)) for tar in tars]
    maker.tag(maker.manifest(blobs, maker.config([sha256(tar) for tar in tars])))
    return publish(folder, docker_registry.host, "runs", maker.root, 10 << 10)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, docker_registry: DockerRegistry) -> str:
    """The name of an image without an index."""
    maker = LayoutMaker(tmp_path_factory.mktemp("other") / "layout")
    tars = [programs_tar(("cat",)), tar_of({"data/file": b"plain\n"})]
    blobs = [maker.blob(gz(tar)) for tar in tars]
    maker.tag(maker.manifest(blobs, maker.config([sha256(tar) for tar in tars])))
    name = f"{docker_registry.host}/without:1"
    skopeo(f"oci:{maker.root}:latest", f"docker://{name}", "--dest-tls-verify=false")
    return name


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, need_fuse: None) -> Iterator[Daemon]:
    config = "[background_fetch]\ndisable = true\n"
    with Daemon(tmp_path_factory.mktemp("daemon"), config=config) as made:
        yield made


@pytest.fixture(scope="module")
def containerd(
    tmp_path_factory: pytest.TempPathFactory, daemon: Daemon
) -> Iterator[ContainerdServer]:
    """containerd 2.4 with the daemon as a proxy plugin."""
    programs = need_containerd(NEWER)
    more = PLUGIN.format(address=daemon.address) + TRANSFER + UNPACK
    with ContainerdServer(tmp_path_factory.mktemp("containerd"), programs, more) as server:
        daemon.stop()
        daemon.containerd = server.address
        daemon.start()
        yield server


@pytest.fixture
def proxy(docker_registry: DockerRegistry) -> Iterator[FaultProxy]:
    with FaultProxy(docker_registry.host) as made:
        yield made


@pytest.fixture(autouse=True)
def clean(daemon: Daemon, containerd: ContainerdServer) -> Iterator[None]:
    """Nothing is left of any image when it is removed: no mount, file, process or row."""
    yield
    for line in containerd.ctr("containers", "ls", "--quiet").split():
        subprocess.run([*containerd.command, "tasks", "kill", "-s", "9", line], capture_output=True)
        subprocess.run([*containerd.command, "tasks", "rm", "-f", line], capture_output=True)
        containerd.ctr("containers", "rm", line)
    for name in containerd.ctr("images", "ls", "--quiet").split():
        containerd.ctr("images", "rm", "--sync", name)
    containerd.collect()
    assert not daemon.mounted()
    assert not list((daemon.root / "snapshotter/snapshots").iterdir())
    daemon.wait_for(lambda: not list((daemon.root / "mounts/mounts").glob("[0-9a-f]*")))
    left = {path.name for path in (daemon.root / "cache").rglob("*")}
    assert left <= {"usage"}


def name_of(image: Published, host: str = "") -> str:
    return f"{host or image.host}/{image.repository}:soci"


def test_pull_and_run(image: Published, daemon: Daemon, containerd: ContainerdServer) -> None:
    name = name_of(image)
    before = daemon.logged("remote-snapshot-prepared", "true")
    containerd.ctr(*PULL, name)
    assert daemon.logged("remote-snapshot-prepared", "true") - before == 3
    kinds = subprocess.run(["mount"], capture_output=True, text=True).stdout
    assert kinds.count("type erofs") == 3 or kinds.count("type fuse.rawBridge") == 3
    blobs = containerd.blobs()
    assert not blobs & set(image.layers)
    script = (
        "sha256sum /data/noise; cat /data/small; ls /data /etc; echo new > /data/new; cat /data/new; "
        "mv /data/noise /tmp/moved; rm /data/small; mkdir /data/d; ls /data; sha256sum /tmp/moved"
    )
    digest = sha256(DATA)[7:]
    out = containerd.ctr(*RUN, name, "box", "/bin/sh", "-c", script)
    assert out == (
        f"{digest}  /data/noise\na small layer\n/data:\nnoise\nsmall\n\n/etc:\nnew\nd\nnew\n"
        f"{digest}  /tmp/moved\n"
    )
    # What is here of a layer counts as its own.
    sizes = [
        line.split() for line in containerd.ctr("snapshots", *SOCI, "usage", "-b").splitlines()
    ]
    assert sum(int(size) > 0 for _, size, _ in sizes[1:]) == 3
    # What a container changes is its own.
    assert containerd.ctr(*RUN, name, "box", "/bin/cat", "/data/small") == "a small layer\n"


def test_lazy_without_labels(image: Published, other: str, tmp_path: Path, need_fuse: None) -> None:
    """As nerdctl's page configures containerd: no label says which image a layer is of."""
    programs = need_containerd(NEWER)
    with (
        Daemon(tmp_path / "daemon") as own,
        ContainerdServer(
            tmp_path / "containerd", programs, PLUGIN.format(address=own.address) + UNPACK
        ) as server,
    ):
        own.stop()
        own.containerd = server.address
        own.start()
        name = name_of(image)
        # Without an image that says it, containerd has not kept the registry's port.
        server.ctr(*PULL, name)
        assert not own.mounted()
        assert own.logged("remote-snapshot-prepared", "true") == 0
        assert server.ctr(*RUN, name, "box", "/bin/cat", "/data/small") == "a small layer\n"
        server.ctr("images", "rm", "--sync", name)
        server.ctr("images", "pull", "--plain-http", other)
        server.ctr(*PULL, name)
        assert len(own.mounted()) == 3
        assert not server.blobs() & set(image.layers)
        assert server.ctr(*RUN, name, "box", "/bin/cat", "/data/small") == "a small layer\n"
        for one in (name, other):
            server.ctr("images", "rm", "--sync", one)


def test_an_image_without_an_index(
    other: str, daemon: Daemon, containerd: ContainerdServer
) -> None:
    """It is containerd's, and one line says so."""
    message = "no valid SOCI index found; deferring to container runtime"
    before = daemon.logged(message)
    containerd.ctr(*PULL, other)
    assert daemon.logged(message) > before
    assert not daemon.mounted()
    assert containerd.ctr(*RUN, other, "box", "/bin/cat", "/data/file") == "plain\n"


def test_containers_do_not_notice_a_restart(
    image: Published, daemon: Daemon, containerd: ContainerdServer, proxy: FaultProxy
) -> None:
    """KILLED or ended, the daemon leaves layers to their servers, and starts without a registry."""
    name = name_of(image, proxy.host)
    containerd.ctr(*PULL, name)
    containerd.ctr("run", "-d", "--snapshotter", "soci", name, "box", "/bin/sleep", "1000")
    inside = ("tasks", "exec", "--exec-id", "e", "box")
    assert containerd.ctr(*inside, "/bin/cat", "/data/small") == "a small layer\n"
    hosts, mounts = daemon.hosts(), daemon.mounted()
    daemon.stop(KILLED)
    out = containerd.ctr(*inside, "/bin/sha256sum", "/data/noise")
    assert out.split()[0] == sha256(DATA)[7:]
    daemon.start()
    assert daemon.stop() == 0
    proxy.close()
    daemon.start()
    assert (daemon.hosts(), daemon.mounted()) == (hosts, mounts)
    assert containerd.ctr(*inside, "/bin/cat", "/data/small") == "a small layer\n"
    # What is here starts without the registry.
    out = containerd.ctr(*RUN, name, "other", "/bin/cat", "/data/small")
    assert out == "a small layer\n"


def test_a_layer_whose_server_died_is_mounted_again(
    image: Published, daemon: Daemon, containerd: ContainerdServer
) -> None:
    """At the next start of a container, and at the next start of the daemon."""
    name = name_of(image)
    containerd.ctr(*PULL, name)
    for with_restart in (False, True):
        if with_restart:
            daemon.stop(KILLED)
        for pid in daemon.hosts():
            os.kill(pid, KILLED)
        daemon.wait_for(lambda: not daemon.hosts())
        if with_restart:
            daemon.start()
            daemon.wait_for(lambda: len(daemon.mounted()) == 3 and len(daemon.hosts()) == 1)
        out = containerd.ctr(*RUN, name, "box", "/bin/cat", "/data/small")
        assert out == "a small layer\n"
        assert len(daemon.mounted()) == 3


def test_many_at_once(image: Published, daemon: Daemon, containerd: ContainerdServer) -> None:
    """Two pulls of one image in two namespaces, and twenty containers."""
    name = name_of(image)
    with ThreadPoolExecutor(4) as pool:
        pulls = [
            pool.submit(containerd.ctr, *PULL, name, namespace=namespace)
            for namespace in ("default", "other")
        ]
        for one in pulls:
            one.result()
        assert len(daemon.mounted()) == 3
        runs = [
            pool.submit(containerd.ctr, *RUN, name, f"box-{number}", "/bin/cat", "/data/small")
            for number in range(20)
        ]
        assert [one.result() for one in runs] == ["a small layer\n"] * 20
    containerd.ctr("images", "rm", "--sync", name, namespace="other")
    assert len(daemon.mounted()) == 3
