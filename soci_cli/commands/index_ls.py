"""`soci index ls`, also `soci index list`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import click

from soci_cli.commands.app import App
from soci_cli.commands.durations import ago
from soci_cli.commands.flags import common_flags, containerd_flags, format_flag, pass_app
from soci_cli.commands.listing import artifact_json, manifests_of, open_image
from soci_cli.commands.output import columns
from soci_cli.errors import SociError
from soci_cli.index.artifacts import INDEX, version_of
from soci_cli.oci import Platform, platforms
from soci_cli.targets import StoredArtifact
from soci_cli.text import printable

_TITLES = ["DIGEST", "SIZE", "IMAGE REF", "PLATFORM", "MEDIA TYPE", "MANIFEST VERSION", "CREATED"]


@click.command()
@click.option("--ref", metavar="REF", help="List the indexes of the image REF only.")
@click.option(
    "--platform",
    "-p",
    "platform_names",
    multiple=True,
    metavar="OS/ARCH[/VARIANT]",
    help="List the indexes of this platform only; may be repeated.",
)
@format_flag
@containerd_flags(hidden=True)
@common_flags
@pass_app
def command(app: App, ref: str | None, platform_names: tuple[str, ...], format_: str) -> None:
    """List SOCI indexes, the newest first; with --quiet their digests only.

    --format json prints an object a line.
    """
    wanted = app.platforms(platform_names, not platform_names)
    with app.artifacts() as artifacts:
        found = artifacts.all(INDEX)
        if ref is not None:
            with open_image(app, ref) as source:
                manifests = manifests_of(source, wanted)
            found = [one for one in found if one.original_digest in manifests]
        elif wanted:
            found = [one for one in found if _is_for(one.platform, wanted)]
    if app.quiet and format_ == "text":
        for digest in dict.fromkeys(one.digest for one in found):
            app.output.result(digest)
        return
    rows = [_TITLES]
    images = _images(app) if found else {}
    for one in found:
        for name in images.get(one.image_digest, [""]):
            if format_ == "json":
                app.output.json(artifact_json(one) | {"image_ref": name}, indent=None)
            rows.append(_row(one, name))
    if format_ == "text":
        for line in columns(rows):
            app.output.result(line)


def _is_for(name: str, wanted: Sequence[Platform]) -> bool:
    """Whether a platform in the list, whichever of its names stands there, is one of those asked for."""
    with suppress(SociError):
        own = platforms.parse(name)
        return any(platforms.matches(platform, own) for platform in wanted)
    return False


def _row(one: StoredArtifact, name: str) -> list[str]:
    return [
        one.digest,
        str(one.size),
        printable(name),
        printable(one.platform),
        printable(one.media_type),
        version_of(one),
        ago(one.created),
    ]


def _images(app: App) -> dict[str, Sequence[str]]:
    """The names of images by digest, in containerd and in the local store."""
    found: dict[str, list[str]] = {}
    try:
        for image in app.connect().images():
            found.setdefault(image.target.digest, []).append(image.name)
    except SociError as error:
        if app.names_containerd:
            raise
        app.output.note(f"names of images in containerd are left out: {error}")
    for stored in app.store.images():
        names = found.setdefault(stored.descriptor.digest, [])
        if stored.name not in names:
            names.append(stored.name)
    return dict(found)
