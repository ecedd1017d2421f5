"""`soci ztoc ls`, also `soci ztoc list`."""

from __future__ import annotations

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, containerd_flags, format_flag, pass_app
from soci_cli.commands.listing import artifact_json, manifests_of, open_image
from soci_cli.commands.output import columns
from soci_cli.errors import NotFoundError
from soci_cli.index.artifacts import INDEX, ZTOC, Artifacts
from soci_cli.index.model import ztocs_by_layer
from soci_cli.targets import StoredArtifact


@click.command()
@click.option("--ztoc-digest", metavar="DIGEST", help="List this zTOC only.")
@click.option("--image-ref", metavar="REF", help="List the zTOCs of the image REF only.")
@format_flag
@containerd_flags(hidden=True)
@common_flags
@pass_app
def command(app: App, ztoc_digest: str | None, image_ref: str | None, format_: str) -> None:
    """List zTOCs; with --quiet their digests only.

    --format json prints an object a line.
    """
    with app.artifacts() as artifacts:
        if image_ref is None:
            found = sorted(artifacts.all(ZTOC), key=lambda one: one.digest)
        else:
            with open_image(app, image_ref) as source:
                manifests = manifests_of(source, ())
            found = _of_image(artifacts, manifests)
    if ztoc_digest is not None:
        found = [one for one in found if one.digest == ztoc_digest]
        if image_ref is not None and not found:
            raise NotFoundError(f"{image_ref} has no zTOC {ztoc_digest}; see `soci index ls`")
    if app.quiet and format_ == "text":
        for digest in dict.fromkeys(one.digest for one in found):
            app.output.result(digest)
    elif format_ == "json":
        for one in found:
            app.output.json(artifact_json(one), indent=None)
    else:
        rows = [[one.digest, str(one.size), one.original_digest] for one in found]
        for line in columns([["DIGEST", "SIZE", "LAYER DIGEST"], *rows]):
            app.output.result(line)


def _of_image(artifacts: Artifacts, manifests: set[str]) -> list[StoredArtifact]:
    """The zTOCs of an image, in the order of its layers."""
    listed = artifacts.all(ZTOC)
    found: dict[tuple[str, str], StoredArtifact] = {}
    for index in artifacts.all(INDEX):
        place = artifacts.place(index)
        if index.original_digest not in manifests or not place.exists(index.descriptor):
            continue
        for ztoc in ztocs_by_layer(artifacts.read_index(index)).values():
            for one in listed:
                if one.digest == ztoc.digest and one.content_store == index.content_store:
                    found.setdefault((one.digest, one.original_digest), one)
    return list(found.values())
