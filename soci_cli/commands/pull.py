"""`soci pull`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app, platform_flags, snapshotter_flag
from soci_cli.commands.output import count, human_size
from soci_cli.commands.registry_flags import RegistryFlags, transfer_flags
from soci_cli.errors import UsageError, explaining
from soci_cli.index.discover import FoundIndex, IndexSources
from soci_cli.index.image import ImageManifest, chain_ids, diff_ids_of, manifest_of
from soci_cli.index.pull import PulledPlatform, PullOptions, PullResult, Staying, pull
from soci_cli.oci import Descriptor, parse_digest, parse_reference, platforms
from soci_cli.settings import PullModes
from soci_cli.targets.places import DOCKER

if TYPE_CHECKING:
    from soci_cli.targets import Source, Target


@click.command()
@snapshotter_flag
@click.option(
    "--soci-index-digest",
    metavar="DIGEST",
    help="The SOCI index to use; found by itself by default.",
)
@platform_flags("Pull")
@click.argument("ref")
@transfer_flags
@common_flags
@pass_app
def command(
    app: App,
    snapshotter: str,
    soci_index_digest: str | None,
    platform_names: tuple[str, ...],
    all_platforms: bool,
    ref: str,
    registry: RegistryFlags,
) -> None:
    """Pull the image REF into the local store.

    With --address or --namespace it goes into containerd instead: with all its layers or, where containerd
    has the snapshotter that --snapshotter names, without those that the snapshotter reads lazily.

    With a SOCI index only what is needed at once is fetched: manifests, config, zTOCs, and layers that
    have no zTOC. The other layers stay in the registry and are read from there when something needs them.
    The last line of output is the image's digest.

    \b
    soci pull example.com/app:1.0
    soci pull --snapshotter overlayfs --all-platforms example.com/app:1.0
    """
    name = ref.removeprefix(DOCKER)
    reference = parse_reference(name)
    lazily = snapshotter == "soci"
    if soci_index_digest is not None:
        if not lazily:
            raise UsageError("--soci-index-digest needs --snapshotter soci")
        soci_index_digest = _digest(soci_index_digest)
    modes = app.settings.pull_modes
    options = PullOptions(
        platforms=app.platforms(platform_names, all_platforms),
        all_platforms=all_platforms,
        index=IndexSources(soci_index_digest, modes.soci_v2, modes.soci_v1) if lazily else None,
        concurrency=app.downloads(registry),
    )
    with (
        app.registries(registry, reference) as registries,
        registries.source(reference, str(reference)) as source,
        app.open_image_target(name, registries) as target,
        app.output.progress() as observer,
    ):
        home = f"{DOCKER}{reference.name}"
        if app.names_containerd and lazily:
            staying = _staying(app, snapshotter, source, target, str(reference), soci_index_digest)
            options = dataclasses.replace(options, staying=staying)
        result = pull(source, home, target, options, observer)
        if app.names_containerd:
            _keep(app, name, result)
    for part in result.platforms:
        app.output.note(_line(part, modes, lazily))
    app.output.detail(_total(result))
    app.output.result(result.descriptor.digest)


def _staying(
    app: App, snapshotter: str, source: Source, target: Target, name: str, index: str | None
) -> Staying | None:
    """Has a snapshotter of containerd mount layers; None where containerd has none of this name."""
    from soci_cli.targets.containerd.place import ContainerdTarget
    from soci_cli.targets.containerd.snapshots import LayeredImage, Snapshots

    snapshots = Snapshots(app.connect(), snapshotter)
    if not isinstance(target, ContainerdTarget) or not snapshots.is_loaded():
        context = click.get_current_context()
        if context.get_parameter_source("snapshotter") is not ParameterSource.DEFAULT:
            app.output.note(f"containerd has no snapshotter {snapshotter}: all layers are pulled")
        return None

    def staying(entry: ImageManifest, _: FoundIndex) -> Sequence[Descriptor]:
        manifest = manifest_of(entry)
        chain = chain_ids(diff_ids_of(source, manifest))
        image = LayeredImage(name, entry.descriptor.digest, manifest.layers, chain, index or "")
        count = snapshots.prepare(image, target.metadata)
        if count:
            snapshots.keep(manifest.config.digest, chain[count - 1] or "")
        return manifest.layers[:count]

    return staying


def _keep(app: App, name: str, result: PullResult) -> None:
    from soci_cli.targets.containerd.place import keep_indexes

    indexes = {
        platforms.format_platform(part.platform): part.index.descriptor.digest
        for part in result.platforms
        if part.index and part.index.version == "v1"
    }
    keep_indexes(app.connect(), name, indexes)


def _digest(text: str) -> str:
    with explaining("--soci-index-digest"):
        return parse_digest(text, UsageError)


def _line(part: PulledPlatform, modes: PullModes, lazily: bool) -> str:
    name = platforms.format_platform(part.platform)
    layers = len(part.layers)
    remote = part.remote
    if part.index is None:
        wanted = "SOCI index" if modes.soci_v1 else "SOCI index v2"
        missing = f"; it has no {wanted}" if lazily else ""
        return f"{name}: {count(layers, 'layer')} pulled{missing}"
    if not remote:
        return f"{name}: SOCI {part.index.version}; {count(layers, 'layer')} pulled"
    size = sum(layer.size for layer in remote)
    total = sum(layer.descriptor.size for layer in part.layers)
    stay = "stays" if len(remote) == 1 else "stay"
    share = f", {100 * size // total} %" if total else ""
    return (
        f"{name}: SOCI {part.index.version}; {len(remote)} of {count(layers, 'layer')} {stay} in the "
        f"registry, which saves {human_size(size)} of {human_size(total)}{share}"
    )


def _total(result: PullResult) -> str:
    return f"fetched {human_size(result.fetched)}"
