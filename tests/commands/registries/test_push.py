"""Pushing to registries, with an index or without; flags that pull and push share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import requests

from soci_cli.targets import Layout
from tests.commands.registries.machine import (
    CONVERT,
    INDEX_V1,
    PUSH,
    Server,
    converted,
    layers_of,
)
from tests.support.commands import Soci, on_terminal, process
from tests.support.images import (
    check_complete,
    soci_entries,
)
from tests.support.servers.docker_registry import DockerRegistry


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
    config.write_text("max_concurrent_blobs = 1\nmax_concurrent_uploads = 1\n")
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
