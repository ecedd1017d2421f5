"""What nerdctl does with the reference's command line."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.commands.containerd.machine import (
    INDEX_V1,
    NAMESPACE,
    Machine,
    referrers,
)
from tests.support.commands import SOCI, environment, process
from tests.support.servers.docker_registry import DockerRegistry


class Nerdctl:
    """The command lines that nerdctl builds, and its way of reading what comes back."""

    def __init__(self, folder: Path, machine: Machine) -> None:
        program = folder / "bin" / "soci"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {" ".join(SOCI)} "$@"\n')
        program.chmod(0o755)
        self._environment = environment(folder, SOCI_ROOT=str(machine.root))
        self._program = str(program)
        self._flags = ["--address", machine.server.address, "--namespace", NAMESPACE]

    def check_version(self, required: tuple[int, ...]) -> None:
        done = subprocess.run(
            [self._program, "--version"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._environment,
        )
        assert done.returncode == 0
        found = re.search(r"v?(\d+\.\d+\.\d+)", done.stdout)
        assert found is not None
        assert tuple(map(int, found[1].split("."))) >= required

    def create(
        self, ref: str, *, all_platforms: bool = False, platforms: Sequence[str] = ()
    ) -> list[str]:
        words = ["create", *_platforms(all_platforms, platforms)]
        return self._run(*words, "--span-size", "65536", "--min-layer-size", "0", ref)

    def push(
        self,
        ref: str,
        *,
        all_platforms: bool = False,
        platforms: Sequence[str] = (),
        hosts: Sequence[str] = (),
    ) -> list[str]:
        words = ["push", *_platforms(all_platforms, platforms), "--skip-verify", "--plain-http"]
        if hosts:
            words += ["--hosts-dir", ",".join(hosts)]
        return self._run(*words, ref)

    def convert(self, src: str, dst: str, *, all_platforms: bool = False) -> list[str]:
        self.check_version((0, 10, 0))
        words = ["convert", *(["--all-platforms"] if all_platforms else [])]
        return self._run(*words, "--span-size", "65536", "--min-layer-size", "0", src, dst)

    def _run(self, *words: str) -> list[str]:
        running = subprocess.Popen(
            [self._program, *self._flags, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
        )
        assert running.stdout is not None
        assert running.stderr is not None
        # First one to its end, then the other.
        lines = running.stdout.read().decode().splitlines()
        lines += running.stderr.read().decode().splitlines()
        assert running.wait() == 0, lines
        return lines


def _platforms(every: bool, platforms: Sequence[str]) -> list[str]:
    words = ["--all-platforms"] if every else []
    for platform in platforms:
        words += ["--platform", platform]
    return words


def test_nerdctl_push_makes_and_pushes_an_index(
    machine: Machine, docker_registry: DockerRegistry, tmp_path: Path
) -> None:
    host = docker_registry.host
    image = machine.load(f"{host}/nerdctl/push:1", ("amd64", "arm64"))
    nerdctl = Nerdctl(tmp_path, machine)
    machine.ctr("images", "push", "--plain-http", image.name)
    nerdctl.create(image.name, platforms=["linux/amd64"])
    nerdctl.push(image.name, platforms=["linux/amd64"], hosts=["/nosuch", "/neither"])
    amd64, arm64 = (manifest["digest"] for manifest in image.manifests)
    (referrer,) = referrers(host, "nerdctl/push", amd64)
    assert referrer["artifactType"] == INDEX_V1
    assert referrers(host, "nerdctl/push", arm64) == []
    nerdctl.create(image.name, all_platforms=True)
    assert any(referrer["digest"] in line for line in nerdctl.push(image.name, all_platforms=True))
    assert len(referrers(host, "nerdctl/push", arm64)) == 1
    assert len(referrers(host, "nerdctl/push", amd64)) == 1
    # Who pulls finds it.
    env = {"SOCI_CONFIG": str(tmp_path / "soci.toml")}
    (tmp_path / "soci.toml").write_text("[pull_modes.soci_v1]\nenable = true\n")
    pull = ("--root", tmp_path / "fresh", "pull", "-p", "linux/amd64", image.name)
    pulled = process(*pull, home=tmp_path, env=env).good()
    assert "SOCI v1; 2 of 2 layers stay in the registry" in pulled.err


def test_nerdctl_converts(
    machine: Machine, docker_registry: DockerRegistry, tmp_path: Path
) -> None:
    host = docker_registry.host
    image = machine.load(f"{host}/nerdctl/convert:1")
    nerdctl = Nerdctl(tmp_path, machine)
    converted = f"{host}/nerdctl/convert:soci"
    lines = nerdctl.convert(image.name, converted)
    digest = machine.ctr("images", "ls", f"name=={converted}").splitlines()[1].split()[2]
    assert digest in lines
    assert any("changed" in line for line in nerdctl.convert(image.name, converted))
    # The whole of it is kept by the image, and pushed by any tool.
    machine.server.collect(NAMESPACE)
    machine.ctr("images", "push", "--plain-http", converted)
    fresh = ("--root", tmp_path / "fresh")
    pulled = process(*fresh, "pull", converted, home=tmp_path).good()
    assert "SOCI v2; 2 of 2 layers stay in the registry" in pulled.err
    assert pulled.last == digest
    (shown,) = [line for line in machine("index", "ls").good().text.splitlines() if "v2" in line]
    assert converted in shown
    # `nerdctl push --snapshotter soci` of what is converted: an index v1 of its own, and a warning.
    nerdctl.create(converted)
    lines = nerdctl.push(converted)
    assert any("the SOCI index v2 is not pushed here" in line for line in lines)


# create and push
