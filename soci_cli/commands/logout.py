"""`soci logout`."""

from __future__ import annotations

import os

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.oci.references import DOCKER_HUB


@click.command()
@click.argument("server", default=DOCKER_HUB)
@common_flags
@pass_app
def command(app: App, server: str) -> None:
    """Forget the credentials of the registry SERVER, Docker Hub without one."""
    from soci_cli.targets.registry.credentials import erase_credentials, registry_domain

    domain = registry_domain(server)
    if erase_credentials(domain, os.environ):
        app.output.result(f"Removed login credentials for {domain}")
    else:
        app.output.result(f"Not logged in to {domain}")
