"""`soci ztoc build`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from soci_cli.commands.app import App
from soci_cli.commands.files import LayerStream, write_aside
from soci_cli.commands.flags import SIZE, common_flags, pass_app, stdout_is_terminal
from soci_cli.commands.output import human_size
from soci_cli.errors import UsageError, errors_at
from soci_cli.progress import Work
from soci_cli.ztoc import Compression, build_ztoc
from soci_cli.ztoc.zinfo import too_large


@click.command()
@click.option(
    "--span-size",
    type=SIZE,
    metavar="SIZE",
    help="Uncompressed bytes after which a new span may begin; 4MiB by default.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The file to write; stdout by default.",
)
@click.option("--build-tool-identifier", metavar="TEXT", help="The tool that the zTOC names.")
@click.argument("layer")
@common_flags
@pass_app
def command(
    app: App,
    span_size: int | None,
    output: Path | None,
    build_tool_identifier: str | None,
    layer: str,
) -> None:
    """Build the zTOC of LAYER, a tar or tar.gz file, or - for stdin.

    With --output the digest of the zTOC is printed; else the zTOC itself goes to stdout.
    """
    if output is None and stdout_is_terminal():
        raise UsageError("a zTOC is not written to a terminal; give --output FILE")
    with (
        LayerStream(layer) as stream,
        app.output.progress() as observer,
        Work(observer, stream.name, stream.size) as work,
        errors_at(file=stream.name),
    ):
        built = build_ztoc(
            stream,
            span_size=app.settings.span_size if span_size is None else span_size,
            compression=Compression.GZIP if stream.is_gzip else Compression.UNCOMPRESSED,
            build_tool_identifier=(build_tool_identifier or app.settings.build_tool_identifier),
            advance=work.advance,
        )
        work.outcome = f"{built.spans} spans, {built.files} files"
    problem = too_large(built.largest_span)
    if problem:
        app.output.note(f"{stream.name}: {problem}; `soci` reads such a layer whole")
    if output is None:
        sys.stdout.buffer.write(built.data)
        sys.stdout.buffer.flush()
    else:
        write_aside(output, [built.data])
        app.output.detail(f"{output}: {human_size(len(built.data))}")
        app.output.result(built.digest)
