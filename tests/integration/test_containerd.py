"""Conversions in containerd as processes: two at once, and one whose containerd goes away."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.support.commands import SOCI, environment, process
from tests.support.images import make_image, run_convert
from tests.support.servers.containerd import ContainerdServer, Programs
from tests.support.tools import CONVERT


def start(server: ContainerdServer, *arguments: str, home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SOCI, "--address", server.address, "--namespace", "processes", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
        env=environment(home),
    )


@pytest.mark.parametrize("same", [True, False])
def test_two_processes_at_once(tmp_path: Path, containerd: ContainerdServer, same: bool) -> None:
    image = make_image(tmp_path / "image").root
    expected = run_convert(image, tmp_path / "expected").descriptor.digest
    flags = (*CONVERT, "--soci-span-size", str(1 << 16))
    names = [f"two.example/app:{'same' if same else number}" for number in range(2)]
    running = [start(containerd, *flags, f"oci:{image}", name, home=tmp_path) for name in names]
    for one in running:
        out, errors = one.communicate(timeout=60)
        assert one.returncode == 0, errors
        assert out.split()[-1] == expected
    containerd.collect()
    for name in set(names):
        listed = containerd.ctr("images", "ls", f"name=={name}", namespace="processes")
        assert expected in listed
        where = ("--address", containerd.address, "--namespace", "processes")
        process(*where, "image", "inspect", name, home=tmp_path).good()
        archive = f"oci-archive:{tmp_path}/{name.rpartition(':')[2]}.tar:1"
        process(*where, *flags, name, archive, home=tmp_path).good()
    assert not containerd.leases("processes")
    assert not containerd.ingests("processes")


def test_containerd_that_stops_in_the_middle(
    tmp_path: Path, containerd_programs: Programs, large_archive: Path
) -> None:
    with ContainerdServer(tmp_path / "containerd", containerd_programs) as server:
        command = (*CONVERT, f"oci-archive:{large_archive}", "stops.example/app:1")
        running = start(server, *command, home=tmp_path)
        deadline = time.monotonic() + 30
        while not server.ingests("processes") and time.monotonic() < deadline:
            time.sleep(0.01)
        server.kill()
        _, errors = running.communicate(timeout=60)
        assert running.returncode == 1
        assert errors.startswith(("soci: stops.example/app:1: containerd (", "soci: containerd ("))
        assert len(errors.splitlines()) == 1
        server.start()
        assert "stops.example" not in server.ctr("images", "ls", namespace="processes")
        again = start(server, *command, home=tmp_path)
        out, errors = again.communicate(timeout=60)
        assert again.returncode == 0, errors
        server.collect()
        where = ("--address", server.address, "--namespace", "processes")
        there = process(*where, *command, home=tmp_path).good()
        assert "nothing changed" in there.err
        assert there.last == out.split()[-1]
