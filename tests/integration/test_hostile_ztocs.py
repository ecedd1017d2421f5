"""Images whose index names the zTOC of a stranger: refused in one line, or shown harmlessly."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from soci_cli.ztoc import FileMetadata, decode_ztoc
from tests.integration.mounts import Person, detach, wait_for
from tests.integration.published import CONVERT, FLAGS, QUIET, new_folder
from tests.support.images import (
    Json,
    LayoutMaker,
    blob_json,
    gz,
    noise,
    read_index,
    sha256,
    soci_entries,
    tar_of,
)
from tests.support.layers import gzip_ztoc

pytestmark = pytest.mark.usefixtures("need_fuse")
Point: TypeAlias = "tuple[int, int, int, bytes]"
FILES = {f"files/{number}": noise(number, 50_000) for number in range(20)}
TAR = tar_of(FILES)
LAYER = gz(TAR)


def lying(points: Sequence[Point], entries: Sequence[FileMetadata], **more: Any) -> bytes:
    """A zTOC of the layer with these checkpoints, whose digests fit it."""
    digests = []
    for number, (offset, _, bits, _) in enumerate(points):
        end = points[number + 1][0] if number + 1 < len(points) else len(LAYER)
        piece = LAYER[offset - (bits > 0) : end]
        digests.append(f"sha256:{hashlib.sha256(piece).hexdigest()}".encode())
    options: dict[str, Any] = {
        "size": len(LAYER),
        "uncompressed_size": len(TAR),
        "digests": digests,
    } | more
    return gzip_ztoc(entries, points, **options)


Lie: TypeAlias = "Callable[[list[Point], list[FileMetadata]], bytes]"


def other_windows(points: list[Point], entries: list[FileMetadata]) -> bytes:
    return lying([(a, b, c, bytes(len(window))) for a, b, c, window in points], entries)


def equal_checkpoints(points: list[Point], entries: list[FileMetadata]) -> bytes:
    return lying([*points[:3], points[2], *points[3:]], entries)


def descending_checkpoints(points: list[Point], entries: list[FileMetadata]) -> bytes:
    return lying([points[0], *reversed(points[1:])], entries)


def fewer_digests(points: list[Point], entries: list[FileMetadata]) -> bytes:
    return lying(points, entries, digests=[b"sha256:" + b"0" * 64] * (len(points) - 1))


def swapped_offsets(points: list[Point], entries: list[FileMetadata]) -> bytes:
    moved = [(a, b + 1000 * (number > 0), c, d) for number, (a, b, c, d) in enumerate(points)]
    return lying(moved, entries)


def overlapping_files(points: list[Point], entries: list[FileMetadata]) -> bytes:
    return lying(points, [replace(one, uncompressed_offset=512) for one in entries])


def files_outside(points: list[Point], entries: list[FileMetadata]) -> bytes:
    return lying(points, [replace(one, uncompressed_size=1 << 40) for one in entries])


def larger_archive(points: list[Point], entries: list[FileMetadata]) -> bytes:
    return lying(points, entries, uncompressed_size=1 << 50)


def odd_names(points: list[Point], entries: list[FileMetadata]) -> bytes:
    names = (
        b"../../etc/passwd",
        b"/abs",
        b"a/../../b",
        b"",
        b".",
        b"..",
        b"x\0y",
        b"n" * 300,
        b"a//b/",
    )
    more = [replace(entries[0], name=name) for name in names]
    links = [
        replace(
            entries[0], name=b"link%d" % n, type=b"hardlink", linkname=name, uncompressed_size=0
        )
        for n, name in enumerate((b"../../etc/passwd", b"link0", b"link2", b""))
    ]
    return lying(
        points, [*entries, *links, *more[:1], *(replace(one, uncompressed_size=0) for one in more)]
    )


LIES: tuple[Lie, ...] = (
    other_windows, equal_checkpoints, descending_checkpoints, fewer_digests, swapped_offsets,
    overlapping_files, files_outside, larger_archive, odd_names,
)  # fmt: skip


def replaced(root: Path, data: bytes) -> None:
    """Puts another zTOC in the place of the only one of an image, and its digest into all above."""
    blobs = root / "blobs/sha256"

    def read(descriptor: Json) -> Any:
        return json.loads((blobs / descriptor["digest"][7:]).read_bytes())

    def write(descriptor: Json, content: bytes) -> None:
        descriptor |= {"digest": sha256(content), "size": len(content)}
        (blobs / descriptor["digest"][7:]).write_bytes(content)

    top = json.loads((root / "index.json").read_bytes())
    index = read(top["manifests"][0])
    image, soci = index["manifests"]
    if "artifactType" in image:
        image, soci = soci, image
    artifact, manifest = read(soci), read(image)
    old = soci["digest"]
    write(artifact["layers"][0], data)
    write(soci, json.dumps(artifact).encode())
    text = json.dumps([manifest, image, soci]).replace(old, soci["digest"])
    manifest, changed, soci = json.loads(text)
    write(changed, json.dumps(manifest).encode())
    soci = json.loads(json.dumps(soci).replace(image["digest"], changed["digest"]))
    index["manifests"] = [changed, soci]
    write(top["manifests"][0], json.dumps(index).encode())
    (root / "index.json").write_text(json.dumps(top))


@pytest.mark.parametrize("engine", ["auto", "fuse"])
def test_hostile_ztocs(person: Person, engine: str) -> None:
    maker = LayoutMaker(person.home / "image")
    maker.tag(maker.manifest([maker.blob(LAYER)], maker.config([sha256(TAR)])))
    honest = person.home / "honest"
    person.soci(*CONVERT, *FLAGS, "0", f"oci:{maker.root}", f"oci:{honest}:latest").good()
    ztoc = decode_ztoc(ztoc_in(honest))
    points = [
        (one.compressed_offset, one.uncompressed_offset, one.bits, one.window)
        for one in ztoc.spans.checkpoints
    ]
    shown = 0
    for lie in LIES:
        name = lie.__name__
        root = person.home / name
        shutil.copytree(honest, root)
        replaced(root, lie(points, list(ztoc.files)))
        place = new_folder(person.home / f"mount-{name}")
        done = person.soci("mount", "-q", *QUIET, "--engine", engine, f"oci:{root}:latest", place)
        if done.status:
            assert done.err.count("\n") == 1, (name, done.err)
            assert "Traceback" not in done.err
            continue
        try:
            shown += 1
            assert read_all(place) >= (name == "odd_names"), name
        finally:
            ended = person.soci("umount", "--force", place)
            if ended.status:
                detach(place)
        ended.good()
        wait_for(lambda: not person.records(), "the server ends")
    assert 0 < shown < len(LIES)


def ztoc_in(root: Path) -> bytes:
    """The only zTOC of a converted image."""
    entry = soci_entries(read_index(root))[0]
    digest: str = blob_json(root, entry)["layers"][0]["digest"]
    return (root / "blobs/sha256" / digest[7:]).read_bytes()


def read_all(place: Path) -> int:
    """Reads what can be read; how many files could be. Nothing is outside of the mount."""
    count = 0
    device = place.stat().st_dev
    for above, folders, names in os.walk(os.fsencode(place)):
        for name in (*folders, *names):
            path = os.path.join(above, name)  # noqa: PTH118 - bytes
            with suppress(OSError):
                about = os.lstat(path)
                assert about.st_dev == device or stat.S_ISREG(about.st_mode)
                if stat.S_ISREG(about.st_mode):
                    with open(path, "rb") as stream:  # noqa: PTH123 - bytes
                        stream.read(1 << 20)
                    count += 1
    return count
