"""What commands import: nothing that takes long and that they do not need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import SOCI, environment
from tests.support.images import make_image

PROGRAM = """
import json, sys
from soci_cli.commands import run
status = run(sys.argv[1:])
print(json.dumps(sorted(sys.modules)))
sys.exit(status)
"""
LARGE = {"boto3", "grpc", "oras", "requests", "rich", "urllib3"}


def imported(*arguments: str, home: Path, program: str = PROGRAM) -> set[str]:
    """The modules that are there when a command has ended."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=home,
        env=environment(home),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", ["--version", "--help", "image --help", "completion bash"])
def test_what_is_about_no_image(arguments: str, tmp_path: Path) -> None:
    modules = imported(*arguments.split(), home=tmp_path)
    assert not modules & LARGE
    assert not [name for name in modules if name.startswith("soci_cli.targets")]


@pytest.mark.parametrize(
    "arguments",
    [
        "image inspect --format json oci:image",
        "image convert --soci --soci-min-layer-size 0 oci:image oci:converted",
        "ls oci:image",
        "images",
    ],
)
def test_what_is_about_local_images(arguments: str, tmp_path: Path) -> None:
    make_image(tmp_path / "image")
    assert not imported(*arguments.split(), home=tmp_path) & LARGE


def test_grpc_without_what_is_asynchronous(tmp_path: Path) -> None:
    """It comes when it is asked for."""
    pytest.importorskip("grpc")
    listed = "import json, sys; print(json.dumps(sorted(sys.modules)))"
    ours = "import soci_cli.targets.containerd.client; "
    assert "grpc.aio" not in imported(home=tmp_path, program=ours + listed)
    for use in (
        "import grpc; grpc.aio.insecure_channel; ",
        "import grpc.aio; grpc.aio.insecure_channel; ",
        "from grpc import aio; aio.insecure_channel; ",
    ):
        assert "grpc.aio" in imported(home=tmp_path, program=ours + use + listed)
        assert "grpc.aio" in imported(home=tmp_path, program=use + ours + listed)


def test_output_that_is_closed_or_full(tmp_path: Path) -> None:
    """The process ends without Python's own end, but not before all is written."""
    soci = " ".join(SOCI)
    for redirection, status in ((">&-", 0), (">/dev/full", 1), ("| cat", 0)):
        done = subprocess.run(
            ["sh", "-c", f"{soci} --help {redirection}"],
            capture_output=True,
            text=True,
            env=environment(tmp_path),
        )
        assert done.returncode == status, redirection
        assert done.stderr == ("" if status == 0 else "soci: No space left on device\n")
        assert ("Usage" in done.stdout) == (redirection == "| cat")
