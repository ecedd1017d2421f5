"""Copying images with their indexes, and bringing back what clean-ups take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests

from tests.commands.registries.machine import (
    CONVERT,
    PUSH,
    Server,
    check_complete_remote,
    converted,
    multi_platform,
)
from tests.commands.registries.test_refusals import without_its_index
from tests.support.commands import Soci
from tests.support.images import Json, LayoutMaker, gz, read_index, tar_of
from tests.support.servers.docker_registry import DockerRegistry


def facts(soci: Soci, place: str) -> Json:
    found: Json = json.loads(soci("image", "inspect", "--format", "json", place).good().text)
    return found


@pytest.fixture
def with_v1(soci: Soci, app: str) -> str:
    """An image of the registry with an index v1."""
    soci("pull", app).good()
    soci(*PUSH, app).good()
    soci("rmi", app).good()
    return f"docker://{app}"


def test_an_index_v1_goes_along_everywhere(
    soci: Soci, with_v1: str, tmp_path: Path, docker_registry: DockerRegistry
) -> None:
    before = facts(soci, with_v1)
    assert before["soci"] == "v1"
    places = [
        f"oci:{tmp_path}/layout",
        f"oci-archive:{tmp_path}/archive.tar",
        "copied:1",
        f"docker://{docker_registry.host}/copied/v1:1",
        f"oci:{tmp_path}/last:tag",
    ]
    for source, target in zip([with_v1, *places], places, strict=False):
        done = soci("image", "copy", source, target).good()
        assert done.last == before["digest"]
        after = facts(soci, target)
        assert (after["soci"], after["manifests"]) == ("v1", before["manifests"]), target
    # Again: nothing changes, and a layout without a tag still holds one image.
    soci("image", "copy", with_v1, places[0]).good()
    entries = json.loads((tmp_path / "layout/index.json").read_bytes())["manifests"]
    assert len(entries) == 2
    assert soci("image", "load", "-i", tmp_path / "layout").good().text.count("Loaded") == 1


def test_an_index_v2_goes_along(soci: Soci, server: Server, app: str, tmp_path: Path) -> None:
    """In the image or beside it."""
    name = converted(soci, app)
    done = soci("image", "copy", f"docker://{name}", f"oci:{tmp_path}/whole").good()
    assert done.last == facts(soci, f"oci:{tmp_path}/whole")["digest"]
    assert facts(soci, f"oci:{tmp_path}/whole")["soci"] == "v2"
    alone = without_its_index(server, name, "team/app")
    soci("image", "copy", f"docker://{alone}", f"docker://{server.host}/other/app:1").good()
    assert facts(soci, f"docker://{server.host}/other/app:1")["soci"] == "v2"
    lost = without_its_index(server, name, "elsewhere")
    done = soci("image", "copy", f"docker://{lost}", f"oci:{tmp_path}/lost").good()
    assert "SOCI index" in done.err and "is missing" in done.err


def test_all_platforms_or_none(soci: Soci, server: Server, tmp_path: Path) -> None:
    image = multi_platform(tmp_path)
    target = f"docker://{server.host}/multi:1"
    done = soci("image", "copy", f"oci:{image}", target).good()
    assert len(check_complete_remote(soci, target)) > 6
    _, s390x, _ = read_index(image)["manifests"]
    (image / "blobs/sha256" / s390x["digest"][7:]).unlink()
    fresh = f"docker://{server.host}/part:1"
    soci("image", "copy", f"oci:{image}", fresh).bad(1, "linux/s390x")
    assert not server.seen("POST", "/part/")
    assert soci("image", "copy", f"oci:{image}", f"oci:{tmp_path}/part").good().last == done.last
    # What the target has already need not be in the source.
    assert soci("image", "copy", f"oci:{image}", target).good().last == done.last


def forget(server: Server, name: str, *, keep: int | None = None) -> None:
    """Deletes the manifests of an image that have no tag, as clean-ups do; `keep` stays."""
    repository, tag = name.removeprefix(f"{server.host}/").split(":")
    url = f"http://{server.host}/v2/{repository}/manifests"
    for number, entry in enumerate(requests.get(f"{url}/{tag}", timeout=10).json()["manifests"]):
        if number != keep:
            requests.delete(f"{url}/{entry['digest']}", timeout=10).raise_for_status()


def test_what_the_store_has_is_brought_back(soci: Soci, server: Server, app: str) -> None:
    name = converted(soci, app)
    before = facts(soci, f"docker://{name}")
    soci("pull", name).good()
    forget(server, name)
    soci("image", "inspect", f"docker://{name}").bad(1, "clean-up")
    done = soci("index", "repair", f"docker://{name}").good()
    assert "2 manifests brought back, 0 made again" in done.err
    assert facts(soci, f"docker://{name}")["manifests"] == before["manifests"]
    assert "nothing is missing" in soci("index", "repair", f"docker://{name}").good().err


def test_an_index_is_made_again(soci: Soci, server: Server, app: str) -> None:
    flags = ("--soci-span-size", "65536")
    soci(*CONVERT, *flags, f"docker://{app}", f"docker://{app}-soci").good()
    name = f"{app}-soci"
    before = facts(soci, f"docker://{name}")
    forget(server, name, keep=0)
    repair = ("index", "repair", "--min-layer-size", "0")
    soci(*repair, f"docker://{name}").bad(1, "cannot be had again", "span size")
    done = soci(*repair, "--span-size", "65536", f"docker://{name}").good()
    assert "0 manifests brought back, 1 made again" in done.err
    assert done.last == before["digest"]
    assert facts(soci, f"docker://{name}")["manifests"] == before["manifests"]


def test_tags_keep_manifests(soci: Soci, server: Server, app: str) -> None:
    plain = converted(soci, app)
    assert not [tag for tag in server.tags("team/app") if tag.endswith(".soci")]
    again = soci(*CONVERT, "--tag-manifests", f"docker://{app}", f"docker://{app}-kept").good()
    tags = [tag for tag in server.tags("team/app") if tag.endswith(".soci")]
    index = requests.get(f"http://{server.host}/v2/team/app/manifests/1-kept", timeout=10).json()
    assert sorted(tags) == sorted(
        f"{entry['digest'].replace(':', '-')}.soci" for entry in index["manifests"]
    )
    assert again.last == facts(soci, f"docker://{plain}")["digest"]
    # An image that is there already gets them when it is converted again, and by repair.
    for name in ("second", "third"):
        soci(*CONVERT, f"docker://{app}", f"docker://{server.host}/{name}:1").good()
    soci(*CONVERT, "--tag-manifests", f"docker://{app}", f"docker://{server.host}/second:1").good()
    soci("index", "repair", "--tag-manifests", f"docker://{server.host}/third:1").good()
    assert len(server.tags("second")) == len(server.tags("third")) == 3


def test_nested_indexes_travel_whole(soci: Soci, server: Server, tmp_path: Path) -> None:
    """Pushed and pulled as they are; one platform alone, too."""
    maker = LayoutMaker(tmp_path / "nested")
    entries = []
    for architecture in ("amd64", "s390x"):
        platform = {"os": "linux", "architecture": architecture}
        layer = maker.blob(gz(tar_of({"name": architecture.encode()})))
        manifest = maker.manifest([layer], maker.config(architecture=architecture))
        entries.append({**maker.index([manifest]), "platform": platform})
    root = maker.index(entries)
    maker.tag(root)
    name = f"{server.host}/nested:1"
    soci("image", "load", "-i", maker.root, "--name", name).good()
    assert soci("push", "--soci-min-layer-size", "0", name).good().last == root["digest"]
    soci("rmi", name).good()
    assert soci("pull", "-p", "linux/s390x", name).good().last == root["digest"]
    assert soci("cat", "-p", "linux/s390x", name, "/name").good().out == b"s390x"
    soci("cat", "-p", "linux/amd64", name, "/name").bad(1, "linux/amd64")
    soci("pull", "--all-platforms", name).good()
    for architecture in ("amd64", "s390x"):
        done = soci("cat", "-p", f"linux/{architecture}", name, "/name").good()
        assert done.out.decode() == architecture
    found = facts(soci, name)["manifests"]
    assert [one["platform"] for one in found] == ["linux/amd64", "linux/s390x"]
    one = soci("push", "-p", "linux/amd64", "--snapshotter", "overlayfs", name).good()
    assert one.last != root["digest"]
