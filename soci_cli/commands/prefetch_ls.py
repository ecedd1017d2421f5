"""`soci prefetch ls`, also `soci prefetch list`."""

from __future__ import annotations

import click

from soci_cli.commands.app import App
from soci_cli.commands.durations import ago
from soci_cli.commands.flags import common_flags, containerd_flags, format_flag, pass_app
from soci_cli.commands.listing import artifact_json
from soci_cli.commands.output import columns
from soci_cli.errors import SociError
from soci_cli.index.artifacts import PREFETCH, Artifacts
from soci_cli.index.prefetch import decode_prefetch, span_count
from soci_cli.targets import StoredArtifact

_UNKNOWN = -1


@click.command()
@click.option("--json", "json_", is_flag=True, help="Print a JSON list.")
@format_flag
@containerd_flags(hidden=True)
@common_flags
@pass_app
def command(app: App, json_: bool, format_: str) -> None:
    """List prefetch artifacts; with --quiet their digests only.

    --format json prints an object a line, as the other lists do.
    """
    with app.artifacts() as artifacts:
        found = sorted(artifacts.all(PREFETCH), key=lambda one: one.digest)
        spans = {} if app.quiet else {one.digest: _spans(artifacts, one) for one in found}
    if json_:
        app.output.json(
            [
                {
                    "Digest": one.digest,
                    "LayerDigest": one.original_digest,
                    "TotalSpans": spans.get(one.digest, _UNKNOWN),
                    "CreatedAt": one.created.isoformat().replace("+00:00", "Z"),
                }
                for one in found
            ]
        )
    elif format_ == "json":
        for one in found:
            total = spans.get(one.digest, _UNKNOWN)
            app.output.json(artifact_json(one) | {"spans": total}, indent=None)
    elif app.quiet:
        for digest in dict.fromkeys(one.digest for one in found):
            app.output.result(digest)
    else:
        rows = [["DIGEST", "LAYER DIGEST", "SPANS", "CREATED"]]
        for one in found:
            total = spans[one.digest]
            shown = "N/A" if total == _UNKNOWN else str(total)
            rows.append([one.digest, one.original_digest, shown, ago(one.created)])
        for line in columns(rows):
            app.output.result(line)


def _spans(artifacts: Artifacts, one: StoredArtifact) -> int:
    """How many spans an artifact names; one that cannot be read is listed all the same."""
    try:
        return span_count(decode_prefetch(artifacts.read(one), one.digest))
    except SociError:
        return _UNKNOWN
