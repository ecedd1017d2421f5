"""`soci image ls`, also `soci images`."""

from __future__ import annotations

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, format_flag, pass_app
from soci_cli.commands.output import columns, human_size
from soci_cli.errors import SociError
from soci_cli.index.inspect import summarize
from soci_cli.oci import familiar, parse_reference
from soci_cli.text import printable


@click.command()
@click.option("--no-trunc", is_flag=True, help="Show whole digests.")
@format_flag
@click.argument("names", nargs=-1, metavar="[NAME]...")
@common_flags
@pass_app
def command(app: App, no_trunc: bool, format_: str, names: tuple[str, ...]) -> None:
    """List the images of the local store; with --quiet their digests only.

    With --address or --namespace, those of containerd.

    --format json prints an object a line: name, digest, platforms, soci ("v1", "v2" or ""), size in
    bytes, and error for an image that cannot be read.
    """
    wanted = {full for name in names for full in (name, str(parse_reference(name)))}
    rows = [["NAME", "DIGEST", "PLATFORMS", "SOCI", "SIZE"]]
    images = app.images
    for name, descriptor in images.all():
        if wanted and name not in wanted:
            continue
        digest = descriptor.digest
        if app.quiet and format_ == "text":
            app.output.result(digest)
            continue
        platforms: list[str] = []
        soci, size, problem = "", 0, ""
        try:
            with images.open(name) as source:
                summary = summarize(source)
            platforms, soci, size = summary.platforms, summary.soci, summary.size
        except SociError as error:
            problem = str(error)
        if format_ == "json":
            line = {
                "name": name,
                "digest": digest,
                "platforms": platforms,
                "soci": soci,
                "size": size,
            }
            app.output.json(line | ({"error": problem} if problem else {}), indent=None)
        else:
            rows.append(
                [
                    _short(name),
                    digest if no_trunc else digest[:19],
                    "damaged" if problem else ", ".join(platforms),
                    soci or "-",
                    human_size(size),
                ]
            )
    if format_ == "text" and not app.quiet:
        for row in columns(rows):
            app.output.result(row)


def _short(name: str) -> str:
    """A name as people write it; Kubernetes has names in containerd that are none of those."""
    try:
        return familiar(parse_reference(name))
    except SociError:
        return printable(name)
