"""`soci stats` and `soci cache`, and what a mount reads and writes besides."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.commands.mounting import Home, Remote, both_engines, until
from tests.commands.test_reading import BIG
from tests.support.images import make_image, noise
from tests.support.servers.actions import Reply
from tests.support.servers.fault_proxy import Fault


@both_engines
def test_stats(home: Home, remote: Remote) -> None:
    lower, upper = remote.lower, remote.upper
    assert home("stats").good().text == ""
    home("mount", "--no-background-fetch", remote.image, home.target).good()
    found = home.stats()
    assert found["demand"]["spans"] == 0
    assert [layer["size_here"] for layer in found["layers"]] == [0, 0]
    assert (home.target / "usr/big").read_bytes() == BIG
    found = home.stats()
    assert found["image"] == remote.image
    assert found["demand"]["uncompressed"] >= len(BIG)
    assert found["demand"]["fetched"] > 0
    assert {file["layer"] for file in found["files"]} == {lower}
    assert any(file["file"] == "usr/big" for file in found["files"])
    assert [layer["digest"] for layer in found["layers"]] == [lower, upper]
    assert found["layers"][0]["size_here"] >= len(BIG)
    text = home("stats", home.target).good().text
    assert text.startswith(f"{remote.image} at {home.target}\n")
    assert "usr/big" in text
    assert text == home("stats", remote.image.removeprefix("docker://")).good().text
    home("stats", "other").bad(1, "no folder and no image that you mounted")
    remote.proxy.add(Fault(Reply(403), upper))
    with pytest.raises(OSError, match="Input/output"):
        (home.target / "usr/upper").read_bytes()
    found = home.stats()
    assert found["errors"] >= 1
    assert any("usr/upper" in line and upper in line for line in found["log_recent"])
    assert upper in Path(home.mounts()[0]["log"]).read_text()
    home("umount", home.target).good()
    # What was fetched is in the cache for the next one.
    home("mount", "--no-background-fetch", remote.image, home.target).good()
    assert (home.target / "usr/big").read_bytes() == BIG
    found = home.stats()
    assert found["demand"]["spans"] == 0
    assert found["cache"]["uncompressed"] >= len(BIG)


@both_engines
def test_record_and_prefetch(home: Home, remote: Remote) -> None:
    """What one mount records another fetches before it is read."""
    lower, upper = remote.lower, remote.upper
    record = home.folder / "files.json"
    home("mount", "--record", "files.json", remote.image, home.target).good()
    assert json.loads(record.read_text()) == []
    (home.target / "usr/upper").read_bytes()
    (home.target / "etc/hosts").read_bytes()
    (home.target / "odd \x1b[31m\n").read_bytes()
    (home.target / "usr/upper").read_bytes()
    expected = ["/usr/upper", "/etc/hosts", "/odd \x1b[31m\n"]
    until(lambda: json.loads(record.read_text()) == expected)
    (home.target / "usr/small").read_bytes()
    home("umount", home.target).good()
    assert json.loads(record.read_text()) == [*expected, "/usr/small"]

    convert = ("image", "convert", "--soci", "--soci-min-layer-size", "0")
    size = ("--soci-span-size", "65536")
    again = remote.image.replace("app:1", "app:2")
    done = home(*convert, *size, "--prefetch-files-json", record, remote.image, again).good()
    assert "not found" not in done.err
    home("cache", "prune").good()
    home("mount", "--no-background-fetch", again, home.target).good()
    until(lambda: home.stats()["prefetch"]["spans"] >= 2)
    remote.proxy.add(Fault(Reply(500), f"{lower}|{upper}", "GET"))
    assert (home.target / "etc/hosts").read_bytes() == b"127.0.0.1 localhost\n"
    assert (home.target / "usr/upper").read_bytes() == noise(1, 70_000)


def test_a_mount_keeps_its_image_in_the_store_and_no_other(
    home: Home, layout: Path, tmp_path: Path
) -> None:
    other = make_image(tmp_path / "other").root
    convert = ("image", "convert", "--soci", "--soci-min-layer-size", "0")
    home(*convert, f"oci:{layout}", "example.com/kept:1").good()
    home(*convert, f"oci:{other}", "example.com/other:1").good()
    home("mount", "example.com/kept:1", home.target).good()
    done = home("rmi", "example.com/other:1").good()
    assert "Deleted: " in done.text
    assert "kept" not in done.err
    # Of its own image the list of platforms is not needed.
    assert home("rmi", "example.com/kept:1").good().text.count("Deleted: ") == 1
    assert (home.target / "usr/big").read_bytes() == BIG
    home("umount", home.target).good()


@both_engines
def test_settings_of_the_background(home: Home, remote: Remote) -> None:
    settings = home.folder / "config.toml"
    home.env["SOCI_CONFIG"] = str(settings)
    settings.write_text(
        "[background_fetch]\nsilence_period_msec = 1\nfetch_period_msec = 1\n[prefetch]\nenable = false\n"
    )
    home("mount", remote.image, home.target).good()

    def is_here() -> bool:
        return all(layer["size_here"] >= layer["size"] for layer in home.stats()["layers"])

    until(is_here)
    found = home.stats()
    assert found["background"]["spans"] > 1
    assert found["demand"]["spans"] == 0
    home("umount", home.target).good()
    home("cache", "prune").good()
    settings.write_text("background_fetch = {disable = true, silence_period_msec = 1}")
    home("mount", remote.image, home.target).good()
    assert home.stats()["background"]["spans"] == 0


def test_cache_ls_and_prune(home: Home, layout: Path, tmp_path: Path) -> None:
    facts = json.loads(home("cache", "ls", "--format", "json").good().text)
    assert (facts["size"], facts["entries"]) == (0, [])
    home("cat", f"oci:{layout}", "/usr/big", "/usr/upper").good()
    plain = make_image(tmp_path / "plain").root
    home("ls", f"oci:{plain}").good()
    facts = json.loads(home("cache", "ls", "--format", "json").good().text)
    assert facts["folder"] == f"{home.folder}/.cache/soci"
    kinds = [entry["kind"] for entry in facts["entries"]]
    assert kinds.count("spans") == 2
    assert kinds.count("devices") == 2
    assert facts["size"] == sum(entry["size"] for entry in facts["entries"]) > len(BIG)
    assert facts["size"] < facts["limit"]
    lines = home("cache", "ls").good().text.splitlines()
    assert lines[0].split() == ["DIGEST", "KIND", "ENTRIES", "SIZE", "LAST", "USED"]
    assert len(lines) == len(facts["entries"]) + 2
    assert "of at most" in lines[-1]
    assert set(home("cache", "ls", "-q").text.split()) == {e["digest"] for e in facts["entries"]}

    assert home("cache", "prune", "--older-than", "1h").good().text == "0 B freed\n"
    home("cache", "prune", "--older-than", "soon").bad(2, "not a duration")
    home("cache", "prune", "--keep", "some").bad(2, "not a size")
    freed = int(home("cache", "prune", "--keep", "1MiB", "-q").good().text)
    assert freed > len(BIG) - (1 << 20)
    facts = json.loads(home("cache", "ls", "--format", "json").good().text)
    assert facts["size"] <= 1 << 20
    assert "freed" in home("cache", "prune").good().text
    assert json.loads(home("cache", "ls", "--format", "json").good().text)["entries"] == []
    assert home("cat", f"oci:{layout}", "/usr/big").good().out == BIG


@both_engines
def test_pruning_under_a_mount(home: Home, remote: Remote) -> None:
    home("mount", "--no-background-fetch", remote.image, home.target).good()
    assert (home.target / "usr/big").read_bytes() == BIG
    home("cache", "prune").good()
    with (home.target / "usr/big").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read() == BIG
    assert (home.target / "usr/upper").read_bytes() == noise(1, 70_000)
