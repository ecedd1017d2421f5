"""A registry that hangs or refuses, and a disk that is full."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from soci_cli.kernel import calls
from tests.integration.published import Published
from tests.snapshotter.client import Client
from tests.snapshotter.pulling import labels_of, prepare, pull
from tests.snapshotter.test_conformance import mounted
from tests.snapshotter.world import DATA, KILLED, Daemon
from tests.support.holders import crash
from tests.support.images import blob_json, read_index, soci_entries
from tests.support.servers import DockerRegistry, FaultProxy
from tests.support.servers.actions import Hang, error_reply
from tests.support.servers.fault_proxy import Fault

pytestmark = pytest.mark.usefixtures("need_fuse")

CONFIG = """
[background_fetch]
disable = true
[soci]
reader_deadline_sec = 2
[http]
MaxRetries = 1
"""


@pytest.fixture
def proxy(docker_registry: DockerRegistry) -> Iterator[FaultProxy]:
    with FaultProxy(docker_registry.host) as made:
        yield made


@pytest.fixture
def behind(image: Published, proxy: FaultProxy) -> Published:
    """The image, by way of the proxy."""
    return dataclasses.replace(image, host=proxy.host)


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_registry_that_hangs(behind: Published, proxy: FaultProxy, tmp_path: Path) -> None:
    """The daemon starts, what is here is read, readers get an error in time, and it comes back."""
    with Daemon(tmp_path / "daemon", config=CONFIG) as daemon:
        with Client(daemon.address) as client:
            top = pull(client, behind)[-1]
            with mounted(client.view("view", top, {}), tmp_path / "view") as root:
                assert (root / "data/small").read_bytes() == b"a small layer\n"
        proxy.add(Fault(Hang()))
        daemon.stop(KILLED)
        for pid in daemon.hosts():
            crash(pid)
        daemon.start()
        with (
            Client(daemon.address) as client,
            mounted(client.mounts("view"), tmp_path / "view") as root,
        ):
            assert (root / "data/small").read_bytes() == b"a small layer\n"
            begin = time.monotonic()
            with pytest.raises(OSError) as caught:
                digest_of(root / "data/noise")
            assert caught.value.errno == errno.EIO
            assert time.monotonic() - begin < 20
            proxy.clear()
            assert digest_of(root / "data/noise") == hashlib.sha256(DATA).hexdigest()


def test_a_registry_that_refuses(behind: Published, proxy: FaultProxy, tmp_path: Path) -> None:
    """The layer is left to containerd, nothing of the failure is remembered, and nothing is left."""
    proxy.add(Fault(error_reply(403, "DENIED")))
    with Daemon(tmp_path / "daemon", config=CONFIG) as daemon, Client(daemon.address) as client:
        assert not prepare(client, "refused", "", labels_of(behind, 0))
        assert not list(Path(client.mounts("refused")[0].source).iterdir())
        (line,) = (one for one in daemon.lines() if one.get("defer-snapshot-runtime") == "true")
        assert "403" in line["msg"]
        proxy.clear()
        pull(client, behind)
        client.remove("refused")


def test_a_ztoc_that_cannot_be_had(behind: Published, proxy: FaultProxy, tmp_path: Path) -> None:
    """The layer is fetched whole; the others stay lazy."""
    digest = "sha256:" + hashlib.sha256(_ztoc(behind)).hexdigest()
    proxy.add(Fault(error_reply(404, "BLOB_UNKNOWN"), f"/blobs/{digest}"))
    with Daemon(tmp_path / "daemon", config=CONFIG) as daemon, Client(daemon.address) as client:
        top = pull(client, behind)[-1]
        with mounted(client.view("view", top, {}), tmp_path / "view") as root:
            assert digest_of(root / "data/noise") == hashlib.sha256(DATA).hexdigest()
        assert daemon.logged("failed to prepare remote snapshot") == 1
        lines = [one for one in daemon.lines() if one.get("remote-snapshot-prepared") == "true"]
        assert [bool(one.get("ztoc")) for one in lines] == [False, True, False]


def _ztoc(image: Published) -> bytes:
    """The zTOC of the lowest layer, as the registry has it."""
    index = blob_json(image.root, soci_entries(read_index(image.root))[0])
    annotation = "com.amazon.soci.image-layer-digest"
    (blob,) = (
        one for one in index["layers"] if one["annotations"].get(annotation) == image.layers[0]
    )
    return image.blob(blob["digest"])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB. Who was killed lets go of it a little later, so it is detached at the end."""
    path = tmp_path / "disk"
    path.mkdir()
    calls.mount("tmpfs", "tmpfs", path, 0, "size=2m")
    yield path
    calls.umount2(path, calls.MNT_DETACH)


def test_a_disk_that_is_full(image: Published, disk: Path, tmp_path: Path) -> None:
    """Lazy layers are pulled and read all the same, from memory."""
    with Daemon(disk / "daemon", config=CONFIG) as daemon, Client(daemon.address) as client:
        filler = disk / "filler"
        with suppress(OSError):
            filler.write_bytes(bytes(1_300_000))
        top = pull(client, image)[-1]
        lines = [one for one in daemon.lines() if one.get("remote-snapshot-prepared") == "true"]
        assert [bool(one.get("ztoc")) for one in lines] == [True, True, False]
        free = os.statvfs(disk)
        assert free.f_bavail * free.f_frsize < len(DATA)
        with mounted(client.view("view", top, {}), tmp_path / "view") as root:
            assert digest_of(root / "data/noise") == hashlib.sha256(DATA).hexdigest()
            digest_of(root / "bin/sha256sum")
