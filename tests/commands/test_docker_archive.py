"""Archives for `docker load` and of `docker save`, and skopeo's folders."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from soci_cli.errors import InvalidDataError, NotFoundError, SociError, UsageError
from soci_cli.oci.media_types import OCI_LAYER, OCI_LAYER_GZIP
from soci_cli.targets import copy_graph, open_source, open_target, parse_place, read_blob
from tests.support.commands import Soci
from tests.support.images import (
    LayoutMaker,
    blob_json,
    check_complete,
    gz,
    layer_tar,
    make_image,
    noise,
    read_index,
    run_convert,
    sha256,
    tar_of,
)
from tests.support.tools import skopeo

NAME = "example.com/app:1.0"
LAYERS = [layer_tar(1), layer_tar(2)]


def config_of(layers: list[bytes]) -> bytes:
    diff_ids = [sha256(layer) for layer in layers]
    value = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    return json.dumps(value).encode()


def old_archive(path: Path, names: list[str] | None, **changes: Any) -> Path:
    """As `docker save` of 24 and before: a folder a layer, and a link for one that is there already."""
    config = config_of([*LAYERS, LAYERS[0]])
    digits = sha256(config)[7:]
    document = {
        "Config": f"{digits}.json",
        "RepoTags": names,
        "Layers": ["one/layer.tar", "two/layer.tar", "three/layer.tar"],
        **changes,
    }
    with tarfile.open(path, "w") as tar:
        for name, data in (
            (f"{digits}.json", config),
            ("one/layer.tar", LAYERS[0]),
            ("two/layer.tar", gz(LAYERS[1])),
            ("repositories", b"{}"),
            ("manifest.json", json.dumps([document]).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("three/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../one/layer.tar"
        tar.addfile(link)
    return path


def test_an_old_archive_is_read(tmp_path: Path) -> None:
    archive = old_archive(tmp_path / "old.tar", [NAME])
    for text in (f"docker-archive:{archive}", f"docker-archive:{archive}:{NAME}"):
        with (
            open_source(parse_place(text), tmp_path) as source,
            open_target(parse_place(f"oci:{tmp_path}/out"), tmp_path, source.names()) as target,
        ):
            root = source.resolve()
            copy_graph(source, target, root)
            target.tag(root)
    blobs = check_complete(tmp_path / "out")
    manifest = json.loads(blobs[root.digest])
    assert [(layer["digest"], layer["mediaType"]) for layer in manifest["layers"]] == [
        (sha256(LAYERS[0]), OCI_LAYER),
        (sha256(gz(LAYERS[1])), OCI_LAYER_GZIP),
        (sha256(LAYERS[0]), OCI_LAYER),
    ]
    (entry,) = json.loads((tmp_path / "out/index.json").read_bytes())["manifests"]
    assert entry["annotations"] == {
        "io.containerd.image.name": NAME,
        "org.opencontainers.image.ref.name": "1.0",
    }


def test_load_and_convert(soci: Soci, tmp_path: Path) -> None:
    archive = old_archive(tmp_path / "old.tar", [NAME, "app:2"])
    done = soci("image", "load", "-i", archive).good()
    assert done.text.splitlines() == [
        f"Loaded image: {NAME}",
        "Loaded image: docker.io/library/app:2",
    ]
    convert = ("image", "convert", "--soci", "--soci-min-layer-size", "0")
    one = soci(*convert, f"docker-archive:{archive}:app:2", f"oci:{tmp_path}/a").good().last
    two = soci(*convert, NAME, f"oci:{tmp_path}/b").good().last
    out = tmp_path / "c.tar"
    three = soci("convert", "--standalone", "--min-layer-size", "0", archive, out).good().last
    assert one == two == three


@pytest.mark.parametrize(
    "changes",
    [
        {"Layers": ["one/layer.tar"]},
        {"Layers": ["one/layer.tar", "two/layer.tar", "gone/layer.tar"]},
        {"Layers": 5},
        {"Config": "gone.json"},
        {"Config": "../../etc/passwd"},
        {"Config": "one/layer.tar"},
    ],
    ids=str,
)
def test_broken_archives(tmp_path: Path, changes: dict[str, object]) -> None:
    archive = old_archive(tmp_path / "old.tar", [NAME], **changes)
    with (
        pytest.raises(InvalidDataError),
        open_source(parse_place(f"docker-archive:{archive}"), tmp_path) as source,
    ):
        source.resolve()


def test_a_layer_that_is_not_what_the_config_says(tmp_path: Path) -> None:
    archive = old_archive(tmp_path / "old.tar", [NAME])
    data = archive.read_bytes()
    position = data.index(LAYERS[0]) + 600
    archive.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
    with pytest.raises(SociError, match="its content has the digest"):
        run_convert(f"docker-archive:{archive}", tmp_path / "out")


def test_which_image(tmp_path: Path) -> None:
    archive = old_archive(tmp_path / "old.tar", [NAME])
    with (
        pytest.raises(NotFoundError, match="no such image; there are example"),
        open_source(parse_place(f"docker-archive:{archive}:other:1"), tmp_path) as source,
    ):
        source.resolve()
    with pytest.raises(UsageError, match="read only"):
        open_target(parse_place(f"docker-archive:{archive}"), tmp_path)
    with (
        pytest.raises(InvalidDataError, match="docker-archive:"),
        open_source(parse_place(f"oci-archive:{archive}"), tmp_path),
    ):
        pass


def docker_list(path: Path) -> list[dict[str, Any]]:
    with tarfile.open(path) as tar:
        if "manifest.json" not in tar.getnames():
            return []
        member = tar.extractfile("manifest.json")
        assert member is not None
        found: list[dict[str, Any]] = json.loads(member.read())
        return found


@pytest.mark.parametrize("name", [NAME, "app:1.0", "docker.io/team/app:1.0"])
def test_what_is_saved_is_for_docker_too(soci: Soci, tmp_path: Path, name: str) -> None:
    layers = [gz(data) for data in LAYERS]
    image = make_image(tmp_path / "image", layers).root
    convert = ("image", "convert", "--soci", "--soci-min-layer-size", "0")
    soci(*convert, f"oci:{image}", name).good()
    saved = tmp_path / "saved.tar"
    soci("image", "save", "-o", saved, name).good()
    (entry,) = docker_list(saved)
    assert entry["RepoTags"] == [name.removeprefix("docker.io/")]
    with tarfile.open(saved) as tar:
        read = [tar.extractfile(path) for path in entry["Layers"]]
        assert [file.read() for file in read if file] == layers
        config = tar.extractfile(entry["Config"])
        assert config and json.loads(config.read())["os"] == "linux"
    # And for soci, as the whole that it is.
    soci("image", "rm", name).good()
    assert soci("image", "load", "-i", saved).good().last.endswith("app:1.0")
    facts = json.loads(soci("image", "inspect", "--format", "json", name).good().text)
    assert facts["soci"] == "v2"


def test_which_platform_docker_gets(tmp_path: Path) -> None:
    """This machine's, whatever its place; and nothing of an image that is not there."""
    maker = LayoutMaker(tmp_path / "image")
    entries = []
    for architecture in ("s390x", "amd64", "arm64"):
        layer = maker.blob(gz(tar_of({architecture: noise(1, 100)})))
        manifest = maker.manifest([layer], maker.config(architecture=architecture))
        entries.append({**manifest, "platform": {"architecture": architecture, "os": "linux"}})
    maker.tag(maker.index(entries))

    def saved() -> list[dict[str, Any]]:
        with (
            open_source(parse_place(f"oci:{maker.root}"), tmp_path) as source,
            open_target(parse_place(f"oci-archive:{tmp_path}/out.tar"), tmp_path) as target,
        ):
            root = source.resolve()
            copy_graph(source, target, root, allow_missing_manifests=True)
            target.tag(root)
        return docker_list(tmp_path / "out.tar")

    from soci_cli.oci import platforms

    here = platforms.host_platform().architecture
    wanted = next(entry for entry in entries if entry["platform"]["architecture"] == here)
    (entry,) = saved()
    assert entry["Config"].endswith(blob_json(maker.root, wanted)["config"]["digest"][7:])
    assert entry["RepoTags"] is None
    maker.path(wanted["digest"]).unlink()
    (entry,) = saved()
    other = next(entry for entry in entries if entry is not wanted)
    assert entry["Config"].endswith(blob_json(maker.root, other)["config"]["digest"][7:])


