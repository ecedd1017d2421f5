"""The images that bare names mean: those of the local store, or those of containerd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from soci_cli.oci import parse_reference

if TYPE_CHECKING:
    from soci_cli.oci import Descriptor
    from soci_cli.targets import Source, Store, Sweep
    from soci_cli.targets.containerd.client import Containerd, ContainerdImage
    from soci_cli.targets.containerd.place import ContainerdSource


class Images(Protocol):
    """Images with names. Raises NotFoundError for a name that is not there."""

    def check(self, name: str) -> None:
        """UsageError for what can be no name here."""

    def all(self) -> list[tuple[str, Descriptor]]:
        """Full names with their manifests or indexes, sorted by name."""

    def open(self, name: str) -> Source:
        """An image for reading."""

    def tag(self, name: str, new: str) -> None:
        """Gives an image a second name, which meant another one before, or none."""

    def remove(self, name: str) -> tuple[str, Sweep]:
        """Forgets a name; its full form, and what went with it as far as that is known."""


class StoreImages:
    """The images of the local store. Implements `Images`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def check(self, name: str) -> None:
        """See `Images.check`."""
        parse_reference(name)

    def all(self) -> list[tuple[str, Descriptor]]:
        """See `Images.all`."""
        return [(image.name, image.descriptor) for image in self._store.images()]

    def open(self, name: str) -> Source:
        """See `Images.open`."""
        return self._store.open(parse_reference(name))

    def tag(self, name: str, new: str) -> None:
        """See `Images.tag`."""
        self._store.tag_image(parse_reference(name), parse_reference(new))

    def remove(self, name: str) -> tuple[str, Sweep]:
        """See `Images.remove`."""
        reference = parse_reference(name)
        return str(reference), self._store.remove(reference)


class ContainerdImages:
    """The images of one namespace of containerd. Implements `Images`."""

    def __init__(self, client: Containerd) -> None:
        self._client = client

    def check(self, name: str) -> None:
        """See `Images.check`: others give names such as no user writes."""

    def all(self) -> list[tuple[str, Descriptor]]:
        """See `Images.all`."""
        return [(image.name, image.target) for image in self._client.images()]

    def open(self, name: str) -> ContainerdSource:
        """See `Images.open`."""
        from soci_cli.targets.containerd.place import ContainerdSource

        return ContainerdSource(self._client, name, name)

    def tag(self, name: str, new: str) -> None:
        """See `Images.tag`. The labels go along: they keep what belongs to the image."""
        image = self._find(name)
        self._client.put_image(str(parse_reference(new)), image.target, image.labels)

    def remove(self, name: str) -> tuple[str, Sweep]:
        """See `Images.remove`. containerd removes what nothing else needs, and does not say what."""
        from soci_cli.targets import Sweep

        full = self._find(name).name
        self._client.delete_image(full)
        return full, Sweep()

    def _find(self, name: str) -> ContainerdImage:
        return self.open(name).image()
