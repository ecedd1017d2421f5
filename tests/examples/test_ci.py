"""examples/ci: the script, and the commands of the three files, run against a real registry."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from soci_cli import inspect, open_source, parse_place
from soci_cli.targets.registry import Credentials, RegistryOptions
from soci_cli.targets.registry.place import Registries
from tests.examples.images import EXAMPLES, push_layout
from tests.support.images import make_image, sha256
from tests.support.machine import PROJECT
from tests.support.servers import DockerRegistry
from tests.support.servers.fixtures import PASSWORD, USER

CI = EXAMPLES / "ci"
SCRIPT = CI / "convert.sh"
SMALL_LAYERS = {"SOCI_FLAGS": "--soci-min-layer-size 0"}


class Runner:
    """A machine of a CI service: an empty home, the tools that the files call, nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tools = folder / "bin"
        self._tools.mkdir()
        self.tool("soci", f'exec "{sys.executable}" -m soci_cli "$@"')
        (folder / "ci").symlink_to(CI)

    def tool(self, name: str, script: str) -> None:
        path = self._tools / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def sh(self, *arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", *map(str, arguments)],
            cwd=self.folder,
            env={
                "PATH": f"{self._tools}:{os.environ['PATH']}",
                "HOME": "/nonexistent",
                "PYTHONPATH": str(PROJECT),
                **environ,
            },
            capture_output=True,
            text=True,
            timeout=60,
        )

    def convert(self, *images: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return self.sh(SCRIPT, *images, **{**SMALL_LAYERS, **environ})


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    folder = tmp_path / "runner"
    folder.mkdir()
    return Runner(folder)


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return make_image(tmp_path / "image").root


@pytest.fixture
def repository(tmp_path: Path) -> str:
    return "ci/" + sha256(str(tmp_path).encode())[-12:]


def soci_of(name: str) -> tuple[str, str]:
    """The digest of an image in a registry, and which SOCI index it has."""
    host = name.partition("/")[0]
    registries = Registries(RegistryOptions({host: Credentials(USER, PASSWORD)}), {})
    try:
        with open_source(parse_place(f"docker://{name}"), Path("no"), registries) as source:
            facts = inspect(source)
            return facts.digest, facts.soci
    finally:
        registries.close()


def test_script_converts_beside_the_image(
    docker_registry: DockerRegistry, runner: Runner, layout: Path, repository: str
) -> None:
    image = f"{docker_registry.host}/{repository}:1.0"
    before = push_layout(layout, image)

    done = runner.convert(image)

    assert done.returncode == 0, done.stderr
    assert soci_of(image) == (before, "")
    assert soci_of(f"{image}-soci") == (done.stdout.strip(), "v2")
    assert "SOCI v2, 2 of 2 layers indexed" in done.stderr
    again = runner.convert(image)
    assert again.stdout == done.stdout
    assert "nothing changed" in again.stderr


def test_script_writes_nothing_to_disk(
    docker_registry: DockerRegistry, runner: Runner, layout: Path, repository: str
) -> None:
    image = f"{docker_registry.host}/{repository}:1.0"
    push_layout(layout, image)
    before = sorted(runner.folder.rglob("*"))
    done = runner.convert(image, TMPDIR="/nonexistent", PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stderr
    assert sorted(runner.folder.rglob("*")) == before


def test_script_to_another_name(
    docker_registry: DockerRegistry, runner: Runner, layout: Path, repository: str
) -> None:
    host = docker_registry.host
    digest = push_layout(layout, f"{host}/{repository}:latest")
    assert runner.convert(f"{host}/{repository}").returncode == 0
    assert soci_of(f"{host}/{repository}:latest-soci")[1] == "v2"
    done = runner.convert(f"{host}/{repository}@{digest}", f"{host}/{repository}/lazy:2")
    assert done.returncode == 0, done.stderr
    assert soci_of(f"{host}/{repository}/lazy:2") == (done.stdout.strip(), "v2")


def test_script_logs_in(
    docker_registry_htpasswd: DockerRegistry, runner: Runner, layout: Path, repository: str
) -> None:
    image = f"{docker_registry_htpasswd.host}/{repository}:1.0"
    push_layout(layout, image, (USER, PASSWORD))
    login = {"REGISTRY_USER": USER, "REGISTRY_PASSWORD": PASSWORD}

    done = runner.convert(image, **login)
    assert done.returncode == 0, done.stderr
    assert soci_of(f"{image}-soci")[1] == "v2"
    assert PASSWORD not in done.stdout + done.stderr

    for wrong in ({}, {**login, "REGISTRY_PASSWORD": "wrong"}):
        refused = runner.convert(image, f"{image}-other", **wrong)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "401 Unauthorized" in refused.stderr
    nobody = runner.convert(image, REGISTRY_PASSWORD=PASSWORD)
    assert nobody.returncode == 2
    assert "REGISTRY_USER" in nobody.stderr


def test_script_passes_failures_on(
    docker_registry: DockerRegistry, runner: Runner, layout: Path, repository: str
) -> None:
    image = f"{docker_registry.host}/{repository}:1.0"
    missing = runner.convert(image)
    assert (missing.returncode, missing.stdout) == (1, "")
    push_layout(layout, image)
    small = runner.convert(image, SOCI_FLAGS="")
    assert (small.returncode, small.stdout) == (1, "")
    assert "nothing to index" in small.stderr
    usage = runner.convert(image, SOCI_FLAGS="--no-such-flag")
    assert usage.returncode == 2


@pytest.mark.parametrize("images", [(), ("a", "b", "c"), (f"example.com/app@{sha256(b'')}",)])
def test_script_refuses_what_cannot_be_meant(runner: Runner, images: tuple[str, ...]) -> None:
    done = runner.convert(*images)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("convert.sh: ")


# The files for the CI services


def commands_of(file: str, *keys: str) -> str:
    """The shell commands of a file below `keys`: a list of lines, or a block of them."""
    lines = (CI / file).read_text().splitlines()
    found: list[str] = []
    for number, line in enumerate(lines):
        key, colon, rest = line.lstrip("- ").partition(":")
        if key not in keys or not colon or rest.strip() not in ("", "|"):
            continue
        indent = len(line) - len(line.lstrip())
        for command in lines[number + 1 :]:
            if command.strip() and len(command) - len(command.lstrip()) <= indent:
                break
            found.append(command.strip().removeprefix("- "))
    assert found, file
    return "\n".join(found)


SERVICES: Mapping[str, tuple[tuple[str, ...], Mapping[str, str], str]] = {
    # By file: where its commands are, what the service sets, and where the digest ends up.
    "github-actions.yml": (
        ("run",),
        {
            "REGISTRY": "{host}",
            "REGISTRY_USER": USER,
            "REGISTRY_PASSWORD": PASSWORD,
            "GITHUB_REPOSITORY": "{upper}",
            "GITHUB_REF_NAME": "1.0",
            "GITHUB_OUTPUT": "output",
        },
        "digest={digest}",
    ),
    "gitlab-ci.yml": (
        ("script",),
        {
            "CI_REGISTRY_USER": USER,
            "CI_REGISTRY_PASSWORD": PASSWORD,
            "CI_REGISTRY": "{host}",
            "CI_REGISTRY_IMAGE": "{host}/{repository}",
            "CI_COMMIT_TAG": "1.0",
            "SOCI_REGISTRY": "{host}",
            "SOCI_REGISTRY_USER": USER,
            "SOCI_REGISTRY_PASSWORD": PASSWORD,
            "SOCI_IMAGE": "{host}/{repository}",
        },
        "SOCI_DIGEST={digest}",
    ),
    "buildspec.yml": (
        ("commands",),
        {"REGISTRY": "{host}", "IMAGE": "{repository}:1.0", "AWS_REGION": "eu-central-1"},
        "SOCI_DIGEST={digest}",
    ),
}


@pytest.mark.parametrize("file", SERVICES)
def test_file_of_a_service(
    docker_registry_htpasswd: DockerRegistry,
    runner: Runner,
    layout: Path,
    repository: str,
    tmp_path: Path,
    file: str,
) -> None:
    keys, variables, result = SERVICES[file]
    host = docker_registry_htpasswd.host
    image = f"{host}/{repository}:1.0"
    push_layout(layout, image, (USER, PASSWORD))
    runner.tool("pip", 'test "$*" = "install --quiet soci.whl"')
    runner.tool("pipx", 'test "$*" = "install soci.whl"')
    # ECR's user is AWS, and here somebody else.
    runner.tool("aws", f"case $1 in sts) echo 123456789012 ;; *) echo '{PASSWORD}' ;; esac")
    script = commands_of(file, *keys).replace("REGISTRY_USER=AWS", f"REGISTRY_USER={USER}")
    (tmp_path / "job.sh").write_text(f"set -e\n{script}\nprintenv SOCI_DIGEST || :\n")
    named = {
        key: text.format(host=host, repository=repository, upper=repository.upper())
        for key, text in variables.items()
    }

    settings = {"SOCI_PACKAGE": "soci.whl", "HOME": str(tmp_path), **SMALL_LAYERS, **named}
    done = runner.sh(tmp_path / "job.sh", **settings)

    assert done.returncode == 0, done.stderr
    digest, soci = soci_of(f"{image}-soci")
    assert soci == "v2"
    outputs = [runner.folder / "output", runner.folder / "soci.env"]
    written = "".join(path.read_text() for path in outputs if path.exists())
    printed = f"SOCI_DIGEST={done.stdout.strip()}\n"
    assert result.format(digest=digest) in (written or printed)


@pytest.mark.parametrize("file", SERVICES)
def test_file_is_plain_yaml(file: str) -> None:
    """No tabs, and no value that YAML would read as something else than text."""
    for line in (CI / file).read_text().splitlines():
        assert "\t" not in line
        indent = len(line) - len(line.lstrip(" "))
        assert indent % 2 == 0
        if line.lstrip().startswith("- ") and not line.rstrip().endswith(("|", '"]')):
            command = line.lstrip()[2:]
            if not command.partition(":")[0].isalpha():
                assert ": " not in command and " #" not in command
                assert command[0] not in "\"'{}[]&*!|>%@`"
