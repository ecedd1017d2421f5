"""`soci image save`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app, stdout_is_terminal
from soci_cli.commands.registry_flags import RegistryFlags, transfer_flags
from soci_cli.errors import UsageError
from soci_cli.oci import parse_reference
from soci_cli.targets import ArchiveTarget, copy_graph


@click.command()
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The file to write; stdout by default.",
)
@click.argument("name")
@transfer_flags
@common_flags
@pass_app
def command(app: App, output: Path | None, name: str, registry: RegistryFlags) -> None:
    """Write an image of the local store into an OCI archive.

    Layers that stayed in a registry are fetched from there.
    """
    app.need_local_store("image save")
    if output is None and stdout_is_terminal():
        raise UsageError("an archive is not written to a terminal; give --output FILE")
    if output is not None:
        _save(app, name, output, registry)
        return
    # An archive is written at several places at once, which a pipe cannot do.
    with tempfile.TemporaryDirectory(prefix="soci-save-") as folder:
        path = Path(folder, "image.tar")
        _save(app, name, path, registry)
        with path.open("rb") as archive:
            shutil.copyfileobj(archive, sys.stdout.buffer, 1 << 20)
        sys.stdout.buffer.flush()


def _save(app: App, name: str, path: Path, registry: RegistryFlags) -> None:
    reference = parse_reference(name)
    with (
        app.registries(registry, reference) as registries,
        app.open_store(registries).open(reference, name) as source,
        ArchiveTarget(path, names=source.names()) as target,
        app.output.progress() as observer,
    ):
        root = source.resolve()
        copy_graph(source, target, root, observer, allow_missing_manifests=True)
        target.tag(root)
