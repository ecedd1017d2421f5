"""Layers that are fetched whole: of images without an index, too small ones, and ones that lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.integration.published import Published
from tests.snapshotter.client import Client
from tests.snapshotter.pulling import labels_of, prepare, pull
from tests.snapshotter.test_conformance import content, mounted
from tests.snapshotter.world import KILLED, Daemon
from tests.support.images import LayoutMaker, gz, noise, sha256, tar_of
from tests.support.machine import need_erofs
from tests.support.servers import DockerRegistry
from tests.support.tools import skopeo

pytestmark = pytest.mark.usefixtures("need_fuse")

FALLBACK = "[pull_modes.parallel_pull_unpack]\nexperimental_parallel_pull_as_fallback = true\n"
TARS = [
    tar_of({"a": noise(1, 300_000), "gone": b"x"}),
    tar_of({"b": b"b" * 100, ".wh.gone": b""}),
    tar_of({"c": noise(2, 9_000)}),
]
CONTENT = {"a": noise(1, 300_000), "b": b"b" * 100, "c": noise(2, 9_000)}


def publish(
    folder: Path, registry: DockerRegistry, name: str, diff_ids: Sequence[str] = ()
) -> Published:
    """Puts an image without an index into a registry."""
    maker = LayoutMaker(folder / name)
    blobs = [maker.blob(gz(tar)) for tar in TARS]
    config = maker.config(list(diff_ids) or [sha256(tar) for tar in TARS])
    maker.tag(maker.manifest(blobs, config))
    place = f"docker://{registry.host}/{name}:soci"
    skopeo(f"oci:{maker.root}:latest", place, "--dest-tls-verify=false")
    return Published(registry.host, name, maker.root)


def test_an_image_without_an_index(tmp_path: Path, docker_registry: DockerRegistry) -> None:
    image = publish(tmp_path, docker_registry, "whole")
    with Daemon(tmp_path / "daemon", config=FALLBACK) as daemon, Client(daemon.address) as client:
        top = pull(client, image)[-1]
        with mounted(client.view("view", top, {}), tmp_path / "view") as root:
            assert content(root) == CONTENT
        assert daemon.logged("remote-snapshot-prepared", "true") == 3


def test_what_is_here_needs_no_process(tmp_path: Path, docker_registry: DockerRegistry) -> None:
    """The kernel reads it by itself, whoever is killed."""
    need_erofs()
    image = publish(tmp_path, docker_registry, "unserved")
    with Daemon(tmp_path / "daemon", config=FALLBACK) as daemon:
        with Client(daemon.address) as client:
            top = pull(client, image)[-1]
        daemon.stop(KILLED)
        daemon.wait_for(lambda: not daemon.hosts())
        daemon.start()
        with (
            Client(daemon.address) as client,
            mounted(client.view("view", top, {}), tmp_path / "view") as root,
        ):
            assert content(root) == CONTENT
        assert not daemon.hosts()
        assert daemon.logged("layer mounted again") == 0
        with Client(daemon.address) as client:
            chain = [client.stat(top)]
            client.remove("view")
            while chain[-1].parent:
                chain.append(client.stat(chain[-1].parent))
            for one in chain:
                client.remove(one.name)
            client.cleanup()
        assert not daemon.mounted()
        assert not list((daemon.root / "mounts/mounts").glob("[0-9a-f]*"))
        assert {path.name for path in (daemon.root / "cache").rglob("*")} <= {"usage"}


def test_it_is_left_to_containerd_where_that_is_not_asked_for(
    tmp_path: Path, docker_registry: DockerRegistry
) -> None:
    image = publish(tmp_path, docker_registry, "left")
    with Daemon(tmp_path / "daemon") as daemon, Client(daemon.address) as client:
        assert not prepare(client, "key", "", labels_of(image, 0))
        assert client.mounts("key")[0].type == "bind"
        assert not daemon.mounted()


def test_a_config_that_lies(tmp_path: Path, docker_registry: DockerRegistry) -> None:
    """A layer that has not its diff ID would be in place of another, for all images that have that."""
    honest = publish(tmp_path, docker_registry, "honest")
    victims = [sha256(b"what another image has"), *(sha256(tar) for tar in TARS[1:])]
    forged = publish(tmp_path, docker_registry, "forged", victims)
    with Daemon(tmp_path / "daemon", config=FALLBACK) as daemon, Client(daemon.address) as client:
        for number in range(2):  # also when the layer is here already
            assert not prepare(client, f"key-{number}", "", labels_of(forged, 0))
            if not number:
                pull(client, honest)
        assert daemon.logged("failed to prepare remote snapshot") == 2
        assert not list(client.walk([f"name=={victims[0]}"]))


def test_small_layers_and_those_without_a_ztoc(image: Published, tmp_path: Path) -> None:
    """Those above stay lazy."""
    config = "[snapshotter]\nmin_layer_size = 800000\n"
    with Daemon(tmp_path / "daemon", config=config) as daemon, Client(daemon.address) as client:
        pull(client, image)
        lazy = [
            bool(line.get("ztoc"))
            for line in daemon.lines()
            if line.get("remote-snapshot-prepared") == "true"
        ]
        assert lazy == [True, False, False]


def test_all_layers(image: Published, tmp_path: Path) -> None:
    config = "[pull_modes.parallel_pull_unpack]\nenable = true\n"
    with Daemon(tmp_path / "daemon", config=config) as daemon, Client(daemon.address) as client:
        pull(client, image)
        assert not any(line.get("ztoc") for line in daemon.lines())
        assert len(daemon.mounted()) == 3


def test_indexes_of_repositories_that_are_not_trusted(image: Published, tmp_path: Path) -> None:
    """Such an image is as one without an index."""
    config = f"""{FALLBACK}[soci]
verify = "trusted-indexes"
trusted = ["registry.example/*", "{image.host}/other"]
"""
    with Daemon(tmp_path / "daemon", config=config) as daemon, Client(daemon.address) as client:
        pull(client, image)
        assert not any(line.get("ztoc") for line in daemon.lines())
        assert daemon.logged("its repository is none of [soci] trusted") == 1
    trusting = config.replace("/other", "/r*")
    with Daemon(tmp_path / "other", config=trusting) as daemon, Client(daemon.address) as client:
        pull(client, image)
        assert sum(bool(line.get("ztoc")) for line in daemon.lines()) == 2
