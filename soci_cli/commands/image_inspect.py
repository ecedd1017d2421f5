"""`soci image inspect`."""

from __future__ import annotations

import dataclasses

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, format_flag, pass_app
from soci_cli.commands.output import count, human_size
from soci_cli.commands.registry_flags import RegistryFlags, transfer_flags
from soci_cli.index.inspect import ImageFacts, LayerFacts, PlatformFacts, inspect
from soci_cli.text import printable


@click.command()
@format_flag
@click.argument("place")
@transfer_flags
@common_flags
@pass_app
def command(app: App, format_: str, place: str, registry: RegistryFlags) -> None:
    """Show the image at PLACE as a tree: platforms, layers, and which of them are indexed.

    \b
    soci image inspect alpine
    soci image inspect docker://example.com/app:1.0
    soci image inspect containerd:example.com/app:1.0
    soci image inspect oci:app-soci
    soci image inspect --format json oci-archive:app.tar:latest
    """
    parsed = app.place(place)
    with (
        app.registries(registry, parsed) as registries,
        app.open_source(parsed, registries) as source,
    ):
        facts = inspect(source)
    if format_ == "json":
        app.output.json({"place": place, **dataclasses.asdict(facts)})
    else:
        _draw(place, facts)


def _draw(place: str, facts: ImageFacts) -> None:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    title = Text(printable(place), style="bold")
    title.append(f"  {facts.digest}  {human_size(facts.size)}", style="not bold")
    title.append(f"  SOCI {facts.soci}" if facts.soci else "  no SOCI index", style="not bold")
    tree = Tree(title)
    for manifest in facts.manifests:
        branch = tree.add(Text(printable(_manifest_line(manifest))))
        for layer in manifest.layers:
            branch.add(Text(printable(_layer_line(layer)), style="green" if layer.ztoc else ""))
    # A line may be longer than the terminal: better wrapped by it than cut here.
    Console(width=10_000, highlight=False).print(tree, soft_wrap=True)


def _manifest_line(manifest: PlatformFacts) -> str:
    name = manifest.platform if manifest.kind == "image" else f"artifact ({manifest.platform})"
    parts = [name, manifest.digest, human_size(manifest.size)]
    if manifest.soci:
        indexed = sum(layer.ztoc is not None for layer in manifest.layers)
        parts.append(f"SOCI {manifest.soci}, {indexed} of {len(manifest.layers)} layers indexed")
    if manifest.problem:
        parts.append(manifest.problem)
    return "  ".join(parts)


def _layer_line(layer: LayerFacts) -> str:
    kind = layer.media_type.rpartition(".")[2].rpartition("/")[2]
    line = f"layer {layer.digest[:19]}  {kind}  {human_size(layer.size)}"
    ztoc = layer.ztoc
    if ztoc is None:
        return f"{line}  no zTOC"
    if ztoc.problem:
        return f"{line}  zTOC {ztoc.digest[:19]}: {ztoc.problem}"
    spans = f"{count(ztoc.spans, 'span')} of {human_size(ztoc.span_size)}"
    if ztoc.largest_span > 2 * ztoc.span_size:
        spans += f" (the largest of {human_size(ztoc.largest_span)})"
    line += (
        f"  zTOC {ztoc.digest[:19]} {human_size(ztoc.size)}: {spans}, {count(ztoc.files, 'file')}, "
        f"{human_size(ztoc.uncompressed_size)} uncompressed"
    )
    if ztoc.disable_xattrs:
        line += ", no xattrs"
    if layer.prefetch_spans:
        ranges = ", ".join(
            str(start) if start == end else f"{start}-{end}" for start, end in layer.prefetch_spans
        )
        line += f", prefetch spans {ranges}"
    return line
