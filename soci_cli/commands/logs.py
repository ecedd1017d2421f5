"""`soci logs`."""

from __future__ import annotations

import sys

import click

from soci_cli.commands.app import App
from soci_cli.commands.containers import own_containers
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.run.containers import output_of
from soci_cli.run.logs import read_log


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on until the container has ended.")
@click.argument("container")
@common_flags
@pass_app
def command(app: App, follow: bool, container: str) -> None:
    """Print what a container in the background (soci run -d) has written.

    What it wrote to stderr goes to stderr.
    """
    folder, _ = own_containers().find(container)
    for line in read_log(output_of(folder), folder.is_alive if follow else None):
        stream = sys.stderr if line.stream == "stderr" else sys.stdout
        stream.buffer.write(line.data)
        stream.flush()
