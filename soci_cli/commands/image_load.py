"""`soci image load`."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import click

from soci_cli.commands.app import App
from soci_cli.commands.flags import common_flags, pass_app
from soci_cli.errors import InvalidDataError, UsageError
from soci_cli.index.copying import copy_image
from soci_cli.oci import Descriptor, Reference, parse_reference
from soci_cli.targets import Source, open_source
from soci_cli.targets.places import place_of_file

_CONTAINERD_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"


@click.command()
@click.option(
    "--input",
    "-i",
    "input_",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="An archive of `docker save` or of OCI, a layout, or a folder of skopeo's dir:; stdin by default.",
)
@click.option("--name", metavar="NAME", help="The name of an image that the archive does not name.")
@common_flags
@pass_app
def command(app: App, input_: Path | None, name: str | None) -> None:
    """Take the images of an archive into the local store, under the names that they have there."""
    app.need_local_store("image load")
    if input_ is None:
        if sys.stdin.isatty():
            raise UsageError("an archive is expected on stdin; or give --input FILE")
        # Blobs are read where they lie in the archive, which a pipe cannot do.
        with tempfile.TemporaryDirectory(prefix="soci-load-") as folder:
            path = Path(folder, "image.tar")
            with path.open("wb") as archive:
                shutil.copyfileobj(sys.stdin.buffer, archive, 1 << 20)
            _load(app, path, name, "stdin")
    else:
        _load(app, input_, name, str(input_))


def _load(app: App, path: Path, name: str | None, shown: str) -> None:
    def at(tag: str | None) -> Source:
        return open_source(place_of_file(path, tag, shown), app.root)

    with at(None) as place:
        # What has a type of its own and no name lies beside an image, and goes along with it.
        entries = [
            entry for entry in place.entries() if not entry.artifact_type or _has_name(entry)
        ]
    if name is not None or len(entries) == 1:
        reference = parse_reference(name) if name else _name(entries[0], shown)
        with at(None) as source:
            _take(app, source, reference)
        return
    if not entries:
        raise InvalidDataError(f"{shown} holds no image")
    for entry in entries:
        with at(f"@{entry.digest}") as source:
            _take(app, source, _name(entry, shown))


def _take(app: App, source: Source, reference: Reference) -> None:
    with app.store.open(reference) as target, app.output.progress() as observer:
        copy_image(source, target, observer)
    app.output.result(f"Loaded image: {reference}")


def _has_name(entry: Descriptor) -> bool:
    return _CONTAINERD_NAME in entry.annotations or _REF_NAME in entry.annotations


def _name(entry: Descriptor, shown: str) -> Reference:
    for key in (_CONTAINERD_NAME, _REF_NAME):
        text = entry.annotations.get(key, "")
        # A tag alone, as layouts have it, names no repository.
        if "/" in text or ":" in text:
            return parse_reference(text)
    raise UsageError(f"{shown} does not say the name of {entry.digest}; give it one with --name")
