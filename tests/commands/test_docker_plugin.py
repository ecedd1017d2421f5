"""`docker soci`, by the real client of Docker, which needs no engine for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from soci_cli.commands.docker_plugin import run_plugin
from tests.support.commands import environment
from tests.support.machine import PROJECT, need


def test_metadata(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_plugin(["docker-cli-plugin-metadata"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["SchemaVersion"] == "0.1.0"
    assert told["Vendor"]


@pytest.fixture
def docker(tmp_path: Path) -> list[str]:
    """The client, with the plugin installed for a user of its own."""
    program = need("docker")
    plugins = tmp_path / "cli-plugins"
    plugins.mkdir()
    plugin = plugins / "docker-soci"
    plugin.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(PROJECT)!r})\n"
        "from soci_cli.commands.docker_plugin import main\nmain()\n"
    )
    plugin.chmod(0o755)
    return [program, "--config", str(tmp_path)]


def run(command: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    env = {**environment(home), "PATH": os.environ["PATH"]}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)


def test_docker_runs_the_plugin(docker: list[str], tmp_path: Path) -> None:
    listed = run([*docker, "--help"], tmp_path)
    assert "Make container images start before they are downloaded" in listed.stdout, listed.stderr
    shown = run([*docker, "soci", "image", "--help"], tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "convert" in shown.stdout
    images = run([*docker, "--debug", "soci", "images", "--format", "json"], tmp_path)
    assert (images.returncode, images.stdout) == (0, ""), images.stderr
    failed = run([*docker, "soci", "image", "inspect", "nothing"], tmp_path)
    assert failed.returncode == 1
    assert "not in the local store" in failed.stderr
