"""What every command shares: settings, the store, containerd, registries, output.

Modules are imported where they are used: starting stays quick, and a command pays for what it needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from soci_cli.commands.output import Output
from soci_cli.errors import UsageError

if TYPE_CHECKING:
    from soci_cli.commands.images import Images
    from soci_cli.commands.registry_flags import RegistryFlags
    from soci_cli.index.artifacts import Artifacts
    from soci_cli.lazy.mounts.client import HostFinder
    from soci_cli.oci import Platform, Reference
    from soci_cli.settings import Settings
    from soci_cli.targets import Place, Source, Store, Target
    from soci_cli.targets.containerd.client import Containerd
    from soci_cli.targets.registry.options import RegistryOptions
    from soci_cli.targets.registry.registries import Registries

_DEFAULT_NAMESPACE = "default"


@dataclass
class App:
    """The state of one run of the command line.

    `ahead` finds the process for a mount, begun before the command line was read.
    """

    quiet: bool = False
    debug: bool = False
    root_flag: str | None = None
    address: str | None = None
    namespace_flag: str | None = None
    timeout: float | None = None
    content_store: str | None = None
    output: Output = field(default_factory=Output)
    ahead: HostFinder | None = None
    _settings: Settings | None = None
    _containerd: Containerd | None = None

    def close(self) -> None:
        """End the connections that there are."""
        if self.ahead is not None:
            self.ahead.close()
        client, self._containerd = self._containerd, None
        if client is not None:
            client.close()

    @property
    def settings(self) -> Settings:
        """The settings of the files; read once, and what is odd in them is said once."""
        if self._settings is None:
            from soci_cli.settings import load_settings

            self._settings, warnings = load_settings(os.environ)
            for warning in warnings:
                self.output.warn(warning)
        return self._settings

    @property
    def root(self) -> Path:
        """The folder of the local store."""
        from soci_cli.settings import store_root

        return _beside_the_reference(store_root(self.settings, os.environ, self.root_flag))

    @property
    def store(self) -> Store:
        """The local store, for commands without flags about registries."""
        return self.open_store(None)

    def open_store(self, registries: Registries | None) -> Store:
        """The local store, whose layers that stayed in a registry are read by way of `registries`."""
        from soci_cli.targets.places import local_store

        return local_store(self.root, registries)

    @contextmanager
    def registries(self, flags: RegistryFlags, *images: Reference | Place) -> Iterator[Registries]:
        """The registries of a command; --user is for the one that `images` are in."""
        from soci_cli.targets.registry.registries import Registries

        with Registries(self.registry_options(flags, *images), os.environ) as registries:
            yield registries

    def registry_options(self, flags: RegistryFlags, *images: Reference | Place) -> RegistryOptions:
        """How the registries of a command are talked to; see `registries`."""
        from soci_cli.oci.references import Reference

        references = [
            image if isinstance(image, Reference) else image.reference
            for image in images
            if isinstance(image, Reference) or image.kind == "docker"
        ]
        domains = [one.domain for one in references if one is not None]
        return flags.options(domains, self.settings.redirect_hosts)

    @property
    def names_containerd(self) -> bool:
        """Whether a flag or a variable says which containerd is meant."""
        return self.address is not None or self.namespace_flag is not None

    @property
    def namespace(self) -> str:
        """The namespace of containerd."""
        return self.namespace_flag or _DEFAULT_NAMESPACE

    def connect(self) -> Containerd:
        """The connection to containerd, opened once. UsageError when packages for it are missing."""
        if self._containerd is None:
            from soci_cli.targets.places import connect

            self._containerd = connect(self.address, self.namespace, self.timeout)
        return self._containerd

    @property
    def images(self) -> Images:
        """The images that bare names mean: containerd's where flags name one, else the local store's."""
        from soci_cli.commands.images import ContainerdImages, StoreImages

        return (
            ContainerdImages(self.connect()) if self.names_containerd else StoreImages(self.store)
        )

    def need_local_store(self, command: str) -> None:
        """UsageError for a command that is for the local store alone, where flags name a containerd."""
        if self.names_containerd:
            raise UsageError(
                f"{command} is for images of the local store, not of containerd; leave out --address and "
                "--namespace (CONTAINERD_ADDRESS, CONTAINERD_NAMESPACE)"
            )

    def place(self, text: str, names: Literal["store", "containerd"] | None = None) -> Place:
        """The place that a user wrote. A bare name is in containerd where flags name one, else `names`."""
        from soci_cli.targets.places import parse_place

        return parse_place(text, "containerd" if self.names_containerd else names or "store")

    def open_source(self, place: Place, registries: Registries) -> Source:
        """A place for reading."""
        from soci_cli.targets.places import open_source

        client = self.connect() if place.kind == "containerd" else None
        return open_source(place, self.root, registries, client)

    def open_containerd(self, name: str) -> Source:
        """The image `name` of containerd, for reading."""
        from soci_cli.targets.places import open_source, parse_place

        return open_source(parse_place(name, "containerd"), self.root, None, self.connect())

    def open_target(
        self, place: Place, names: dict[str, str] | None, registries: Registries
    ) -> Target:
        """A place for writing; `names` as for `targets.open_target`."""
        from soci_cli.targets.places import open_target

        client = self.connect() if place.kind == "containerd" else None
        return open_target(place, self.root, names, registries, client)

    def open_image_target(self, name: str, registries: Registries) -> Target:
        """The image `name` for writing: of containerd where flags name one, else of the local store."""
        from soci_cli.oci.references import parse_reference
        from soci_cli.targets.places import parse_place

        if self.names_containerd:
            return self.open_target(parse_place(f"containerd:{name}"), None, registries)
        return self.open_store(registries).open(parse_reference(name))

    def artifacts(self, registries: Registries | None = None) -> Artifacts:
        """The SOCI artifacts that are known; close it."""
        from soci_cli.index.artifacts import Artifacts

        return Artifacts(self.open_store(registries), self.namespace, self.connect)

    def downloads(self, flags: RegistryFlags) -> int:
        """How many blobs to download at a time."""
        return flags.max_downloads or self.settings.max_concurrent_blobs

    def uploads(self, flags: RegistryFlags) -> int:
        """How many blobs to upload at a time."""
        return flags.max_uploads or self.settings.max_concurrent_uploads

    def platforms(self, names: Sequence[str], all_platforms: bool) -> tuple[Platform, ...]:
        """The platforms that flags or settings name; none when all are wanted."""
        from soci_cli.oci import platforms

        # The reference splits at commas.
        given = [part for name in names for part in name.split(",")]
        chosen = given or (() if all_platforms else self.settings.platforms)
        return tuple(platforms.parse(name) for name in chosen)


def _beside_the_reference(root: Path) -> Path:
    """The store's folder; one of its own where the reference keeps its files, as scripts name that."""
    if (root / "artifacts.db").is_file() and not (root / "oci-layout").exists():
        return root / "soci-cli"
    return root
