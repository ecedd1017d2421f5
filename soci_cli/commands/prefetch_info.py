"""`soci prefetch info`."""

from __future__ import annotations

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, containerd_flags, pass_app
from soci_cli.index.artifacts import PREFETCH
from soci_cli.index.prefetch import decode_prefetch, span_count
from soci_cli.oci import canonical, parse_digest
from soci_cli.text import printable


@click.command()
@click.option("--json", "json_", is_flag=True, help="Print the JSON document as well.")
@click.argument("digest")
@containerd_flags(hidden=True)
@common_flags
@pass_app
def command(app: App, json_: bool, digest: str) -> None:
    """Show the prefetch artifact DIGEST: which spans of its layer are fetched at once."""
    with app.artifacts() as artifacts:
        one = artifacts.find(parse_digest(digest), PREFETCH)
        data = artifacts.read(one)
    artifact = decode_prefetch(data, digest)
    say = app.output.result
    say(f"Digest:        {digest}")
    say(f"Version:       {printable(artifact.version)}")
    say(f"Span Ranges:   {len(artifact.spans)}")
    say(f"Layer Digest:  {one.original_digest}")
    say(f"Size:          {one.size} bytes")
    say(f"Created:       {one.created:%Y-%m-%d %H:%M:%S}")
    say("")
    say("Prefetch Spans:")
    for number, (start, end) in enumerate(artifact.spans):
        covered = end - start + 1
        say(f"  [{number}] StartSpan: {start}, EndSpan: {end} (covers {covered} spans)")
    say("")
    say(f"Total spans to prefetch: {span_count(artifact)}")
    if json_:
        say("\nRaw JSON:")
        app.output.json(canonical.loads(data, f"prefetch artifact {digest}"))
