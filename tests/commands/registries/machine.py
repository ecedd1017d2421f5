"""Images in the embedded registry, and what it was asked for."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import requests

from soci_cli.targets import Layout
from soci_cli.trial_registry import RegistryServer
from tests.support.commands import Soci
from tests.support.images import (
    Json,
    LayoutMaker,
    check_complete,
    gz,
    layer_tar,
)

CONVERT = ("image", "convert", "--soci", "--soci-min-layer-size", "0")
PUSH = ("push", "--soci-min-layer-size", "0")
INDEX_V1 = "application/vnd.amazon.soci.index.v1+json"


class Server:
    """The embedded registry, what it was asked, and an image in it."""

    def __init__(self, running: RegistryServer, log: list[tuple[str, str, int, int, int]]) -> None:
        self.host = running.address
        self.log = log
        self.close = running.close

    def forget(self) -> None:
        """Begins the log anew. A request is written down a moment after its answer is sent."""
        time.sleep(0.05)
        self.log.clear()

    def seen(self, method: str, pattern: str) -> list[str]:
        """The paths of requests that were answered well."""
        return [
            path
            for verb, path, status, _, _ in self.log
            if verb == method and re.search(pattern, path) and status < 300
        ]

    def tags(self, repository: str) -> list[str]:
        answer = requests.get(f"http://{self.host}/v2/{repository}/tags/list", timeout=10)
        names: list[str] = answer.json().get("tags") or []
        return sorted(names)

    def referrers(self, repository: str, digest: str) -> list[Json]:
        answer = requests.get(f"http://{self.host}/v2/{repository}/referrers/{digest}", timeout=10)
        found: list[Json] = answer.json()["manifests"]
        return found


def copy(soci: Soci, source: str | Path, place: str) -> None:
    """Brings an image into a registry by way of the store: `push` without an index."""
    name = place.removeprefix("docker://")
    soci("image", "load", "-i", str(source), "--name", name).good()
    soci("push", "--snapshotter", "overlayfs", name).good()
    soci("rmi", name).good()


def store_blobs(soci: Soci) -> set[str]:
    return {path.name for path in soci.store.glob("blobs/sha256/*")}


def layers_of(image: Path) -> list[str]:
    with Layout(image) as layout:
        root = layout.resolve()
    manifest = json.loads(layout.blob_path(root.digest).read_bytes())
    return [layer["digest"] for layer in manifest["layers"]]


def check_complete_remote(soci: Soci, place: str) -> dict[str, bytes]:
    return check_complete(place, store=soci.store)


def converted(soci: Soci, app: str) -> str:
    soci(*CONVERT, f"docker://{app}", f"docker://{app}-soci").good()
    return f"{app}-soci"


def multi_platform(tmp_path: Path) -> Path:
    """An image for two platforms, with an attestation."""
    maker = LayoutMaker(tmp_path / "multi")
    entries = []
    for number, architecture in enumerate(("amd64", "s390x")):
        layer = maker.blob(gz(layer_tar(20 + number)))
        manifest = maker.manifest([layer], maker.config(architecture=architecture))
        entries.append({**manifest, "platform": {"os": "linux", "architecture": architecture}})
    note = maker.manifest([maker.document({"ok": 1}, "application/vnd.in-toto+json")])
    entries.append(
        {
            **note,
            "platform": {"os": "unknown", "architecture": "unknown"},
            "annotations": {
                "vnd.docker.reference.digest": entries[0]["digest"],
                "vnd.docker.reference.type": "attestation-manifest",
            },
        }
    )
    maker.tag(maker.index(entries))
    return maker.root
