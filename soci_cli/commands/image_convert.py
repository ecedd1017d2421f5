"""`soci image convert`."""

from __future__ import annotations

from pathlib import Path

import click

from soci_cli.commands.app import SIZE, App, common_flags, pass_app, platform_flags
from soci_cli.commands.output import human_size
from soci_cli.commands.registry_flags import RegistryFlags, transfer_flags
from soci_cli.errors import UsageError
from soci_cli.index import ConvertOptions, ConvertResult, convert
from soci_cli.index.prefetch import read_prefetch_list
from soci_cli.oci import platforms
from soci_cli.targets import open_source, open_target, parse_place


@click.command()
@click.option("--soci", is_flag=True, help="Convert to a SOCI image (index manifest v2).")
@click.option("--oci", is_flag=True, help="Accepted for nerdctl's sake: the result is always OCI.")
@click.option(
    "--soci-span-size",
    type=SIZE,
    metavar="SIZE",
    help="Uncompressed bytes after which a new span may begin, such as 4194304 or 4MiB (default).",
)
@click.option(
    "--soci-min-layer-size",
    type=SIZE,
    metavar="SIZE",
    help="Layers smaller than this get no zTOC; 10MiB by default.",
)
@platform_flags("Index")
@click.option(
    "--optimizations",
    multiple=True,
    type=click.Choice(["xattr"]),
    help="xattr: mark layers that have no extended attributes.",
)
@click.option(
    "--prefetch-file",
    "prefetch_files",
    multiple=True,
    metavar="PATH",
    help="A file to fetch as soon as the image is mounted; may be repeated.",
)
@click.option(
    "--prefetch-files-json",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A JSON list of files to fetch as soon as the image is mounted.",
)
@click.option(
    "--zstd-layers",
    type=click.Choice(["skip", "recompress"]),
    help="What to do with zstd layers, which cannot be indexed: skip (default), or turn them into gzip.",
)
@click.option("--force", "-f", is_flag=True, help="Build zTOCs anew that exist already.")
@click.option(
    "--build-tool-identifier",
    metavar="TEXT",
    help="The tool that zTOCs and index name; soci-cli by default.",
)
@click.argument("src")
@click.argument("dst")
@transfer_flags
@common_flags
@pass_app
def command(
    app: App,
    soci: bool,
    oci: bool,
    soci_span_size: int | None,
    soci_min_layer_size: int | None,
    platform_names: tuple[str, ...],
    all_platforms: bool,
    optimizations: tuple[str, ...],
    prefetch_files: tuple[str, ...],
    prefetch_files_json: Path | None,
    zstd_layers: str | None,
    force: bool,
    build_tool_identifier: str | None,
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
    settings = app.settings
    listed = read_prefetch_list(prefetch_files_json) if prefetch_files_json else []
    files = [text.strip() for text in (*prefetch_files, *listed)]
    options = ConvertOptions(
        platforms=app.platforms(platform_names, all_platforms),
        all_platforms=all_platforms,
        span_size=settings.span_size if soci_span_size is None else soci_span_size,
        min_layer_size=(
            settings.min_layer_size if soci_min_layer_size is None else soci_min_layer_size
        ),
        build_tool_identifier=build_tool_identifier or settings.build_tool_identifier,
        optimize_xattrs="xattr" in (optimizations or settings.optimizations),
        prefetch_files=tuple(text for text in files if text),
        recompress_zstd=(zstd_layers or settings.zstd_layers) == "recompress",
        force=force,
        concurrency=registry.max_downloads or settings.max_concurrency or 2,
    )
    source_place, target_place = parse_place(src), parse_place(dst)
    with (
        app.registries(registry, source_place, target_place) as registries,
        open_source(source_place, app.root, registries) as source,
        open_target(target_place, app.root, source.names(), registries) as target,
        app.output.progress() as observer,
    ):
        result = convert(source, target, options, observer)
    if result.changed:
        _summarize(app, result)
    else:
        app.output.note(f"{dst} is converted already; nothing changed")
    app.output.result(result.descriptor.digest)


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
