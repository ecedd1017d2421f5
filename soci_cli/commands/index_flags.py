"""The flags of commands that make SOCI indexes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import SIZE, platform_flags
from soci_cli.commands.registry_flags import RegistryFlags
from soci_cli.index.build import IndexOptions
from soci_cli.index.convert import ConvertOptions
from soci_cli.index.prefetch import read_prefetch_list

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class IndexFlags:
    """What the flags of one command say; None where a flag was not given."""

    span_size: int | None
    min_layer_size: int | None
    platform_names: tuple[str, ...]
    all_platforms: bool
    optimizations: tuple[str, ...]
    force: bool
    prefetch_files: tuple[str, ...]
    prefetch_files_json: Path | None

    def options(self, app: App, registry: RegistryFlags, tool: str | None = None) -> IndexOptions:
        """The options of a command, from flags and settings. UsageError for a bad list of files."""
        settings = app.settings
        json = self.prefetch_files_json
        listed = read_prefetch_list(json) if json else []
        files = [text.strip() for text in (*self.prefetch_files, *listed)]
        minimum = self.min_layer_size
        return IndexOptions(
            platforms=app.platforms(self.platform_names, self.all_platforms),
            all_platforms=self.all_platforms,
            span_size=settings.span_size if self.span_size is None else self.span_size,
            min_layer_size=settings.min_layer_size if minimum is None else minimum,
            build_tool_identifier=tool or settings.build_tool_identifier,
            optimize_xattrs="xattr" in (self.optimizations or settings.optimizations),
            prefetch_files=tuple(text for text in files if text),
            force=self.force,
            concurrency=registry.max_downloads or settings.max_concurrency or 2,
        )


def index_flags(prefix: str = "") -> Callable[[_F], _F]:
    """How to index; the command gets a keyword argument `index: IndexFlags`.

    `prefix` stands before the names of the flags about sizes. Without one they are the reference's.
    """
    options = (
        click.option(
            f"--{prefix}span-size",
            "span_size",
            type=SIZE,
            metavar="SIZE",
            help="Uncompressed bytes after which a new span may begin, such as 4194304 or 4MiB "
            "(default).",
        ),
        click.option(
            f"--{prefix}min-layer-size",
            "min_layer_size",
            type=SIZE,
            metavar="SIZE",
            help="Layers smaller than this get no zTOC; 10MiB by default.",
        ),
        platform_flags("Index"),
        click.option(
            "--optimizations",
            multiple=True,
            type=click.Choice(["xattr"]),
            help="xattr: mark layers that have no extended attributes.",
        ),
        click.option(
            "--prefetch-file",
            "prefetch_files",
            multiple=True,
            metavar="PATH",
            help="A file to fetch as soon as the image is mounted; may be repeated.",
        ),
        click.option(
            "--prefetch-files-json",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="A JSON list of files to fetch as soon as the image is mounted.",
        ),
        click.option("--force", "-f", is_flag=True, help="Build zTOCs anew that exist already."),
    )

    def add(command: _F) -> _F:
        @functools.wraps(command)
        def with_index(*args: Any, **values: Any) -> Any:
            if not prefix:
                # As the reference does.
                files = [name for text in values["prefetch_files"] for name in text.split(",")]
                values["prefetch_files"] = tuple(files)
            flags = IndexFlags(
                **{name: values.pop(name) for name in IndexFlags.__dataclass_fields__}
            )
            return command(*args, index=flags, **values)

        wrapped: Any = with_index
        for option in reversed(options):  # click shows the last one that was added first
            wrapped = option(wrapped)
        return cast(_F, wrapped)

    return add


@dataclass(frozen=True)
class ConversionFlags:
    """What the flags of a command that converts say besides; None where a flag was not given."""

    zstd_layers: str | None
    layer_types: str
    only_platforms: bool
    tag_manifests: bool

    def options(self, app: App, index: IndexOptions) -> ConvertOptions:
        """The options of a conversion that indexes so."""
        return ConvertOptions(
            **vars(index),
            recompress_zstd=(self.zstd_layers or app.settings.zstd_layers) == "recompress",
            keep_layer_types=self.layer_types == "keep",
            only_platforms=self.only_platforms,
            tag_manifests=self.tag_manifests,
        )


def conversion_flags(command: _F) -> _F:
    """What commands that convert have besides; they get a keyword argument `conversion`."""

    @functools.wraps(command)
    def with_conversion(*args: Any, **values: Any) -> Any:
        names = ConversionFlags.__dataclass_fields__
        flags = ConversionFlags(**{name: values.pop(name) for name in names})
        return command(*args, conversion=flags, **values)

    wrapped: Any = with_conversion
    for option in (
        click.option(
            "--tag-manifests",
            is_flag=True,
            help="In a registry, give each manifest of the image and each SOCI index a tag of its own.",
        ),
        click.option(
            "--only-platforms",
            is_flag=True,
            help="Leave out all platforms that are not indexed.",
        ),
        click.option(
            "--layer-types",
            type=click.Choice(["oci", "keep"]),
            default="oci",
            show_default=True,
            help="Media types of layers with Docker's: OCI's, or kept as the reference does.",
        ),
        click.option(
            "--zstd-layers",
            type=click.Choice(["skip", "recompress"]),
            help="What to do with zstd layers, which cannot be indexed: skip (default), or turn them into "
            "gzip.",
        ),
    ):
        wrapped = option(wrapped)
    return cast(_F, wrapped)
