"""`soci index repair`."""

from __future__ import annotations

from contextlib import ExitStack

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.commands.index_flags import IndexFlags, index_flags
from soci_cli.commands.output import count
from soci_cli.commands.registry_flags import RegistryFlags, transfer_flags
from soci_cli.index.artifacts import containerd_place
from soci_cli.index.repair import repair


@click.command()
@index_flags()
@click.option(
    "--build-tool-identifier",
    metavar="TEXT",
    help="The tool that the index names; soci-cli by default.",
)
@click.option(
    "--tag-manifests",
    is_flag=True,
    help="Give each manifest of the image and each SOCI index a tag of its own.",
)
@click.argument("image")
@transfer_flags
@common_flags
@pass_app
def command(
    app: App,
    index: IndexFlags,
    build_tool_identifier: str | None,
    tag_manifests: bool,
    image: str,
    registry: RegistryFlags,
) -> None:
    """Bring back what a clean-up of untagged manifests took from the converted IMAGE.

    Manifests and SOCI indexes come from the local store and, with --address or --namespace, from
    containerd. An index that is nowhere is made again; that gives the same one when the flags are those
    with which the image was converted. The last line of output is the digest of the image.

    \b
    soci index repair docker://example.com/app:1.0-soci
    soci index repair --span-size 1MiB --tag-manifests docker://example.com/app:1.0-soci
    """
    place = app.place(image)
    options = index.options(app, registry, build_tool_identifier)
    with ExitStack() as stack:
        registries = stack.enter_context(app.registries(registry, place))
        target = stack.enter_context(app.open_target(place, None, registries))
        scratch = stack.enter_context(app.open_store(registries).open_unnamed())
        observer = stack.enter_context(app.output.progress())
        others = [scratch, *([containerd_place(app.connect())] if app.names_containerd else [])]
        done = repair(target, others, scratch, options, observer)
        if tag_manifests:
            for manifest in done.manifests:
                target.keep(manifest)
    brought, made = count(len(done.found), "manifest"), len(done.rebuilt)
    if done.found or made:
        app.output.note(f"{brought} brought back, {made} made again")
    else:
        app.output.note(f"{image}: nothing is missing")
    app.output.result(done.descriptor.digest)
