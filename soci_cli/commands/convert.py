"""`soci convert`: `soci image convert --soci` with the reference's flags."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, containerd_flags, pass_app
from soci_cli.commands.image_convert import run_conversion
from soci_cli.commands.index_flags import ConversionFlags, IndexFlags, conversion_flags, index_flags
from soci_cli.commands.registry_flags import RegistryFlags, transfer_flags
from soci_cli.errors import NotFoundError, UsageError
from soci_cli.targets import Place
from soci_cli.targets.places import place_of_file


@click.command()
@index_flags()
@click.option(
    "--standalone", is_flag=True, help="SRC and DST are OCI layouts on disk; needs no containerd."
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["oci-archive", "oci-dir"]),
    default="oci-archive",
    show_default=True,
    help="What --standalone writes.",
)
@conversion_flags
@click.argument("src")
@click.argument("dst")
@transfer_flags
@containerd_flags(hidden=True)
@common_flags
@pass_app
def command(
    app: App,
    index: IndexFlags,
    standalone: bool,
    format_: Literal["oci-archive", "oci-dir"],
    conversion: ConversionFlags,
    src: str,
    dst: str,
    registry: RegistryFlags,
) -> None:
    """Make the image SRC of containerd lazily loadable and name the result DST.

    Other places may be given too, as for `soci image convert --soci`, which does the same. The last line
    of output is the digest of the converted image.

    \b
    soci convert registry.example/app:1.0 registry.example/app:1.0-soci
    soci convert --standalone app.tar app-soci.tar
    """
    if standalone:
        source, target = _on_disk(src), _output(dst, format_)
    else:
        source, target = app.place(src, "containerd"), app.place(dst, "containerd")
    options = conversion.options(app, index.options(app, registry))
    run_conversion(app, source, target, options, registry)


def _on_disk(text: str) -> Place:
    path = Path(text)
    if not text or not path.exists():
        raise NotFoundError(f"{text or repr(text)}: no such file or folder")
    return place_of_file(path, None, text)


def _output(text: str, format_: Literal["oci-archive", "oci-dir"]) -> Place:
    if not text:
        raise UsageError("the output is empty; give a path")
    return Place("oci" if format_ == "oci-dir" else "oci-archive", Path(text), None, None, text)
