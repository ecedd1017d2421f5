"""A small image with a shell and the usual programs, made of this machine's own."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.images import LayoutMaker, gz, run_convert, sha256
from tests.support.machine import need

PROGRAMS = (
    "sh cat sleep id env ls stty hostname touch chown mkdir rm kill head wc tty mount nproc true"
)
PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\n"
GROUP = "root:x:0:\napp:x:1001:\nextra:x:2000:app\nother:x:3000:\n"


def make_shell_image(
    folder: Path, config: Mapping[str, Any] | None = None, links: Mapping[str, str] | None = None
) -> Path:
    """An indexed layout of two layers; `config` is what its containers are like.

    `links` are symbolic ones, in place of files.
    """
    made = LayoutMaker(folder / "plain")
    layers = [_programs(), _files(links or {})]
    value = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/usr/bin:/bin", "FROM_IMAGE=image"], **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": [sha256(layer) for layer in layers]},
    }
    described = made.document(value, "application/vnd.oci.image.config.v1+json")
    made.tag(made.manifest([made.blob(gz(layer, 1)) for layer in layers], described))
    run_convert(made.root, folder / "layout")
    return folder / "layout"


def _programs() -> bytes:
    """Programs and the libraries that they need, where each is looked for."""
    paths: dict[str, Path] = {}
    for name in PROGRAMS.split():
        program = need(name)
        paths[f"bin/{name}"] = Path(program)
        done = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
        for library in re.findall(r"(/\S+) \(0x", done.stdout):
            paths[library.lstrip("/")] = Path(library)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, path in sorted(paths.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mode = path.stat().st_size, 0o755
            with path.open("rb") as file:
                tar.addfile(info, file)
        for name in ("tmp", "root", "home", "dev", "proc", "sys"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(info)
        for name in ("bin/plain", "etc/secret"):
            info = tarfile.TarInfo(name)
            info.mode = 0o600
            tar.addfile(info)
    return out.getvalue()


def _files(links: Mapping[str, str]) -> bytes:
    files = {"etc/passwd": PASSWD, "etc/group": GROUP, "data/file": "data\n"}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, text in files.items():
            if name not in links:
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(text), 0o644
                tar.addfile(info, io.BytesIO(text.encode()))
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return out.getvalue()