def test_an_artifact_is_not_for_docker(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    config = maker.blob(b"{}", "application/vnd.example.config")
    maker.tag(maker.manifest([maker.blob(b"x", "text/plain")], config))
    with (
        open_source(parse_place(f"oci:{maker.root}"), tmp_path) as source,
        open_target(parse_place(f"oci-archive:{tmp_path}/out.tar"), tmp_path) as target,
    ):
        copy_graph(source, target, source.resolve())
        target.tag(source.resolve())
    assert docker_list(tmp_path / "out.tar") == []


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_what_skopeo_writes(soci: Soci, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", [gz(data) for data in LAYERS]).root
    skopeo(f"oci:{image}:latest", f"docker-archive:{tmp_path}/d.tar:{NAME}")
    skopeo(f"oci:{image}:latest", f"dir:{tmp_path}/dir")
    assert NAME in soci("image", "load", "-i", tmp_path / "d.tar").good().text
    soci("image", "load", "-i", tmp_path / "dir", "--name", "from-dir:1").good()
    source = tmp_path / "dir"
    with open_source(parse_place(f"dir:{source}"), tmp_path) as place:
        assert json.loads(read_blob(place, place.resolve())) == json.loads(
            (source / "manifest.json").read_bytes()
        )
    for place_text in (f"dir:{source}", NAME):
        result = run_convert(place_text, tmp_path / "out", store=soci.store)
        assert result.platforms[0].index is not None


def test_a_folder_that_is_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "dir"
    with pytest.raises(NotFoundError), open_source(parse_place(f"dir:{folder}"), tmp_path):
        pass
    folder.mkdir()
    with pytest.raises(NotFoundError), open_source(parse_place(f"dir:{folder}"), tmp_path):
        pass
    image = make_image(tmp_path / "image").root
    (root,) = json.loads((image / "index.json").read_bytes())["manifests"]
    (folder / "manifest.json").write_bytes(
        (image / "blobs/sha256" / root["digest"][7:]).read_bytes()
    )
    with pytest.raises(NotFoundError, match="has no blob"):
        run_convert(f"dir:{folder}", tmp_path / "out")
    for path in (image / "blobs/sha256").iterdir():
        (folder / path.name).write_bytes(path.read_bytes() + b"x")
    with pytest.raises(SociError, match="bytes, not the"):
        run_convert(f"dir:{folder}", tmp_path / "out")
    for path in (image / "blobs/sha256").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    run_convert(f"dir:{folder}", tmp_path / "out")
    assert read_index(tmp_path / "out")["manifests"]
