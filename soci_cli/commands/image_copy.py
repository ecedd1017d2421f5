"""`soci image copy`."""

from __future__ import annotations

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.commands.image_convert import check_tagged
from soci_cli.commands.output import count
from soci_cli.commands.registry_flags import RegistryFlags, transfer_flags
from soci_cli.index.copying import copy_image
from soci_cli.oci import platforms


@click.command()
@click.argument("src")
@click.argument("dst")
@transfer_flags
@common_flags
@pass_app
def command(app: App, src: str, dst: str, registry: RegistryFlags) -> None:
    """Copy the image at SRC to DST with all its platforms and its SOCI indexes.

    Digests stay. Indexes v2 are copied with the image that names them, also from beside it; indexes v1
    are listed for it again. The last line of output is the digest of the image.

    \b
    soci image copy docker://example.com/app:1.0 docker://other.example/app:1.0
    soci image copy docker://example.com/app:1.0-soci oci-archive:app.tar
    """
    from_place, to_place = app.place(src), app.place(dst)
    if to_place.kind == "containerd":
        check_tagged(to_place.text)
    with (
        app.registries(registry, from_place, to_place) as registries,
        app.open_source(from_place, registries) as source,
        app.open_target(to_place, source.names(), registries) as target,
        app.output.progress() as observer,
    ):
        copied = copy_image(source, target, observer, app.downloads(registry))
    if to_place.kind == "containerd" and copied.indexes_v1:
        from soci_cli.targets.containerd.place import keep_indexes
        from soci_cli.targets.places import CONTAINERD

        names = {
            platforms.format_platform(platform) if platform else "unknown": index.digest
            for platform, index in copied.indexes_v1
        }
        keep_indexes(app.connect(), to_place.text.removeprefix(CONTAINERD), names)
    if copied.indexes_v1:
        app.output.detail(f"{count(len(copied.indexes_v1), 'SOCI index')} v1 went along")
    app.output.result(copied.descriptor.digest)
