"""`soci push`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import (
    SIZE,
    common_flags,
    containerd_flags,
    pass_app,
    platform_flags,
    snapshotter_flag,
)
from soci_cli.commands.output import count, human_size
from soci_cli.commands.registry_flags import RegistryFlags, transfer_flags
from soci_cli.errors import NotFoundError, SociError
from soci_cli.index.push import PushedIndex, PushOptions, push, push_artifacts
from soci_cli.oci import Reference, parse_reference, platforms
from soci_cli.targets.places import CONTAINERD, DOCKER


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
# Flags that the reference takes and makes no use of.
@click.option("--refresh", hidden=True, expose_value=False)
@click.option("--http-dump", is_flag=True, hidden=True, expose_value=False)
@click.option("--http-trace", is_flag=True, hidden=True, expose_value=False)
@click.argument("ref")
@transfer_flags
@containerd_flags(hidden=True)
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

    When REF is an image of containerd (--address or --namespace was given, or the local store does not
    have it), only its newest SOCI index v1 is pushed, as `soci create` made it; the digest is printed.
    Other tools push the image itself, and a converted image with its index.

    \b
    soci push example.com/app:1.0
    soci push --soci-span-size 1MiB --all-platforms example.com/app:1.0
    """
    reference = parse_reference(ref.removeprefix(DOCKER).removeprefix(CONTAINERD))
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
    if _is_in_containerd(app, ref, reference):
        _push_artifacts(app, ref.removeprefix(CONTAINERD), options, registry)
    else:
        _push_image(app, reference, options, registry)


def _push_image(
    app: App, reference: Reference, options: PushOptions, registry: RegistryFlags
) -> None:
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


def _is_in_containerd(app: App, ref: str, reference: Reference) -> bool:
    if ref.startswith(DOCKER):
        return False
    if ref.startswith(CONTAINERD) or app.names_containerd:
        return True
    with app.store.open(reference) as place:
        try:
            place.resolve()
            return False
        except NotFoundError:
            pass
    try:
        with app.open_containerd(ref) as source:
            source.resolve()
            return True
    except SociError:
        return False


def _push_artifacts(app: App, name: str, options: PushOptions, registry: RegistryFlags) -> None:
    reference = parse_reference(name)
    # nerdctl passes on the folders where hosts.toml files usually are, whether or not they are there.
    folders = [part for value in registry.hosts_dirs for part in value.split(",")]
    present = tuple(folder for folder in folders if Path(folder).is_dir())
    with (
        app.registries(replace(registry, hosts_dirs=present), reference) as registries,
        app.open_containerd(name) as image,
        app.artifacts(registries) as artifacts,
        registries.target(reference, str(reference)) as target,
        app.output.progress() as observer,
    ):
        result = push_artifacts(artifacts, image, target, options, observer)
    for one in result:
        platform = platforms.format_platform(one.platform)
        if one.has_v2:
            app.output.warn(
                f"{platform}: the SOCI index v2 is not pushed here; push the whole image with a tool such "
                "as nerdctl or finch"
            )
        if one.index is None:
            app.output.note(f"{platform}: no SOCI index pushed, it has {one.existing[0]} already")
            continue
        if one.existing and one.index.digest not in one.existing:
            app.output.note(
                f"{platform}: it has another SOCI index already, {one.existing[0]}; which of the two is "
                "used is up to the one who pulls"
            )
        app.output.note(f"{platform}: SOCI v1 index {one.index.digest}")
        app.output.result(one.index.digest)


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
