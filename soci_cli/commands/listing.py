"""What the commands that list SOCI artifacts share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from soci_cli.commands.app import App
from soci_cli.commands.registry_flags import RegistryFlags
from soci_cli.index.artifacts import version_of
from soci_cli.index.image import read_image
from soci_cli.oci import Platform
from soci_cli.targets import Source, StoredArtifact


@contextmanager
def open_image(app: App, text: str) -> Iterator[Source]:
    """An image of containerd, or another place, whose artifacts are wanted."""
    place = app.place(text, "containerd")
    with (
        app.registries(RegistryFlags(), place) as registries,
        app.open_source(place, registries) as source,
    ):
        yield source


def manifests_of(source: Source, wanted: Sequence[Platform]) -> set[str]:
    """The digests of an image's manifests, of the wanted platforms or of all. NotFoundError."""
    image = read_image(source)
    if wanted:
        return {image.get(platform, source.name).descriptor.digest for platform in wanted}
    return {entry.descriptor.digest for entry in image.manifests if entry.is_image}


def artifact_json(one: StoredArtifact) -> dict[str, Any]:
    """What is known of an artifact, for scripts."""
    return {
        "digest": one.digest,
        "size": one.size,
        "media_type": one.media_type,
        "manifest_version": version_of(one),
        "original_digest": one.original_digest,
        "image_digest": one.image_digest,
        "platform": one.platform,
        "span_size": one.span_size,
        "content_store": one.content_store,
        "namespace": one.namespace,
        "created": one.created.isoformat(),
    }
