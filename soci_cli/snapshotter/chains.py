"""Finding the image of a layer that comes without labels: by its chain ID, in containerd's content store.

Before containerd asks for the first layer, it has fetched the image's manifest, its config and, as one
more manifest, its SOCI index. So of the manifests that are there, those whose config gives this chain ID
have the layer. Where they came from stands in a label of containerd's, without the registry's port.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from soci_cli.errors import SociError
from soci_cli.index.image import chain_ids, diff_ids_of
from soci_cli.index.model import INDEX_DIGEST
from soci_cli.oci import Descriptor, parse_manifest, parse_reference
from soci_cli.targets import read_blob
from soci_cli.targets.containerd.client import Containerd, ContentInfo
from soci_cli.targets.containerd.place import ContainerdSource
from soci_cli.targets.protocol import describe_manifest
from soci_cli.targets.registry.hosts import configured_domains, is_loopback
from soci_cli.targets.registry.options import RegistryOptions

_CONFIG = "containerd.io/gc.ref.content.config"
_SOURCE = "containerd.io/distribution.source."
_DEFAULT_PORTS = ("", ":80")
_MOST = 4096  # manifests that are remembered


@dataclass(frozen=True)
class TracedLayer:
    """A layer, the manifest that has it, and where it may be had from, the likeliest repository first.

    `chain` are all layers of the manifest by their chain IDs.
    """

    manifest: str
    layer: Descriptor
    chain: Mapping[str, Descriptor]
    repositories: tuple[str, ...]


@dataclass(frozen=True)
class _Known:
    """What the chain IDs of a manifest's layers are; it has none without a SOCI index."""

    chain: Mapping[str, Descriptor]


class Chains:
    """Finds layers by chain ID. Several threads may use it."""

    def __init__(self, registry: RegistryOptions, environ: Mapping[str, str]) -> None:
        self._registry = registry
        self._environ = environ
        self._mutex = threading.Lock()
        self._manifests: dict[str, _Known] = {}
        self._domains: dict[str, None] = {}  # those of images that were seen, the last one last

    def note(self, domain: str) -> None:
        """A registry, such as `example.com:5000`, has images that are pulled here."""
        with self._mutex:
            self._domains.pop(domain, None)
            self._domains[domain] = None

    def find(self, client: Containerd, target: str) -> TracedLayer | None:
        """The layer with the chain ID `target`, in the namespace of `client`.

        None where containerd has no manifest with a SOCI index v2 for it, or has fetched the layer already:
        then there is nothing to save. Raises what asking containerd raises.
        """
        source = ContainerdSource(client, "any.example/any", "containerd")
        manifests = sorted(
            client.list_content(f'labels."{_CONFIG}"'),
            key=lambda info: info.created.timestamp() if info.created else 0.0,
            reverse=True,
        )
        for info in manifests:
            known = self._known(source, info)
            layer = known.chain.get(target)
            if layer is None or source.exists(layer):
                continue
            repositories = tuple(self._repositories(client, info))
            if repositories:
                return TracedLayer(info.digest, layer, known.chain, repositories)
        return None

    def _known(self, source: ContainerdSource, info: ContentInfo) -> _Known:
        with self._mutex:
            known = self._manifests.get(info.digest)
        if known is None:
            try:
                known = _read(source, info)
            except SociError:  # its config is not there, say
                return _Known({})
            with self._mutex:
                if len(self._manifests) > _MOST:
                    self._manifests.clear()
                self._manifests[info.digest] = known
        return known

    def _repositories(self, client: Containerd, info: ContentInfo) -> Iterator[str]:
        """Where a manifest came from, as HOST[:PORT]/REPOSITORY, with all ports that may be meant."""
        sources = {
            key.removeprefix(_SOURCE): value.split(",")
            for key, value in info.labels.items()
            if key.startswith(_SOURCE)
        }
        domains: list[str] = []
        for image in client.images() if sources else ():
            with suppress(SociError):
                domains.append(parse_reference(image.name).domain)
        with self._mutex:
            domains += reversed(self._domains)
        domains += configured_domains(self._registry, self._environ)
        for host, repositories in sources.items():
            ports = [one for one in domains if one.rpartition(":")[0] == host or one == host]
            default = _DEFAULT_PORTS[is_loopback(host)]
            for domain in dict.fromkeys([*ports, f"{host}{default}"]):
                for repository in repositories:
                    with suppress(SociError):
                        yield parse_reference(f"{domain}/{repository}").name


def _read(source: ContainerdSource, info: ContentInfo) -> _Known:
    descriptor = describe_manifest(source, info.digest, info.size)
    what = f"manifest {info.digest} of containerd"
    manifest = parse_manifest(read_blob(source, descriptor), what, descriptor.media_type)
    if INDEX_DIGEST not in manifest.annotations:
        return _Known({})
    ids = chain_ids(diff_ids_of(source, manifest))
    return _Known({one: layer for one, layer in zip(ids, manifest.layers, strict=True) if one})
