"""Small images for the tests of places."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import digest_of
from soci_cli.oci.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from soci_cli.targets import Source, Target, copy_graph
from tests.support.images import noise

GOLDEN = Path(__file__).parent.parent / "golden" / "images"


def describe(data: bytes, media_type: str = OCI_LAYER) -> Descriptor:
    return Descriptor(media_type, digest_of(data), len(data))


def push_json(target: Target, value: object, media_type: str) -> Descriptor:
    data = json.dumps(value).encode()
    descriptor = describe(data, media_type)
    target.push(descriptor, data)
    return descriptor


def push_image(target: Target, seed: int = 0, layers: int = 2, size: int = 5000) -> Descriptor:
    """Push an image with its blobs and give its manifest, without tagging."""
    parts = []
    for number in range(layers):
        data = noise(seed * 100 + number, size)
        target.push(describe(data), data)
        parts.append(describe(data).to_json())
    config = push_json(target, {"seed": seed, "os": "linux", "architecture": "amd64"}, OCI_CONFIG)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config.to_json(),
        "layers": parts,
    }
    return push_json(target, manifest, OCI_MANIFEST)


def copy(source: Source, target: Target) -> Descriptor:
    """Copies an image from one place to another and tags it there; its root."""
    root = source.resolve()
    copy_graph(source, target, root)
    target.tag(root)
    return root


def push_index(target: Target, children: list[Descriptor]) -> Descriptor:
    manifests = [child.to_json() for child in children]
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    return push_json(target, index, OCI_INDEX)


def index_json(root: Path) -> dict[str, Any]:
    value = json.loads((root / "index.json").read_bytes())
    assert isinstance(value, dict)
    return value


def write_index_json(root: Path, value: object) -> None:
    (root / "index.json").write_text(json.dumps(value))


def ref_names(root: Path) -> list[str | None]:
    key = "org.opencontainers.image.ref.name"
    return [entry.get("annotations", {}).get(key) for entry in index_json(root)["manifests"]]


def temporary_files(root: Path) -> list[str]:
    return [
        name for _, _, names in os.walk(root) for name in names if "ingest" in name or "tmp" in name
    ]
