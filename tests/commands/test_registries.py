"""Pull, push, convert and inspect with registries: the project's own, and docker-registry."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from soci_cli.targets import Layout
from soci_cli.trial_registry import RegistryServer
from tests.support.commands import Soci, on_terminal, process
from tests.support.images import (
    Json,
    LayoutMaker,
    check_complete,
    gz,
    layer_tar,
    make_image,
    make_zstd_image,
    sha256,
    soci_entries,
)
from tests.support.servers.docker_registry import DockerRegistry

CONVERT = ("image", "convert", "--soci", "--soci-min-layer-size", "0")
PUSH = ("push", "--soci-min-layer-size", "0")
INDEX_V1 = "application/vnd.amazon.soci.index.v1+json"


class Server:
    """The embedded registry, what it was asked, and an image in it."""

    def __init__(self, running: RegistryServer, log: list[tuple[str, str, int, int, int]]) -> None:
        self.host = running.address
        self.log = log
        self.close = running.close

    def forget(self) -> None:
        """Begins the log anew. A request is written down a moment after its answer is sent."""
        time.sleep(0.05)
        self.log.clear()

    def seen(self, method: str, pattern: str) -> list[str]:
        """The paths of requests that were answered well."""
        return [
            path
            for verb, path, status, _, _ in self.log
            if verb == method and re.search(pattern, path) and status < 300
        ]

    def tags(self, repository: str) -> list[str]:
        answer = requests.get(f"http://{self.host}/v2/{repository}/tags/list", timeout=10)
        names: list[str] = answer.json().get("tags") or []
        return sorted(names)

    def referrers(self, repository: str, digest: str) -> list[Json]:
        answer = requests.get(f"http://{self.host}/v2/{repository}/referrers/{digest}", timeout=10)
        found: list[Json] = answer.json()["manifests"]
        return found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    log: list[tuple[str, str, int, int, int]] = []

    def observe(method: str, path: str, status: int, sent: int, received: int) -> None:
        log.append((method, path, status, sent, received))

    with RegistryServer(tmp_path / "registry", observer=observe) as running:
        yield Server(running, log)


def copy(soci: Soci, source: str | Path, place: str) -> None:
    """Brings an image into a registry by way of the store: `push` without an index."""
    name = place.removeprefix("docker://")
    soci("image", "load", "-i", str(source), "--name", name).good()
    soci("push", "--snapshotter", "overlayfs", name).good()
    soci("rmi", name).good()


@pytest.fixture
def app(soci: Soci, server: Server, image: Path) -> str:
    """The name of an image of two layers in the registry."""
    name = f"{server.host}/team/app:1"
    copy(soci, image, name)
    server.forget()
    return name


def store_blobs(soci: Soci) -> set[str]:
    return {path.name for path in soci.store.glob("blobs/sha256/*")}


def layers_of(image: Path) -> list[str]:
    with Layout(image) as layout:
        root = layout.resolve()
    manifest = json.loads(layout.blob_path(root.digest).read_bytes())
    return [layer["digest"] for layer in manifest["layers"]]


# Converting


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


def check_complete_remote(soci: Soci, place: str) -> dict[str, bytes]:
    return check_complete(place, store=soci.store)


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


# Pulling


def converted(soci: Soci, app: str) -> str:
    soci(*CONVERT, f"docker://{app}", f"docker://{app}-soci").good()
    return f"{app}-soci"


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


def multi_platform(tmp_path: Path) -> Path:
    """An image for two platforms, with an attestation."""
    maker = LayoutMaker(tmp_path / "multi")
    entries = []
    for number, architecture in enumerate(("amd64", "s390x")):
        layer = maker.blob(gz(layer_tar(20 + number)))
        manifest = maker.manifest([layer], maker.config(architecture=architecture))
        entries.append({**manifest, "platform": {"os": "linux", "architecture": architecture}})
    note = maker.manifest([maker.document({"ok": 1}, "application/vnd.in-toto+json")])
    entries.append(
        {
            **note,
            "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": {
                "vnd.docker.reference.digest": entries[0]["digest"],
                "vnd.docker.reference.type": "attestation-manifest",
            },
        }
    )
    maker.tag(maker.index(entries))
    return maker.root


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


# Pushing


def test_push_makes_an_index_that_refers_to_the_image(
    soci: Soci, server: Server, app: str, image: Path
) -> None:
    soci("pull", app).good()
    done = soci(*PUSH, "--soci-span-size", "65536", app).good()
    with Layout(image) as layout:
        root = layout.resolve()
    assert done.last == root.digest, "the image stays as it is"
    (listed,) = server.referrers("team/app", root.digest)
    assert listed["artifactType"] == INDEX_V1
    assert listed["digest"] in done.err
    index = requests.get(
        f"http://{server.host}/v2/team/app/manifests/{listed['digest']}", timeout=10
    ).json()
    assert index["subject"]["digest"] == root.digest
    assert {blob["annotations"]["com.amazon.soci.span-size"] for blob in index["layers"]} == {
        "65536"
    }
    facts = json.loads(soci("image", "inspect", "--format", "json", f"docker://{app}").text)
    assert facts["soci"] == "v1"
    # Nothing is built or sent twice.
    server.forget()
    again = soci(*PUSH, "--soci-span-size", "65536", app).good()
    assert not server.seen("POST", "uploads")
    assert "another SOCI index" not in again.err


def test_existing_indexes(soci: Soci, server: Server, app: str) -> None:
    soci("pull", app).good()
    soci(*PUSH, app).good()
    digest = soci("image", "inspect", "--format", "json", app).good()
    subject = json.loads(digest.text)["manifests"][0]["digest"]
    skipped = soci(*PUSH, "--soci-span-size", "1k", "--existing-index", "skip", app).good()
    assert "no SOCI index pushed" in skipped.err
    assert len(server.referrers("team/app", subject)) == 1
    warned = soci(*PUSH, "--soci-span-size", "2k", app).good()
    assert "it has another SOCI index already" in warned.err
    assert len(server.referrers("team/app", subject)) == 2
    allowed = soci(*PUSH, "--soci-span-size", "4k", "--existing-index", "allow", app).good()
    assert "another" not in allowed.err
    assert len(server.referrers("team/app", subject)) == 3


def test_a_converted_image_gets_no_other_index(soci: Soci, server: Server, app: str) -> None:
    name = f"{server.host}/mine:2"
    digest = soci(*CONVERT, f"docker://{app}", name).good().last
    assert soci(*PUSH, name).good().last == digest
    facts = json.loads(soci("image", "inspect", "--format", "json", f"docker://{name}").text)
    assert facts["soci"] == "v2"
    for part in facts["manifests"]:
        assert not server.referrers("mine", part["digest"])
    assert digest in check_complete(f"docker://{name}")


def test_an_image_with_nothing_to_index_is_pushed_all_the_same(soci: Soci, app: str) -> None:
    soci("pull", app).good()
    done = soci("push", app).good()
    assert "pushed without a SOCI index" in done.err
    assert "10485760" in done.err


def test_push_of_a_lazily_pulled_image_moves_no_bytes_through_here(
    soci: Soci, server: Server, app: str, image: Path
) -> None:
    name = converted(soci, app)
    digest = soci("pull", name).good().last
    other = f"{server.host}/elsewhere/app:1"
    soci("image", "tag", name, other).good()
    server.forget()
    assert soci("push", other).good().last == digest
    layers = layers_of(image)
    assert not any(server.seen("GET", f"/blobs/{layer}") for layer in layers)
    assert digest in check_complete(f"docker://{other}")


def test_push_of_a_lazily_pulled_image_to_another_registry_streams(
    soci: Soci, app: str, docker_registry: DockerRegistry
) -> None:
    digest = soci("pull", converted(soci, app)).good().last
    other = f"{docker_registry.host}/streamed:1"
    soci("image", "tag", f"{app}-soci", other).good()
    assert soci("push", other).good().last == digest
    assert digest in check_complete(f"docker://{other}")


def test_a_v1_index_goes_along_with_a_lazily_pulled_image(
    soci: Soci, server: Server, app: str, image: Path, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    soci("pull", app).good()
    soci(*PUSH, app).good()
    soci("rmi", app).good()
    config = tmp_path / "config.toml"
    config.write_text("pull_modes.soci_v1.enable = true\n")
    monkeypatch.setenv("SOCI_CONFIG", str(config))
    digest = soci("pull", app).good().last
    other = f"{server.host}/along:1"
    soci("image", "tag", app, other).good()
    server.forget()
    assert "as it was pulled" in soci("push", other).good().err
    assert not any(server.seen("GET", f"/blobs/{layer}") for layer in layers_of(image))
    assert len(server.referrers("along", digest)) == 1


def test_the_fallback_tag_of_docker_registry(
    soci: Soci, docker_registry: DockerRegistry, image: Path
) -> None:
    name = f"{docker_registry.host}/fallback:1"
    soci("image", "load", "-i", str(image), "--name", name).good()
    digest = soci(*PUSH, name).good().last
    soci(*PUSH, "--soci-span-size", "1k", name).good()
    url = f"http://{docker_registry.host}/v2/fallback/manifests/{digest.replace(':', '-')}"
    accept = {"Accept": "application/vnd.oci.image.index.v1+json"}
    index = requests.get(url, headers=accept, timeout=10).json()
    assert [one["artifactType"] for one in index["manifests"]] == [INDEX_V1, INDEX_V1]
    assert index["manifests"][0]["annotations"]
    facts = json.loads(soci("image", "inspect", "--format", "json", f"docker://{name}").text)
    assert facts["soci"] == "v1"


# Flags


def test_flags_that_cannot_be_meant(soci: Soci, app: str) -> None:
    soci("image", "inspect", "-u", "me:secret", "alpine").bad(2, "--user")
    two = ("-u", "me:secret", f"docker://{app}", "docker://localhost:1/x")
    soci(*CONVERT, *two).bad(2, "soci login")
    done = soci("pull", "--max-concurrent-downloads", "0", app)
    assert (done.status, "x>=1" in done.err) == (2, True)


def test_concurrency_flags_and_settings(
    soci: Soci, app: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("max_concurrent_downloads = 1\nmax_concurrent_uploads = 1\n")
    monkeypatch.setenv("SOCI_CONFIG", str(config))
    soci("pull", app).good()
    soci(*PUSH, app).good()
    soci("pull", "--max-concurrent-downloads", "9", app).good()
    soci(*PUSH, "--max-concurrent-uploads", "9", app).good()


def test_progress_on_a_terminal_and_silence_in_a_pipe(soci: Soci, app: str, tmp_path: Path) -> None:
    piped = process("--root", tmp_path / "s1", "pull", app, home=tmp_path).good()
    assert len(piped.err.splitlines()) == 1
    status, seen = on_terminal("--root", tmp_path / "s2", "pull", app, home=tmp_path)
    assert status == 0
    assert "━" in seen
    assert "fetched" in seen


def test_nothing_is_left_on_disk(soci: Soci, app: str, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    home = tmp_path / "home"
    home.mkdir()
    done = process(
        *CONVERT, f"docker://{app}", f"docker://{app}-x", home=home, env={"TMPDIR": str(temporary)}
    )
    done.good()
    assert not list(temporary.iterdir())
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_a_store_that_went_away_is_no_trap(soci: Soci, app: str) -> None:
    soci("pull", converted(soci, app)).good()
    shutil.rmtree(soci.store)
    assert not soci("images", "-q").good().text
    soci("image", "inspect", f"{app}-soci").bad(1, "not in the local store")


def test_soci_entries_of_a_converted_image_in_docker_registry(
    soci: Soci, docker_registry: DockerRegistry, image: Path
) -> None:
    place = f"docker://{docker_registry.host}/entries:soci"
    soci(*CONVERT, f"oci:{image}", place).good()
    url = f"http://{docker_registry.host}/v2/entries/manifests/soci"
    index = requests.get(
        url, headers={"Accept": "application/vnd.oci.image.index.v1+json"}, timeout=10
    ).json()
    assert len(soci_entries(index)) == 1
