"""Running real tools, and the command line beside them."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from pathlib import Path

from tests.support.commands import SOCI, environment
from tests.support.images import Json, blob_json, read_index

CONVERT = ("image", "convert", "--soci", "--soci-min-layer-size", "0")


def run(*command: str | Path, **more: str | Path) -> str:
    """Runs a tool that must succeed; its stdout. `cwd` may be given."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=more.get("cwd")
    )
    assert done.returncode == 0, f"{command[0]}: {done.stderr}"
    return done.stdout


def skopeo(source: str, target: str, *flags: str) -> None:
    run("skopeo", "--insecure-policy", "copy", "--quiet", *flags, source, target)


def soci(*arguments: str | Path, home: Path) -> str:
    """Runs a command that must succeed as a process; its stdout."""
    done = subprocess.run(
        [*SOCI, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=home,
        env=environment(home),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def start(*arguments: str | Path, home: Path) -> subprocess.Popen[str]:
    """Starts a command as a process."""
    return subprocess.Popen(
        [*SOCI, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
        env=environment(home),
    )


def only_image_manifest(place: str | Path, target: Path) -> str:
    """Makes a layout of the one image manifest of a converted image, for tools that want no index.

    Returns the place as umoci writes it.
    """
    skopeo(f"oci:{place}", f"oci:{target}:one", "--override-os=linux", "--override-arch=amd64")
    return f"{target}:one"


def layers_of(root: Path) -> list[Json]:
    """The layers of the first manifest in the image index of a layout."""
    layers: list[Json] = blob_json(root, read_index(root)["manifests"][0])["layers"]
    return layers


def tree(root: Path) -> dict[str, tuple[int, int, int, str]]:
    """Every file below a folder: mode, owner, group, and its content or where it leads."""
    found: dict[str, tuple[int, int, int, str]] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            status = path.lstat()
            content = ""
            if stat.S_ISLNK(status.st_mode):
                content = str(path.readlink())
            elif stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            key = str(path.relative_to(root))
            found[key] = status.st_mode, status.st_uid, status.st_gid, content
    return found
