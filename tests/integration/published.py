"""Images that are in a registry to be mounted, and who mounts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from soci_cli.ztoc import Ztoc, decode_ztoc
from tests.integration.mounts import (
    TEXT,
    Facts,
    Person,
    detach,
)
from tests.support.holders import crash
from tests.support.images import (
    blob_json,
    noise,
    read_index,
    sha256,
    soci_entries,
)

SPAN = 1 << 16
CONVERT = ("image", "convert", "-q", "--soci", "--platform", "linux/amd64", "--force")
FLAGS = ("--soci-span-size", str(SPAN), "--soci-min-layer-size")
READ = ("--platform", "linux/amd64")
QUIET = (*READ, "--no-background-fetch")


@dataclass(frozen=True)
class Published:
    """An image in a registry: `place` is where, `root` the same, indexed, as a layout."""

    host: str
    repository: str
    root: Path

    @property
    def place(self) -> str:
        return self.at(self.host)

    def at(self, host: str) -> str:
        """The place behind a proxy."""
        return f"docker://{host}/{self.repository}:soci"

    @property
    def layers(self) -> list[str]:
        """The digests of the layers, lowest first."""
        manifest = blob_json(self.root, read_index(self.root)["manifests"][0])
        return [layer["digest"] for layer in manifest["layers"]]

    def ztoc(self, number: int) -> Ztoc:
        """The zTOC of a layer."""
        index = blob_json(self.root, soci_entries(read_index(self.root))[0])
        annotation = "com.amazon.soci.image-layer-digest"
        blob = next(
            layer
            for layer in index["layers"]
            if layer["annotations"].get(annotation) == self.layers[number]
        )
        return decode_ztoc((self.root / "blobs/sha256" / blob["digest"][7:]).read_bytes())

    def blob(self, digest: str) -> bytes:
        return (self.root / "blobs" / "sha256" / digest[7:]).read_bytes()


def living(person: Person) -> Iterator[Person]:
    yield person
    for _, record in person.records():
        with suppress(OSError):
            crash(record["pid"])
        detach(Path(record["target"]))


def new_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def publish(folder: Path, host: str, name: str, root: Path, least: int = 0) -> Published:
    """Puts an image of a layout into a registry, indexed, and beside it into a layout."""
    soci = Person(new_folder(folder / f"publish-{name}"))
    place, layout = f"docker://{host}/{name}:soci", folder / f"{name}-soci"
    soci.soci(*CONVERT, *FLAGS, str(least), f"oci:{root}", f"oci:{layout}:latest").good()
    soci.soci(*CONVERT, *FLAGS, str(least), f"oci:{root}", place).good()
    return Published(host, name, layout)


FILES = {
    "data/noise": noise(10, 1_500_000),
    "data/text": TEXT * 3,
    **{f"many/{number}": noise(number, 40_000) for number in range(20)},
}
OTHER = {f"other/{number}": noise(100 + number, 90_000) for number in range(4)}
CONTENT = FILES | OTHER
SUMS = {name: sha256(data)[7:] for name, data in CONTENT.items()}


def compare(found: Facts, expected: Facts) -> None:
    assert sorted(found) == sorted(expected)
    for name, fact in expected.items():
        assert found[name] == fact, name


def drop(path: Path) -> None:
    """Lets the kernel forget what it has of a file."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
