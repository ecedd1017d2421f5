"""Builds an image out of files of this machine, as an OCI layout, with nothing but this package.

    python examples/make_image.py DIR [MEGABYTES]

The image has two layers: one of up to MEGABYTES (default 200) of programs and libraries, and a small one
of settings.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from soci_cli.oci import Descriptor, Manifest, digest_of, encode, platforms
from soci_cli.oci.media_types import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST
from soci_cli.targets import Target, open_target, parse_place


def main() -> None:
    """Builds the image."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    place, budget = sys.argv[1], int(sys.argv[2] if len(sys.argv) > 2 else 200) << 20
    with open_target(parse_place(f"oci:{place}:latest"), Path(place)) as target:
        layers, diff_ids = [], []
        for files in (
            choose([Path("/usr/lib"), Path("/usr/bin"), Path("/usr/share")], budget),
            choose([Path("/etc")], 1 << 20),
        ):
            layer, diff_id = make_layer(files)
            descriptor = Descriptor(OCI_LAYER_GZIP, digest_of(layer), len(layer))
            target.push(descriptor, layer)
            layers.append(descriptor)
            diff_ids.append(diff_id)
        tag_image(target, layers, diff_ids)


def choose(roots: Iterable[Path], budget: int) -> Iterator[Path]:
    """Regular files that everybody may read, up to `budget` bytes of them."""
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_symlink() or not path.is_file():
                    continue
                status = path.stat()
                if status.st_mode & 0o004 and status.st_size <= budget // 4:
                    budget -= status.st_size
                    if budget < 0:
                        return
                    yield path


def make_layer(files: Iterable[Path]) -> tuple[bytes, str]:
    """A gzip layer, and its diff ID: the digest of the archive before compression."""
    plain = hashlib.sha256()
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0) as compressed:

        class Both(io.RawIOBase):
            def writable(self) -> bool:
                return True

            def write(self, data: object) -> int:
                view = memoryview(data)  # type: ignore[arg-type]
                plain.update(view)
                return compressed.write(view)

        with tarfile.open(fileobj=Both(), mode="w|", format=tarfile.GNU_FORMAT) as archive:
            for path in files:
                archive.add(path, arcname=str(path).lstrip("/"), recursive=False)
    return packed.getvalue(), f"sha256:{plain.hexdigest()}"


def tag_image(target: Target, layers: list[Descriptor], diff_ids: list[str]) -> None:
    """Writes config and manifest, and gives the image its name."""
    host = platforms.host_platform()
    config = json.dumps(
        {
            "architecture": host.architecture,
            "os": host.os,
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    ).encode()
    config_descriptor = Descriptor(OCI_CONFIG, digest_of(config), len(config))
    target.push(config_descriptor, config)
    manifest = encode(Manifest(2, OCI_MANIFEST, "", config_descriptor, tuple(layers)))
    root = Descriptor(OCI_MANIFEST, digest_of(manifest), len(manifest))
    target.push(root, manifest)
    target.tag(root)


if __name__ == "__main__":
    main()
