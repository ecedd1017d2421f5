"""A containerd with images, and the command line that talks to it."""

from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.support.commands import Done, Soci
from tests.support.images import Json, LayoutMaker, gz, layer_tar, noise, sha256, tar_of
from tests.support.servers.containerd import ContainerdServer

NAMESPACE = "k8s.io"
INDEX_V1 = "application/vnd.amazon.soci.index.v1+json"
LABEL = "containerd.io/gc.ref.content.soci-index"
SMALL = ("--min-layer-size", "0")
NONE = "sha256:" + "0" * 64
FILE = noise(5, 300_000)


@dataclass(frozen=True)
class Image:
    """An image of containerd: its full name, and what it is made of."""

    name: str
    namespace: str
    manifests: list[Json]
    layers: list[Json]


class Machine:
    """A containerd with images, and the command line that talks to it."""

    def __init__(self, server: ContainerdServer, soci: Soci, folder: Path) -> None:
        self.server = server
        self.root = soci.store
        self._soci = soci
        self._folder = folder

    def __call__(self, *arguments: str | Path, namespace: str = NAMESPACE) -> Done:
        flags = ("--address", self.server.address, "--namespace", namespace)
        return self._soci(*flags, *arguments)

    def ctr(self, *arguments: str | Path) -> str:
        return self.server.ctr(*arguments, namespace=NAMESPACE)

    def digests(self, *arguments: str) -> list[str]:
        return self(*arguments, "-q").good().text.split()

    def blobs(self) -> set[str]:
        self.server.collect(NAMESPACE)
        return self.server.blobs(NAMESPACE)

    def labels(self, name: str) -> dict[str, str]:
        for line in self.ctr("images", "ls", f"name=={name}").splitlines()[1:]:
            return dict(pair.split("=", 1) for pair in line.split()[-1].split(",") if "=" in pair)
        return {}

    def load(
        self, name: str, architectures: Sequence[str] = ("amd64",), namespace: str = NAMESPACE
    ) -> Image:
        """Imports an image of two layers for each platform, of which none is like another image's."""
        maker = LayoutMaker(self._folder / re.sub(r"\W", "-", name))
        seed = int(sha256(name.encode())[7:13], 16)
        manifests, every = [], []
        for number, architecture in enumerate(architectures):
            layers = [
                gz(layer_tar(seed + number)),
                gz(tar_of({"a/b": FILE, f"name-{seed}-{number}": b"x" * number})),
            ]
            config = maker.config(
                [sha256(gzip.decompress(layer)) for layer in layers], architecture=architecture
            )
            blobs = [maker.blob(layer) for layer in layers]
            every += blobs
            manifests.append(
                maker.manifest(blobs, config)
                | {"platform": {"os": "linux", "architecture": architecture}}
            )
        root = maker.index(manifests) if len(manifests) > 1 else manifests[0]
        tag = {"io.containerd.image.name": name}
        maker.tag(root, name.rpartition(":")[2], **tag)
        archive = self._folder / "import.tar"
        subprocess.run(["tar", "-cf", archive, "-C", maker.root, "."], check=True)
        importing = ("images", "import", "--no-unpack", "--all-platforms")
        self.server.ctr(*importing, archive, namespace=namespace)
        return Image(name, namespace, manifests, every)


def referrers(host: str, repository: str, digest: str) -> list[Json]:
    """The list under the fallback tag; docker-registry has no referrers API."""
    url = f"http://{host}/v2/{repository}/manifests/{digest.replace(':', '-')}"
    accept = {"Accept": "application/vnd.oci.image.index.v1+json"}
    answer = requests.get(url, headers=accept, timeout=10)
    if answer.status_code == 404:
        return []
    found: list[Json] = answer.json()["manifests"]
    return found


# nerdctl, as its pkg/snapshotterutil/sociutil.go runs `soci`
