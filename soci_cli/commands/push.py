"""`soci push`."""

from __future__ import annotations

import click

from soci_cli.commands.app import (
    SIZE,
    App,
    common_flags,
    pass_app,
    platform_flags,
    snapshotter_flag,
)
from soci_cli.commands.output import count, human_size
from soci_cli.commands.registry_flags import RegistryFlags, transfer_flags
from soci_cli.index.push import PushedIndex, PushOptions, push
from soci_cli.oci import parse_reference, platforms
from soci_cli.targets.places import DOCKER


@click.command()
@snapshotter_flag
@click.option(
    "--soci-span-size",
    type=SIZE,
    metavar="SIZE",
    help="Uncompressed bytes after which a new span may begin; 4MiB by default.",
)
@click.option(
    "--soci-min-layer-size",
    type=SIZE,
    metavar="SIZE",
    help="Layers smaller than this get no zTOC; 10MiB by default.",
)
@click.option(
    "--existing-index",
    type=click.Choice(["warn", "skip", "allow"]),
    default="warn",
    show_default=True,
    help="When the registry has an index already: push another one and say so, push none, push.",
)
@platform_flags("Push and index")
@click.argument("ref")
@transfer_flags
@common_flags
@pass_app
def command(
    app: App,
    snapshotter: str,
    soci_span_size: int | None,
    soci_min_layer_size: int | None,
    existing_index: str,
    platform_names: tuple[str, ...],
    all_platforms: bool,
    ref: str,
    registry: RegistryFlags,
) -> None:
    """Push the image REF of the local store to its registry, with a SOCI index.

    The index (v1) refers to the image, which stays as it is. A converted image has its index (v2) in it and
    gets no other. The last line of output is the digest of the pushed image.

    \b
    soci push example.com/app:1.0
    soci push --soci-span-size 1MiB --all-platforms example.com/app:1.0
    """
    reference = parse_reference(ref.removeprefix(DOCKER))
    settings = app.settings
    options = PushOptions(
        platforms=app.platforms(platform_names, all_platforms),
        all_platforms=all_platforms,
        span_size=settings.span_size if soci_span_size is None else soci_span_size,
        min_layer_size=(
            settings.min_layer_size if soci_min_layer_size is None else soci_min_layer_size
        ),
        build_tool_identifier=settings.build_tool_identifier,
        optimize_xattrs="xattr" in settings.optimizations,
        concurrency=settings.max_concurrency or 2,
        soci=snapshotter == "soci",
        existing_index=existing_index,
        uploads=app.uploads(registry),
    )
    with (
        app.registries(registry, reference) as registries,
        app.open_store(registries).open(reference) as source,
        registries.target(reference, str(reference)) as target,
        app.output.progress() as observer,
    ):
        result = push(source, target, options, observer)
    for made in result.indexes:
        app.output.note(_line(made))
    if result.left_out:
        names = ", ".join(platforms.format_platform(one) for one in result.left_out)
        app.output.note(f"not pushed, because the local store does not have them: {names}")
    app.output.result(result.descriptor.digest)


def _line(made: PushedIndex) -> str:
    name = platforms.format_platform(made.platform)
    if made.report is None:
        return f"{name}: SOCI v1 index {made.index.digest}, as it was pulled"
    indexed = [layer.ztoc for layer in made.report.layers if layer.ztoc]
    return (
        f"{name}: SOCI v1 index {made.index.digest}; {len(indexed)} of "
        f"{count(len(made.report.layers), 'layer')} indexed, "
        f"{human_size(sum(ztoc.size for ztoc in indexed))} of zTOCs"
    )
