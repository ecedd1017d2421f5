"""`soci create`."""

from __future__ import annotations

from contextlib import ExitStack

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, containerd_flags, pass_app
from soci_cli.commands.index_flags import IndexFlags, index_flags
from soci_cli.commands.output import count, human_size
from soci_cli.commands.registry_flags import RegistryFlags, transfer_flags
from soci_cli.errors import UsageError
from soci_cli.index.artifacts import CONTAINERD_CONTENT, made_indexes
from soci_cli.index.build import IndexOptions, PlatformReport, index_image
from soci_cli.oci import platforms
from soci_cli.targets import LOCAL_CONTENT, Place
from soci_cli.targets.places import CONTAINERD


@click.command()
@index_flags()
@click.argument("ref")
@transfer_flags
@containerd_flags(hidden=True)
@common_flags
@pass_app
def command(app: App, index: IndexFlags, ref: str, registry: RegistryFlags) -> None:
    """Make a SOCI index (v1) for each chosen platform of the image REF of containerd.

    The image stays as it is. The indexes are kept in containerd as long as the image or, with
    --content-store soci, in the local store; `soci push` pushes them. REF may be any other place too,
    whose indexes go to the local store. Nothing is printed on stdout; with --quiet, the digests of the
    indexes.

    \b
    soci create registry.example/app:1.0
    soci --namespace k8s.io create --all-platforms registry.example/app:1.0
    """
    place = app.place(ref, "containerd")
    content_store = app.content_store or (
        CONTAINERD_CONTENT if place.kind == "containerd" else LOCAL_CONTENT
    )
    if content_store == CONTAINERD_CONTENT and place.kind != "containerd":
        raise UsageError(
            f"--content-store containerd keeps indexes together with an image of containerd, which {ref} "
            "is not"
        )
    options = index.options(app, registry)
    reports = _create(app, place, options, registry, in_containerd=content_store != LOCAL_CONTENT)
    for report in reports:
        app.output.note(_line(report))
        if app.quiet and report.index:
            app.output.result(report.index.digest)


def _create(
    app: App,
    place: Place,
    options: IndexOptions,
    registry: RegistryFlags,
    *,
    in_containerd: bool,
) -> tuple[PlatformReport, ...]:
    with ExitStack() as stack:
        registries = stack.enter_context(app.registries(registry, place))
        source = stack.enter_context(app.open_source(place, registries))
        artifacts = stack.enter_context(app.artifacts(registries))
        if in_containerd:
            target = stack.enter_context(app.open_target(place, None, registries))
        else:
            target = stack.enter_context(artifacts.store.open_unnamed())
        observer = stack.enter_context(app.output.progress())
        image = source.resolve()
        known = artifacts.known_ztocs() if in_containerd else {}
        reports = index_image(source, target, options, observer, known)
        made = made_indexes(reports, target, image)
        if in_containerd:
            from soci_cli.targets.containerd.place import keep_indexes

            indexes = {
                platforms.format_platform(report.platform): report.index.digest
                for report in reports
                if report.index
            }
            keep_indexes(app.connect(), place.text.removeprefix(CONTAINERD), indexes)
        store = CONTAINERD_CONTENT if in_containerd else LOCAL_CONTENT
        artifacts.record(made, store, pinned=not in_containerd)
    return reports


def _line(report: PlatformReport) -> str:
    name = platforms.format_platform(report.platform)
    indexed = [layer.ztoc for layer in report.layers if layer.ztoc]
    if report.index is None:
        return f"{name}: no SOCI index; none of {count(len(report.layers), 'layer')} can be indexed"
    return (
        f"{name}: SOCI v1 index {report.index.digest}; {len(indexed)} of "
        f"{count(len(report.layers), 'layer')} indexed, "
        f"{human_size(sum(ztoc.size for ztoc in indexed))} of zTOCs"
    )
