"""`soci ztoc info`."""

from __future__ import annotations

from typing import Any

import click

from soci_cli.commands.app import App
from soci_cli.commands.files import read_ztoc
from soci_cli.commands.flags import common_flags, containerd_flags, pass_app
from soci_cli.commands.output import columns, human_size
from soci_cli.index.artifacts import ZTOC
from soci_cli.oci.digest import is_digest
from soci_cli.text import brief, printable
from soci_cli.ztoc import Ztoc, decode_ztoc
from soci_cli.ztoc.codec import MAX_ZTOC_SIZE


@click.command()
@click.option("--files", is_flag=True, help="List the files too.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    help="Output for people (default for FILE) or for scripts (for DIGEST).",
)
@click.argument("file", metavar="FILE|DIGEST")
@containerd_flags(hidden=True)
@common_flags
@pass_app
def command(app: App, files: bool, format_: str | None, file: str) -> None:
    """Show what a zTOC says: FILE, - for stdin, or DIGEST as `soci ztoc ls` gives it.

    --format json lists every file with its offset, size, type, and first and last span.
    """
    by_digest = is_digest(file)
    if by_digest:
        with app.artifacts() as artifacts:
            one = artifacts.find(file, ZTOC)
            ztoc = decode_ztoc(artifacts.read(one, MAX_ZTOC_SIZE))
    else:
        ztoc = read_ztoc(file)
    if (format_ or ("json" if by_digest else "text")) == "json":
        app.output.json(describe(ztoc))
        return
    ztoc.files.check()
    for row in columns(
        [
            ["version", ztoc.version.decode("ascii", "replace")],
            ["build tool", brief(ztoc.build_tool_identifier)],
            ["size", human_size(ztoc.size)],
            ["layer", f"{human_size(ztoc.compressed_archive_size)} compressed"],
            ["archive", f"{human_size(ztoc.uncompressed_archive_size)} uncompressed"],
            ["span size", human_size(ztoc.spans.span_size)],
            ["spans", str(len(ztoc.spans))],
            ["files", str(len(ztoc.files))],
        ]
    ):
        app.output.result(row)
    if files:
        app.output.result("")
        rows = [["TYPE", "SIZE", "SPANS", "NAME"]]
        for entry in describe(ztoc)["files"]:
            spans = f"{entry['start_span']}-{entry['end_span']}"
            rows.append([entry["type"], str(entry["size"]), spans, entry["filename"]])
        for row in columns(rows):
            app.output.result(row)


def describe(ztoc: Ztoc) -> dict[str, Any]:
    """What the zTOC says, under the keys that the reference uses."""
    files = []
    multi = 0
    for number, entry in enumerate(ztoc.files):
        offset, size = ztoc.files.stored(ztoc.files.fields(number))
        start, end = ztoc.spans.span_of(offset), ztoc.spans.span_of(offset + size)
        multi += start != end
        files.append(
            {
                "filename": printable(entry.name),
                "offset": entry.uncompressed_offset,
                "size": entry.uncompressed_size,
                "type": entry.type.decode("ascii", "replace"),
                "start_span": start,
                "end_span": end,
            }
        )
    return {
        "version": ztoc.version.decode("ascii", "replace"),
        "build_tool": ztoc.build_tool_identifier.decode("utf-8", "replace"),
        "size": ztoc.size,
        "span_size": ztoc.spans.span_size,
        "num_spans": len(ztoc.spans),
        "num_files": len(files),
        "num_multi_span_files": multi,
        "files": files,
    }
