"""`soci index info`."""

from __future__ import annotations

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, containerd_flags, pass_app
from soci_cli.index.artifacts import INDEX
from soci_cli.oci import canonical, parse_digest


@click.command()
@click.argument("digest")
@containerd_flags(hidden=True)
@common_flags
@pass_app
def command(app: App, digest: str) -> None:
    """Print the SOCI index DIGEST, which is a JSON document."""
    with app.artifacts() as artifacts:
        data = artifacts.read(artifacts.find(parse_digest(digest), INDEX))
    app.output.json(canonical.loads(data, f"SOCI index {digest}"))
