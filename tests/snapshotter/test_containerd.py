"""The daemon under real containerds: pulls, containers, removals, restarts."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.published import Published
from tests.snapshotter.world import (
    DATA,
    KILLED,
    PLUGIN,
    PULL,
    RUN,
    SOCI,
    TRANSFER,
    UNPACK,
    Daemon,
    Pull,
    name_of,
)
from tests.support.commands import process
from tests.support.holders import crash
from tests.support.images import sha256
from tests.support.servers import DockerRegistry, FaultProxy
from tests.support.servers.containerd import NEWER, VERSIONS, ContainerdServer
from tests.support.servers.fixtures import need_containerd


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    version: str = request.param
    return version


@pytest.fixture(scope="module")
def daemon(
    tmp_path_factory: pytest.TempPathFactory, version: str, need_fuse: None
) -> Iterator[Daemon]:
    config = "[background_fetch]\ndisable = true\n"
    short = Path(tempfile.mkdtemp(prefix="ctrd-"))
    folder = tmp_path_factory.mktemp("daemon")
    with Daemon(folder, str(short / "s"), config) as made:
        yield made


@pytest.fixture(scope="module")
def containerd(
    tmp_path_factory: pytest.TempPathFactory, daemon: Daemon, version: str
) -> Iterator[ContainerdServer]:
    """containerd, in each version, with the daemon as a proxy plugin."""
    programs = need_containerd(version)
    more = PLUGIN.format(address=daemon.address)
    if version == NEWER:
        more += TRANSFER + UNPACK
    folder, short = tmp_path_factory.mktemp("containerd"), Path(daemon.containerd).parent
    with ContainerdServer(folder, programs, more, short) as server:
        yield server


@pytest.fixture(scope="module")
def pull(
    containerd: ContainerdServer, version: str, tmp_path_factory: pytest.TempPathFactory
) -> Pull:
    """Pulls an image lazily: by ctr where that can do it, else by soci."""
    home = tmp_path_factory.mktemp("home")

    def pull(name: str, namespace: str = "default") -> None:
        if version == NEWER:
            containerd.ctr(*PULL, name, namespace=namespace)
        else:
            where = ("--address", containerd.address, "--namespace", namespace)
            process(*where, "pull", *SOCI, name, home=home).good()

    return pull


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


def reconnect(daemon: Daemon, containerd: ContainerdServer) -> None:
    """Waits until containerd has found the daemon again, which it looks for after a pause."""
    command = [*containerd.command, "snapshots", *SOCI, "ls"]
    daemon.wait_for(lambda: not subprocess.run(command, capture_output=True).returncode)


def test_pull_and_run(
    image: Published, daemon: Daemon, containerd: ContainerdServer, pull: Pull
) -> None:
    name = name_of(image)
    before = daemon.logged("remote-snapshot-prepared", "true")
    pull(name)
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


def test_an_image_without_an_index(
    other: str, daemon: Daemon, containerd: ContainerdServer, version: str
) -> None:
    """It is containerd's, and one line says so."""
    if version != NEWER:
        containerd.ctr(*PULL, other)
        assert not daemon.mounted()
        assert containerd.ctr(*RUN, other, "box", "/bin/cat", "/data/file") == "plain\n"
        return
    message = "no valid SOCI index found; deferring to container runtime"
    before = daemon.logged(message)
    containerd.ctr(*PULL, other)
    assert daemon.logged(message) > before
    assert not daemon.mounted()
    assert containerd.ctr(*RUN, other, "box", "/bin/cat", "/data/file") == "plain\n"


def test_containers_do_not_notice_a_restart(
    image: Published, daemon: Daemon, containerd: ContainerdServer, pull: Pull, proxy: FaultProxy
) -> None:
    """KILLED or ended, the daemon leaves layers to their servers, and starts without a registry."""
    name = name_of(image, proxy.host)
    pull(name)
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
    reconnect(daemon, containerd)
    # What is here starts without the registry.
    out = containerd.ctr(*RUN, name, "other", "/bin/cat", "/data/small")
    assert out == "a small layer\n"


def test_containers_do_not_notice_that_a_server_of_layers_is_killed(
    image: Published, daemon: Daemon, containerd: ContainerdServer, pull: Pull
) -> None:
    """A successor takes over, with the daemon or without it."""
    name = name_of(image)
    pull(name)
    containerd.ctr("run", "-d", *SOCI, name, "box", "/bin/sleep", "1000")
    inside = ("tasks", "exec", "--exec-id", "e", "box")
    digest, mounts = sha256(DATA)[7:], daemon.mounted()
    for with_daemon in (False, True):
        (host,) = daemon.hosts()
        if with_daemon:
            daemon.stop(KILLED)
        os.kill(host, KILLED)
        out = containerd.ctr(*inside, "/bin/sha256sum", "/data/noise")
        assert out.split()[0] == digest
        daemon.wait_for(lambda: daemon.hosts() not in ([], [host]))  # noqa: B023
    daemon.start()
    reconnect(daemon, containerd)
    assert daemon.mounted() == mounts
    assert containerd.ctr(*inside, "/bin/cat", "/data/small") == "a small layer\n"
    assert containerd.ctr(*RUN, name, "other", "/bin/ls", "/data") == "noise\nsmall\n"


def test_a_layer_whose_server_died_is_mounted_again(
    image: Published, daemon: Daemon, containerd: ContainerdServer, pull: Pull
) -> None:
    """Where nobody is left to take over: at the next start of a container, and of the daemon."""
    name = name_of(image)
    pull(name)
    for with_restart in (False, True):
        if with_restart:
            daemon.stop(KILLED)
        for pid in daemon.hosts():
            crash(pid)
        daemon.wait_for(lambda: not daemon.hosts())
        if with_restart:
            daemon.start()
            reconnect(daemon, containerd)
            daemon.wait_for(lambda: len(daemon.mounted()) == 3 and len(daemon.hosts()) == 1)
        out = containerd.ctr(*RUN, name, "box", "/bin/cat", "/data/small")
        assert out == "a small layer\n"
        assert len(daemon.mounted()) == 3


def test_many_at_once(
    image: Published, daemon: Daemon, containerd: ContainerdServer, pull: Pull
) -> None:
    """Two pulls of one image in two namespaces, and twenty containers."""
    name = name_of(image)
    with ThreadPoolExecutor(4) as pool:
        pulls = [pool.submit(pull, name, namespace) for namespace in ("default", "other")]
        for one in pulls:
            one.result()
        assert len(daemon.mounted()) == 3
        # By its exit status: ctr loses the output of a container now and then on a busy machine.
        script = "[ \"$(cat /data/small)\" = 'a small layer' ]"
        runs = [
            pool.submit(containerd.ctr, *RUN, name, f"box-{number}", "/bin/sh", "-c", script)
            for number in range(20)
        ]
        for run in runs:
            run.result()
    containerd.ctr("images", "rm", "--sync", name, namespace="other")
    assert len(daemon.mounted()) == 3
