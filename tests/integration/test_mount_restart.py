"""Servers of mounts that are killed or replaced: all that is seen stays the same, whoever mounts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.mounts import Facts, Person, facts, wait_for
from tests.integration.published import Published, new_folder

QUIET = ("--platform", "linux/amd64")


def forget() -> None:
    """Lets the kernel forget names and attributes, which it asks for again then."""
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("2")


def kill(person: Person) -> None:
    """Kills the server of the only mount, and waits for its successor."""
    before = person.server()
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: person.server() != before, "a successor serves")


@pytest.mark.parametrize("engine", ["erofs", "fuse"])
def test_every_file(odd: Published, unpacked: Facts, person: Person, engine: str) -> None:
    if os.geteuid():
        pytest.skip("root alone has both engines")
    with person.mounted(odd.place, None, *QUIET, "--engine", engine) as place:
        before = facts(place), [path.lstat().st_ino for path in sorted(place.rglob("*"))]
        for _ in range(2):
            kill(person)
            forget()
            person.soci("mounts", "--restart").good()
            forget()
            now = facts(place), [path.lstat().st_ino for path in sorted(place.rglob("*"))]
            assert now == before


@pytest.mark.parametrize("flags", [(), ("--rw",)], ids=["ro", "rw"])
def test_an_ordinary_user(odd: Published, nobody: Person, flags: tuple[str, ...]) -> None:
    if flags and shutil.which("fuse-overlayfs") is None:
        pytest.skip("fuse-overlayfs is not installed")
    with nobody.mounted(odd.place, None, *QUIET, *flags) as place:
        if flags:
            nobody.run("sh", "-c", f"echo hello > {place}/new").good()

        def seen() -> object:
            # fuse-overlayfs 1.10 loses devices that the kernel forgot.
            sums = f"find {place} -type f -exec sha256sum {{}} + | sort"
            return nobody.run("sh", "-c", sums).good().out if flags else nobody.facts(place)

        before = seen()
        assert before
        kill(nobody)
        forget()
        assert seen() == before
        nobody.soci("mounts", "--restart").good()
        assert seen() == before


def test_a_user_namespace(odd: Published, person: Person) -> None:
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")
    place = new_folder(person.home / "place")
    script = """
        set -e
        "$0" -m soci_cli mount -q --platform linux/amd64 "$1" "$2" >/dev/null
        "$0" -m tests.integration.mounts "$2" > before
        pid=$("$0" -m soci_cli mounts --format json | sed 's/.*"pid": \\([0-9]*\\).*/\\1/')
        kill -9 "$pid"
        "$0" -m tests.integration.mounts "$2" > killed
        "$0" -m soci_cli mounts -q --restart >/dev/null
        "$0" -m tests.integration.mounts "$2" > replaced
        "$0" -m soci_cli umount "$2" >/dev/null
        cmp before killed
        cmp before replaced
    """
    inside = replace(person, prefix=("unshare", "-Urm"))
    inside.run("sh", "-c", script, person.python, odd.place, place).good()
    assert (person.home / "before").stat().st_size > 1000
    wait_for(lambda: not person.records(), "the server ends")
