"""Converting images in registries: which bytes travel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests

from tests.commands.registries.machine import (
    CONVERT,
    Server,
    check_complete_remote,
    copy,
    layers_of,
    multi_platform,
    store_blobs,
)
from tests.support.commands import Soci
from tests.support.images import (
    LayoutMaker,
    blob_json,
    check_complete,
    gz,
    layer_tar,
    make_zstd_image,
    read_index,
    sha256,
)
from tests.support.servers.docker_registry import DockerRegistry


def test_convert_in_a_repository_uploads_no_layer(
    soci: Soci, server: Server, app: str, image: Path
) -> None:
    done = soci(*CONVERT, f"docker://{app}", f"docker://{app}-soci").good()
    layers = layers_of(image)
    assert not [path for path in server.seen("PUT", "uploads") if any(d in path for d in layers)]
    assert server.tags("team/app") == ["1", "1-soci"]
    for layer in layers:
        assert len(server.seen("GET", f"/blobs/{layer}")) == 1, "a layer is read once"
    facts = json.loads(soci("image", "inspect", "--format", "json", f"docker://{app}-soci").text)
    assert facts["digest"] == done.last
    assert facts["soci"] == "v2"
    # The same bytes as from disk to disk.
    where = soci.store.parent
    assert soci(*CONVERT, f"oci:{image}", f"oci:{where}/local").good().last == done.last
    assert not soci.store.exists() or not store_blobs(soci)


def test_convert_again_changes_nothing_and_reads_no_layer(
    soci: Soci, server: Server, app: str, image: Path
) -> None:
    first = soci(*CONVERT, f"docker://{app}", f"docker://{app}-soci").good()
    server.forget()
    again = soci(*CONVERT, f"docker://{app}", f"docker://{app}-soci").good()
    assert again.last == first.last
    assert "nothing changed" in again.err
    assert not server.seen("PUT", ".")
    assert not any(server.seen("GET", f"/blobs/{layer}") for layer in layers_of(image))


def test_convert_to_another_repository_mounts(
    soci: Soci, server: Server, app: str, image: Path
) -> None:
    target = f"docker://{server.host}/other/app:soci"
    done = soci(*CONVERT, f"docker://{app}", target).good()
    mounted = server.seen("POST", "mount=")
    for layer in layers_of(image):
        assert any(layer.partition(":")[2] in path for path in mounted)
        assert not [path for path in server.seen("PUT", "uploads") if layer[7:] in path]
    assert done.last in check_complete_remote(soci, target)


def test_convert_to_another_registry_is_one_stream(
    soci: Soci, server: Server, app: str, image: Path, docker_registry: DockerRegistry
) -> None:
    target = f"docker://{docker_registry.host}/converted/app:soci"
    done = soci(*CONVERT, f"docker://{app}", target).good()
    for layer in layers_of(image):
        assert len(server.seen("GET", f"/blobs/{layer}")) == 1
    assert done.last in check_complete_remote(soci, target)
    # And back, where the layers are already: nothing but the tag and what the index holds moves.
    server.forget()
    back = soci(*CONVERT, target, f"docker://{app}-back").good()
    assert back.last == done.last
    layers = [digest[7:] for digest in layers_of(image)]
    assert not [p for p in server.seen("PUT", "uploads") if any(layer in p for layer in layers)]


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "store"])
def test_convert_between_a_registry_and_every_other_place(
    soci: Soci, server: Server, app: str, tmp_path: Path, kind: str
) -> None:
    place = {
        "oci": f"oci:{tmp_path}/there:2",
        "oci-archive": f"oci-archive:{tmp_path}/there.tar:2",
        "store": "there:2",
    }[kind]
    out = soci(*CONVERT, f"docker://{app}", place).good()
    assert out.last in check_complete(place, store=soci.store)
    back = soci(*CONVERT, place, f"docker://{server.host}/back:2").good()
    assert back.last == out.last
    assert check_complete_remote(soci, f"docker://{server.host}/back:2").keys() == (
        check_complete(place, store=soci.store).keys()
    )


def test_a_layout_without_a_tag_is_named_as_in_the_registry(
    soci: Soci, app: str, tmp_path: Path
) -> None:
    soci(*CONVERT, f"docker://{app}", f"oci:{tmp_path}/named").good()
    index = json.loads((tmp_path / "named" / "index.json").read_text())
    names = index["manifests"][0]["annotations"]
    assert names["org.opencontainers.image.ref.name"] == "1"
    assert names["io.containerd.image.name"] == app
    loaded = soci("image", "load", "-i", f"{tmp_path}/named").good()
    assert loaded.text == f"Loaded image: {app}\n"


def test_zstd_layers_are_recompressed_between_registries(
    soci: Soci, server: Server, tmp_path: Path
) -> None:
    name = f"{server.host}/zstd:1"
    copy(soci, make_zstd_image(tmp_path / "zstd").root, name)
    flags = ("--zstd-layers", "recompress")
    done = soci(*CONVERT, *flags, f"docker://{name}", f"docker://{name}-soci").good()
    assert done.last in check_complete_remote(soci, f"docker://{name}-soci")
    again = soci(*CONVERT, *flags, f"docker://{name}", f"docker://{name}-soci").good()
    assert again.last == done.last


def test_a_broken_layer_moves_no_tag(soci: Soci, server: Server, tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "broken")
    layer = maker.blob(gz(layer_tar(1))[:-300])
    maker.tag(maker.manifest([layer], maker.config([sha256(b"")])))
    name = f"{server.host}/broken:1"
    copy(soci, maker.root, name)
    failed = soci(*CONVERT, f"docker://{name}", f"docker://{name}-soci")
    failed.bad(1, layer["digest"], "gzip stream is cut off")
    assert server.tags("broken") == ["1"]
    assert not list((tmp_path / "registry").glob(".ingest-*"))


def test_what_is_not_there(soci: Soci, server: Server, app: str, tmp_path: Path) -> None:
    nowhere = f"docker://{server.host}/none:1"
    soci(*CONVERT, nowhere, f"oci:{tmp_path}/d").bad(1, f"{server.host}/v2/none/manifests/1", "404")
    assert not (tmp_path / "d").exists()
    soci("image", "inspect", nowhere).bad(1, "404")
    soci("pull", nowhere).bad(1, "404")
    soci("pull", f"{app}@sha256:{'0' * 64}").bad(1, "404")
    soci("push", "127.0.0.1:1/nothing").bad(1, "not in the local store")
    soci("image", "inspect", "docker://127.0.0.1:1/x").bad(1, "127.0.0.1:1", "refused")


def test_a_platform_whose_manifest_is_not_here(soci: Soci, server: Server, tmp_path: Path) -> None:
    image = multi_platform(tmp_path)
    _, s390x, _ = read_index(image)["manifests"]
    (image / "blobs" / "sha256" / s390x["digest"][7:]).unlink()
    target = f"docker://{server.host}/team/part:1"
    server.forget()
    flags = ("-p", "linux/amd64", f"oci:{image}", target)
    soci(*CONVERT, *flags).bad(1, "linux/s390x", "--only-platforms")
    assert not [line for line in server.log if line[0] in ("POST", "PUT", "PATCH")]
    done = soci(*CONVERT, "--only-platforms", *flags).good()
    index = json.loads(check_complete_remote(soci, target)[done.last])
    assert [entry["platform"]["architecture"] for entry in index["manifests"]] == [
        "amd64",
        "unknown",  # its attestation
        "amd64",  # its SOCI index
    ]


def test_a_platform_whose_layer_is_gone(soci: Soci, server: Server, tmp_path: Path) -> None:
    """Within its repository nothing of it is sent; elsewhere a line says whose layer it is."""
    image = multi_platform(tmp_path)
    place = f"docker://{server.host}/team/multi:1"
    soci("image", "load", "-i", image, "--name", place.removeprefix("docker://")).good()
    soci("push", "--snapshotter", "overlayfs", "--all-platforms", place).good()
    s390x = blob_json(image, read_index(image)["manifests"][1])
    gone = s390x["layers"][0]["digest"]
    requests.delete(f"http://{server.host}/v2/team/multi/blobs/{gone}", timeout=10)
    soci(*CONVERT, "-p", "linux/amd64", place, f"{place}-soci").good()
    (entry,) = [
        one
        for one in json.loads(soci("image", "inspect", "--format", "json", f"{place}-soci").text)[
            "manifests"
        ]
        if one["platform"] == "linux/s390x"
    ]
    assert entry["digest"] == read_index(image)["manifests"][1]["digest"]
    elsewhere = f"oci:{tmp_path}/out:1"
    hint = ("linux/s390x", gone)
    soci(*CONVERT, "-p", "linux/amd64", place, elsewhere).bad(1, *hint, "--only-platforms")
    soci(*CONVERT, "--all-platforms", place, elsewhere).bad(1, *hint)
    soci(*CONVERT, "-p", "linux/amd64", "--only-platforms", place, elsewhere).good()
