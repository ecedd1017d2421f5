"""One process that serves several mounts, and whose they are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from soci_cli.kernel.points import mount_at
from tests.commands.mounting import PATIENCE, Home, Remote, both_engines, until
from tests.commands.test_reading import BIG
from tests.support.commands import on_terminal, process
from tests.support.holders import crash
from tests.support.images import make_image
from tests.support.servers import DockerRegistry
from tests.support.servers.actions import Hang
from tests.support.servers.fault_proxy import Fault
from tests.support.servers.fixtures import PASSWORD, USER


@pytest.fixture
def folders(home: Home) -> list[Path]:
    """Folders to mount on."""
    made = [home.folder / f"mnt{number}" for number in range(4)]
    for path in made:
        path.mkdir()
    home.targets = made
    return made


def pids(home: Home) -> set[int]:
    return {mount["pid"] for mount in home.mounts()}


def left(home: Home) -> list[Path]:
    """What is known of mounts and of processes."""
    return list((home.folder / ".local/state/soci").glob("*/[!.]*"))


def rewrite(home: Home, **changed: Any) -> None:
    """Changes what is written down of all mounts; None takes a field away."""
    for path in (home.folder / ".local/state/soci/mounts").glob("[!.]*/mount.json"):
        value = {**json.loads(path.read_text()), **changed}
        kept = {key: one for key, one in value.items() if one is not None}
        path.write_text(json.dumps(kept))


def test_one_process_for_all(home: Home, layout: Path, folders: list[Path]) -> None:
    image = f"oci:{layout}"
    for folder in folders:
        assert home("mount", image, folder).good().text == f"{folder}\n"
    assert len(pids(home)) == 1
    home("umount", folders[0]).good()
    # Whoever unmounts one, the others go on.
    subprocess.run(["umount", folders[1]], check=True)
    until(lambda: len(home.mounts()) == 2)
    home("mount", "oci:/nowhere", folders[0]).bad(1, "/nowhere")
    assert (folders[2] / "usr/big").read_bytes() == BIG
    home("mount", image, folders[0]).good()
    assert len(pids(home)) == 1
    stats = [json.loads(line) for line in home("stats", "--format", "json").text.splitlines()]
    assert [one["folder"] for one in stats] == [str(folders[n]) for n in (2, 3, 0)]
    # What was read of one says nothing of the others.
    assert [one["hits"] + one["misses"] > 0 for one in stats] == [True, False, False]
    home("umount", "--all").good()
    until(lambda: not left(home))


def test_many_at_once(home: Home, layout: Path, folders: list[Path]) -> None:
    """They come to one process, whoever starts it."""
    running = [home.start("mount", f"oci:{layout}", folder) for folder in folders]
    for one in running:
        _, err = one.communicate(timeout=PATIENCE)
        assert (one.returncode, err) == (0, b"")
    assert len(pids(home)) == 1
    for folder in folders:
        assert (folder / "usr/small").read_bytes() == b"small\n"
    home("umount", "--all").good()
    until(lambda: not left(home))


def test_what_a_process_is_shared_by(home: Home, layout: Path, folders: list[Path]) -> None:
    """Not by who has other surroundings; what belongs to the image may differ."""
    image = f"oci:{layout}"
    home("mount", image, folders[0]).good()
    home.env |= {"SOCI_CACHE": str(home.folder / "other"), "SOCI_CACHE_SIZE": "1GiB"}
    home("mount", image, folders[1]).good()
    assert len(pids(home)) == 1
    assert (folders[1] / "usr/big").read_bytes() == BIG
    assert list((home.folder / "other/spans").iterdir())
    home.env["HTTPS_PROXY"] = "http://127.0.0.1:9"
    home("mount", image, folders[2]).good()
    assert len(pids(home)) == 2
    home("umount", "--all").good()


@both_engines
def test_a_process_that_is_killed(home: Home, layout: Path, folders: list[Path]) -> None:
    """All its mounts are listed as crashed, and can be taken away; then a new one starts."""
    for folder in folders[:3]:
        home("mount", "--rw", f"oci:{layout}", folder).good()
    (pid,) = pids(home)
    crash(pid)
    until(lambda: {mount["state"] for mount in home.mounts()} == {"crashed"})
    assert len(home.mounts()) == 3
    home("mount", f"oci:{layout}", folders[3]).good()
    home("umount", folders[0]).good()
    assert home("umount", "--all").good().err == ""
    assert home.mounts() == []
    assert not any(mount_at(str(folder)) for folder in folders)
    until(lambda: not left(home))


@both_engines
def test_told_to_end(home: Home, layout: Path, folders: list[Path]) -> None:
    for folder in folders[:3]:
        home("mount", f"oci:{layout}", folder).good()
    with (folders[0] / "usr/big").open("rb"):
        os.kill(pids(home).pop(), signal.SIGTERM)
        until(lambda: not left(home))
    assert not any(mount_at(str(folder)) for folder in folders)


@both_engines
def test_a_registry_that_hangs_touches_no_other_image(
    home: Home, layout: Path, remote: Remote, folders: list[Path]
) -> None:
    """Neither while an image is opened, nor while it is read."""
    remote.proxy.add(Fault(Hang(), "/blobs/", "GET"))
    hanging = home.start("mount", remote.image, folders[0])
    until(lambda: remote.proxy.seen("GET", "/blobs/"))
    home("mount", f"oci:{layout}", folders[1]).good()
    assert len(pids(home)) == 1
    assert (folders[1] / "usr/big").read_bytes() == BIG
    hanging.send_signal(signal.SIGINT)
    _, err = hanging.communicate(timeout=PATIENCE)
    assert (hanging.returncode, err) == (130, b"\nsoci: interrupted\n")
    until(lambda: len(home.mounts()) == 1)
    remote.proxy.clear()
    home.env["SOCI_CACHE"] = str(home.folder / "other")  # where nothing is
    home("mount", "--no-background-fetch", remote.image, folders[0]).good()
    remote.proxy.add(Fault(Hang(), remote.lower, "GET"))
    with subprocess.Popen(["cat", folders[0] / "usr/big"], stdout=subprocess.DEVNULL) as reader:
        until(lambda: remote.proxy.seen("GET", remote.lower))
        home("umount", "--force", folders[0]).good()
        assert reader.wait(timeout=PATIENCE) == 1
    assert (folders[1] / "etc/hosts").read_bytes() == b"127.0.0.1 localhost\n"
    home("umount", folders[1]).good()
    until(lambda: not left(home))


def test_a_process_that_hangs(home: Home, layout: Path, folders: list[Path]) -> None:
    """Without a holder it is not killed as long as it has mounts that nobody wanted to end.

    A new mount gets another one.
    """
    for folder in folders[:2]:
        home("mount", f"oci:{layout}", folder).good()
    (pid,) = pids(home)
    os.kill(pid, signal.SIGSTOP)
    rewrite(home, held=None)
    home("mount", f"oci:{layout}", folders[2]).good()
    assert len(pids(home)) == 2
    home("umount", "--force", folders[0]).bad(1, f"process {pid}", str(folders[1]), "kill -9")
    assert mount_at(str(folders[0])) is None
    home("umount", "--all", "--force").good()
    assert home.mounts() == []
    assert not any(mount_at(str(folder)) for folder in folders)


def test_a_process_that_hangs_and_has_a_holder(
    home: Home, layout: Path, folders: list[Path]
) -> None:
    """It is killed, and its other mounts go on."""
    for folder in folders[:2]:
        home("mount", f"oci:{layout}", folder).good()
    (pid,) = pids(home)
    os.kill(pid, signal.SIGSTOP)
    home("umount", "--force", folders[0]).good()
    assert mount_at(str(folders[0])) is None
    assert (folders[1] / "usr/big").read_bytes() == BIG
    assert pids(home) & {pid} == set()
    home("umount", folders[1]).good()
    until(lambda: not left(home))


def test_credentials_belong_to_an_image(
    home: Home, layout: Path, folders: list[Path], docker_registry_htpasswd: DockerRegistry
) -> None:
    """They are no business of who asks for another one, and of who lists processes."""
    image = f"docker://{docker_registry_htpasswd.host}/app:1"
    given = ("--user", USER, "--password-stdin")
    password = PASSWORD.encode()
    convert = ("image", "convert", "--soci", "--soci-min-layer-size", "0", *given)
    process(*convert, f"oci:{layout}", image, home=home.folder, stdin=password).good()
    process("mount", *given, image, folders[0], home=home.folder, stdin=password).good()
    (pid,) = pids(home)
    for name in ("cmdline", "environ"):
        assert password not in Path(f"/proc/{pid}/{name}").read_bytes()
    written = [path for path in (home.folder / ".local/state").rglob("*") if path.is_file()]
    assert written
    assert not any(password in path.read_bytes() for path in written)
    home("mount", image, folders[1]).bad(1, "soci login")
    assert (folders[0] / "usr/big").read_bytes() == BIG
    assert pids(home) == {pid}
    home("umount", "--all").good()


def test_what_is_fetched_is_drawn(home: Home, remote: Remote) -> None:
    """By the command, though another process fetches it."""
    plain = make_image(home.folder / "plain").root
    status, text = on_terminal("mount", f"oci:{plain}", home.target, home=home.folder)
    assert status == 0, text
    assert "100.0%" in text or "unpacked" in text, text
    home("umount", home.target).good()


def listed(home: Home, *flags: str) -> Sequence[str]:
    return home("mounts", "-q", *flags).good().text.splitlines()


@both_engines
def test_owners(home: Home, layout: Path, folders: list[Path]) -> None:
    """What a program mounted for itself is left alone unless somebody says so."""
    home("mount", f"oci:{layout}", folders[0]).good()
    assert home.mounts()[0]["owner"] == "person"
    rewrite(home, owner="snapshotter")
    home("mount", f"oci:{layout}", folders[1]).good()
    assert listed(home) == [str(folders[1])]
    assert listed(home, "--all-owners") == [str(folders[0]), str(folders[1])]
    home("umount", folders[0]).bad(1, "by the snapshotter", "--all-owners")
    home("umount", "--all").good()
    assert listed(home, "--all-owners") == [str(folders[0])]
    assert (folders[0] / "usr/small").read_bytes() == b"small\n"
    # What is in the cache of its layers stays, too.
    assert (folders[0] / "usr/big").read_bytes() == BIG
    for flags, stays in (([], True), (["--all-owners"], False)):
        home("cache", "prune", *flags).good()
        kept = json.loads(home("cache", "ls", "--format", "json").good().text)["entries"]
        assert ("spans" in [entry["kind"] for entry in kept]) == stays
    home("umount", "--all", "--all-owners").good()
    until(lambda: not left(home))


def test_mounts_of_the_version_before(home: Home, layout: Path, folders: list[Path]) -> None:
    """They are listed and can be unmounted, alive or crashed; each had a process of its own."""
    older = ("mount_id", "unique_id", "namespace", "owner", "host", "layer_digests")
    for crashes in (False, True):
        home("mount", f"oci:{layout}", folders[0]).good()
        rewrite(home, **dict.fromkeys(older))
        (mount,) = home.mounts()
        assert (mount["state"], mount["owner"]) == ("serving", "person")
        home("stats", folders[0]).bad(1, "older version")
        if crashes:
            crash(mount["pid"])
            until(lambda: home.mounts()[0]["state"] == "crashed")
        assert home("umount", folders[0]).good().err == ""
        assert mount_at(str(folders[0])) is None
        assert home.mounts() == []
