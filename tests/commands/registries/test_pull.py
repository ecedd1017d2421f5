"""Pulling from registries, lazily and whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import requests

from soci_cli.targets import Layout
from tests.commands.registries.machine import (
    PUSH,
    Server,
    converted,
    copy,
    layers_of,
    multi_platform,
    store_blobs,
)
from tests.support.commands import Soci
from tests.support.images import (
    check_complete,
    gz,
    layer_tar,
    make_image,
    sha256,
)


def test_a_lazy_pull_leaves_indexed_layers_in_the_registry(
    soci: Soci, server: Server, app: str, image: Path, tmp_path: Path
) -> None:
    name = converted(soci, app)
    server.forget()
    done = soci("pull", name).good()
    layers = layers_of(image)
    assert not any(server.seen("GET", f"/blobs/{layer}") for layer in layers)
    assert not {layer[7:] for layer in layers} & store_blobs(soci)
    assert re.search(r"2 of 2 layers stay in the registry, which saves .* of .*, 100 %", done.err)
    assert done.last == json.loads(soci("images", "--format", "json", name).text)["digest"]

    # It is whole for every other command: what is missing is streamed.
    soci("image", "save", "-o", f"{tmp_path}/out.tar", name).good()
    blobs = check_complete(f"oci-archive:{tmp_path}/out.tar")
    assert set(layers) <= set(blobs)
    assert set(layers) <= set(check_complete(name, store=soci.store))
    soci("image", "convert", "--soci", "--soci-min-layer-size", "0", name, "whole:1").good()
    assert {layer[7:] for layer in layers} <= store_blobs(soci)
    # Pulled again, what is here stays here.
    soci("pull", name).good()
    assert {layer[7:] for layer in layers} <= store_blobs(soci)


def test_a_layer_that_is_gone_from_the_registry_is_told(
    soci: Soci, server: Server, app: str, image: Path, tmp_path: Path
) -> None:
    name = converted(soci, app)
    soci("pull", name).good()
    for layer in layers_of(image):
        url = f"http://{server.host}/v2/team/app/blobs/{layer}"
        assert requests.delete(url, timeout=10).status_code == 202
    failed = soci("image", "save", "-o", f"{tmp_path}/out.tar", name)
    failed.bad(1, "was left in its registry when the image was pulled", "404")
    assert not (tmp_path / "out.tar").exists()


def test_a_registry_that_is_gone_is_no_missing_layer(
    soci: Soci, server: Server, app: str, image: Path, tmp_path: Path
) -> None:
    name = converted(soci, app)
    soci("pull", name).good()
    server.close()
    failed = soci("cat", name, "data/1.bin").bad(
        1, "was left in its registry", f"http://{server.host}/", "connection refused (4 attempts)"
    )
    line = failed.err
    assert "404" not in line and "not found" not in line.lower()
    (digest,) = set(re.findall("sha256:[0-9a-f]{64}", line))
    assert line.count(digest) == 1 and len(line) < 300


def test_debug_shows_each_request(soci: Soci, server: Server, app: str) -> None:
    done = soci("--debug", "image", "inspect", f"docker://{app}").good()
    url = re.escape(f"http://{server.host}/v2/team/app/manifests/1")
    assert re.search(
        rf"^registry: [0-9:.]+ GET {url}: 200 \(attempt 1, [0-9.]+ s\)$", done.err, re.M
    )
    assert soci("image", "inspect", f"docker://{app}").good().err == ""


def test_a_pull_without_an_index_or_with_another_snapshotter_fetches_everything(
    soci: Soci, app: str, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = soci("pull", app).good()
    assert "it has no SOCI index" in done.err
    assert {layer[7:] for layer in layers_of(image)} <= store_blobs(soci)
    soci("rmi", app).good()
    assert not store_blobs(soci)
    name = converted(soci, app)
    for flags in (["--snapshotter", "overlayfs"], []):
        monkeypatch.setenv("CONTAINERD_SNAPSHOTTER", "overlayfs")
        done = soci("pull", *flags, name).good()
        assert "2 layers pulled" in done.err
        assert {layer[7:] for layer in layers_of(image)} <= store_blobs(soci)
        soci("rmi", name).good()


def test_quiet_pull_prints_the_digest_alone(soci: Soci, app: str) -> None:
    done = soci("pull", "-q", app).good()
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", done.text)
    assert not done.err


def test_a_small_layer_is_pulled_beside_the_lazy_ones(
    soci: Soci, server: Server, tmp_path: Path
) -> None:
    big, small = gz(layer_tar(1)), gz(layer_tar(2, size=100))
    image = make_image(tmp_path / "mixed", [big, small]).root
    name = f"{server.host}/mixed:1"
    copy(soci, image, name)
    flags = ("--soci-min-layer-size", str(len(small) + 1))
    soci("image", "convert", "--soci", *flags, f"docker://{name}", f"docker://{name}-s").good()
    done = soci("pull", f"{name}-s").good()
    assert "1 of 2 layers stay" in done.err
    assert sha256(small)[7:] in store_blobs(soci)
    assert sha256(big)[7:] not in store_blobs(soci)


def test_v1_indexes_are_found_where_settings_enable_them(
    soci: Soci, app: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soci("pull", "--snapshotter", "overlayfs", app).good()
    soci(*PUSH, app).good()
    soci("rmi", app).good()
    assert "it has no SOCI index" in soci("pull", app).good().err
    soci("rmi", app).good()
    config = tmp_path / "config.toml"
    config.write_text("pull_modes.soci_v1.enable = true\n")
    monkeypatch.setenv("SOCI_CONFIG", str(config))
    done = soci("pull", app).good()
    assert "SOCI v1; 2 of 2 layers stay" in done.err
    assert not {layer[7:] for layer in layers_of(image)} & store_blobs(soci)
    shown = json.loads(soci("image", "inspect", "--format", "json", app).text)
    assert shown["soci"] == "v1"
    # v2 can be switched off in the same way.
    name = converted(soci, app)
    config.write_text("pull_modes.soci_v2.enable = false\n")
    assert "it has no SOCI index" in soci("pull", name).good().err


def test_an_index_that_is_named_is_used(
    soci: Soci, server: Server, app: str, image: Path, tmp_path: Path
) -> None:
    soci("pull", app).good()
    soci(*PUSH, app).good()
    soci("rmi", app).good()
    manifest = json.loads(soci("image", "inspect", "--format", "json", f"docker://{app}").text)
    digest = manifest["manifests"][0]["soci_digest"]
    done = soci("pull", "--soci-index-digest", digest, app).good()
    assert "SOCI v1; 2 of 2 layers stay" in done.err
    soci("rmi", app).good()
    soci("pull", "--soci-index-digest", "sha256:abc", app).bad(2, "not a digest")
    soci("pull", "--soci-index-digest", f"sha256:{'0' * 64}", app).bad(1, "404")
    soci("pull", "--soci-index-digest", digest, "--snapshotter", "x", app).bad(2, "--snapshotter")
    wrong = manifest["digest"]
    soci("pull", "--soci-index-digest", wrong, app).bad(1, "is no SOCI index")
    # An index of another image.
    other = f"{server.host}/team/app:other"
    copy(soci, make_image(tmp_path / "other", [gz(layer_tar(9))]).root, other)
    soci("pull", "--soci-index-digest", digest, other).bad(1, "belongs to another image")
    assert not soci("images", "-q").text


def test_platforms_of_pull_and_push(soci: Soci, server: Server, tmp_path: Path) -> None:
    name = f"{server.host}/multi:1"
    layout = multi_platform(tmp_path)
    copy(soci, layout, name)
    with Layout(layout) as opened:
        root = opened.resolve()
    server.forget()
    assert soci("pull", "--platform", "linux/amd64", name).good().last == root.digest
    assert len(server.seen("GET", "/manifests/")) == 2, "only what is needed is read"
    soci("pull", "--platform", "linux/mips", name).bad(1, "linux/amd64, linux/s390x")

    # One platform is here: an index of it alone is pushed, with what belongs to it.
    done = soci("push", "--snapshotter", "x", f"{server.host}/multi:1").good()
    assert "not pushed, because the local store does not have them: linux/s390x" in done.err
    assert done.last != root.digest
    reduced = requests.get(
        f"http://{server.host}/v2/multi/manifests/1",
        headers={"Accept": root.media_type},
        timeout=10,
    ).json()
    assert [one["platform"]["architecture"] for one in reduced["manifests"]] == ["amd64"]

    soci("rmi", name).good()
    copy(soci, layout, name)
    assert soci("pull", "--all-platforms", name).good().last == root.digest
    whole = soci("push", "--snapshotter", "x", name).good()
    assert whole.last == root.digest
    one = soci("push", "--snapshotter", "x", "-p", "linux/s390x", name).good()
    facts = json.loads(soci("image", "inspect", "--format", "json", f"docker://{name}").text)
    assert [part["platform"] for part in facts["manifests"]] == ["linux/s390x"]
    assert facts["digest"] == one.last
    soci("push", "-p", "linux/mips", name).bad(1, "linux/amd64, linux/s390x")

    every = soci(*PUSH, "--all-platforms", name).good()
    assert every.last == root.digest
    for part in json.loads((layout / "blobs/sha256" / root.digest[7:]).read_text())["manifests"]:
        listed = server.referrers("multi", part["digest"])
        assert len(listed) == (part["platform"]["os"] == "linux")
