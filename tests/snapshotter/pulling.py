"""What containerd's clients do to pull an image lazily, by labels: containerd 2.4.2, and nerdctl before it.

The sequence and the labels are those of containerd's unpacker (core/unpack/unpacker.go) with the handler of
nerdctl's pkg/imgutil: a Prepare a layer, from the lowest; after ALREADY_EXISTS a List by label and parent
and a Stat of the chain ID.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from soci_cli.errors import AlreadyExistsError
from soci_cli.snapshotter.metadata import Kind
from tests.integration.published import Published
from tests.support.images import blob_json, read_index

PREFIX = "containerd.io/snapshot/"
REF = "containerd.io/snapshot.ref"


def manifest_of(image: Published) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The digest of an image's manifest, the manifest, and the config."""
    (entry,) = json.loads((image.root / "index.json").read_bytes())["manifests"]
    if "manifests" in read_index(image.root):
        entry = read_index(image.root)["manifests"][0]
    manifest = blob_json(image.root, entry)
    return entry["digest"], manifest, blob_json(image.root, manifest["config"])


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain ID of each layer (OCI image spec, config.md)."""
    found: list[str] = []
    for one in diff_ids:
        text = f"{found[-1]} {one}" if found else one
        found.append(f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" if found else one)
    return found


def labels_of(image: Published, number: int, **more: str) -> dict[str, str]:
    """The labels of the Prepare for a layer."""
    digest, manifest, config = manifest_of(image)
    layers = manifest["layers"]
    return {
        REF: chain_ids(config["rootfs"]["diff_ids"])[number],
        f"{PREFIX}cri.image-ref": f"{image.host}/{image.repository}:soci",
        f"{PREFIX}cri.manifest-digest": digest,
        f"{PREFIX}cri.layer-digest": layers[number]["digest"],
        f"{PREFIX}cri.image-layers": ",".join(one["digest"] for one in layers[number:]),
        f"{PREFIX}remote/soci.size": str(layers[number]["size"]),
        **more,
    }


def pull(api: Any, image: Published, **more: str) -> list[str]:
    """Pulls an image, all of whose layers must be had lazily; the chain IDs."""
    _, manifest, config = manifest_of(image)
    chain = chain_ids(config["rootfs"]["diff_ids"])
    parent = ""
    for number in range(len(manifest["layers"])):
        target = chain[number]
        if not prepare(api, f"extract-{number} {target}", parent, labels_of(image, number, **more)):
            raise AssertionError(f"layer {number} is left to the client")
        found = list(api.walk([f'labels."{REF}"=={target},parent=="{parent}"']))
        # containerd passes over those that are not committed, such as what another pull left.
        assert [one.name for one in found if one.kind is Kind.COMMITTED] == [target]
        assert api.stat(target).parent == parent
        parent = target
    return chain


def prepare(api: Any, key: str, parent: str, labels: Mapping[str, str]) -> bool:
    """Whether a layer need not be fetched by the client."""
    try:
        api.prepare(key, parent, labels)
    except AlreadyExistsError:
        return True
    return False
