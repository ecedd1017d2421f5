"""`soci image convert`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.commands.index_flags import ConversionFlags, IndexFlags, conversion_flags, index_flags
from soci_cli.commands.output import human_size
from soci_cli.commands.registry_flags import RegistryFlags, transfer_flags
from soci_cli.errors import StorageError, UsageError
from soci_cli.index.artifacts import CONTAINERD_CONTENT, carried_indexes
from soci_cli.index.convert import ConvertOptions, ConvertResult, convert
from soci_cli.index.image import read_image
from soci_cli.oci import platforms
from soci_cli.targets import LOCAL_CONTENT, Place, Target
from soci_cli.targets.places import CONTAINERD

if TYPE_CHECKING:
    from soci_cli.targets.registry.registries import Registries


@click.command()
@click.option("--soci", is_flag=True, help="Convert to a SOCI image (index manifest v2).")
@click.option("--oci", is_flag=True, help="Accepted for nerdctl's sake: the result is always OCI.")
@index_flags("soci-")
@click.option(
    "--build-tool-identifier",
    metavar="TEXT",
    help="The tool that zTOCs and index name; soci-cli by default.",
)
@conversion_flags
@click.argument("src")
@click.argument("dst")
@transfer_flags
@common_flags
@pass_app
def command(
    app: App,
    soci: bool,
    oci: bool,
    index: IndexFlags,
    build_tool_identifier: str | None,
    conversion: ConversionFlags,
    src: str,
    dst: str,
    registry: RegistryFlags,
) -> None:
    """Make the image at SRC lazily loadable and write it to DST.

    All platforms are copied, the chosen ones get a SOCI index. The last line of output is the digest of
    the converted image. Converting again changes nothing.

    \b
    soci image convert --soci docker://example.com/app docker://example.com/app:2
    soci image convert --soci oci:app oci:app-soci
    soci image convert --soci --all-platforms oci-archive:app.tar app:soci
    """
    if not soci:
        raise UsageError("say what to convert to: --soci")
    options = conversion.options(app, index.options(app, registry, build_tool_identifier))
    run_conversion(app, app.place(src), app.place(dst), options, registry)


def run_conversion(
    app: App,
    source_place: Place,
    target_place: Place,
    options: ConvertOptions,
    registry: RegistryFlags,
) -> None:
    """Converts from place to place and says what came of it. UsageError, and what `convert` raises."""
    if target_place.kind == "containerd":
        check_tagged(target_place.text)
    with (
        app.registries(registry, source_place, target_place) as registries,
        app.open_source(source_place, registries) as source,
        app.open_target(target_place, source.names(), registries) as target,
        app.output.progress() as observer,
    ):
        result = convert(source, target, options, observer)
        if result.changed and target_place.kind in ("containerd", "store"):
            try:
                _list_indexes(app, target, target_place, registries)
            except StorageError as error:
                # The image itself is complete.
                app.output.warn(f"its SOCI indexes could not be listed: {error}")
    if result.changed:
        _summarize(app, result)
    else:
        app.output.note(f"{target_place.text} is converted already; nothing changed")
    app.output.result(result.descriptor.digest)


def _list_indexes(app: App, target: Target, place: Place, registries: Registries) -> None:
    store = CONTAINERD_CONTENT if place.kind == "containerd" else LOCAL_CONTENT
    with app.artifacts(registries) as artifacts:
        # The image keeps them, so nothing is pinned.
        artifacts.record(carried_indexes(read_image(target)), store, pinned=False)


def check_tagged(text: str) -> None:
    """UsageError for a name that containerd cannot give an image."""
    name = text.removeprefix(CONTAINERD)
    if "@" in name or ":" not in name.rpartition("/")[2]:
        raise UsageError(
            f"{name}: an image that is written to containerd needs a name with a tag and without a "
            "digest, such as registry.example/app:1.0"
        )


def _summarize(app: App, result: ConvertResult) -> None:
    for report in result.platforms:
        name = platforms.format_platform(report.platform)
        indexed = [layer for layer in report.layers if layer.ztoc]
        size = sum(layer.ztoc.size for layer in indexed if layer.ztoc)
        app.output.detail(
            f"{name}: {len(indexed)} of {len(report.layers)} layers indexed, "
            f"{sum(layer.spans for layer in indexed)} spans, "
            f"{sum(layer.files for layer in indexed)} files, {human_size(size)} of zTOCs"
        )
