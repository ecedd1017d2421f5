"""Images for tests: layouts written without the code under test, and checks of what it wrote."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard

from soci_cli.index.convert import ConvertOptions, ConvertResult, convert
from soci_cli.oci import Descriptor, platforms
from soci_cli.oci.media_types import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    is_index,
    is_manifest,
)
from soci_cli.progress import Observer
from soci_cli.targets import Source, open_source, open_target, parse_place

GOLDEN = Path(__file__).parent.parent / "golden"
REFERENCE_TOOL = "AWS SOCI CLI v0.2"
REF_NAME = "org.opencontainers.image.ref.name"
LINUX_AMD64 = platforms.parse("linux/amd64")

Json = dict[str, Any]


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def tar_of(files: Mapping[str, bytes], *, format_: int = tarfile.PAX_FORMAT) -> bytes:
    """An archive of regular files, always the same bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format_) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(data), 1_700_000_000, 0o644
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def layer_tar(seed: int = 0, size: int = 60_000) -> bytes:
    """An archive with a large file that hardly compresses and a few small ones."""
    small = {f"etc/{seed}/{number}": noise(number, 100 * number) for number in range(5)}
    return tar_of({f"data/{seed}.bin": noise(seed, size), **small})


def gz(data: bytes, level: int = 6) -> bytes:
    return gzip.compress(data, level, mtime=0)


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(data)


class LayoutMaker:
    """Writes an OCI layout by hand, wrong ones too."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "blobs" / "sha256").mkdir(parents=True)
        (root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self.entries: list[Json] = []
        self._write_index()

    def blob(self, data: bytes, media_type: str = OCI_LAYER_GZIP, **fields: Any) -> Json:
        """Stores a blob; returns its descriptor."""
        digest = sha256(data)
        self.path(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data), **fields}

    def document(self, value: object, media_type: str, **fields: Any) -> Json:
        return self.blob(json.dumps(value).encode(), media_type, **fields)

    def config(
        self,
        diff_ids: Sequence[str] = (),
        *,
        architecture: str = "amd64",
        variant: str = "",
        media_type: str = OCI_CONFIG,
    ) -> Json:
        value: Json = {
            "architecture": architecture,
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        }
        if variant:
            value["variant"] = variant
        return self.document(value, media_type)

    def manifest(self, layers: Sequence[Json], config: Json | None = None, **more: Any) -> Json:
        """Stores a manifest; what is in `more` goes into it."""
        value = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config or self.config(),
            "layers": list(layers),
            **more,
        }
        return self.document(value, value["mediaType"])

    def index(self, manifests: Sequence[Json], **more: Any) -> Json:
        value = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": list(manifests),
            **more,
        }
        return self.document(value, value["mediaType"])

    def tag(self, root: Json, tag: str | None = "latest", **annotations: str) -> None:
        """Adds an entry to index.json."""
        names = {REF_NAME: tag} if tag else {}
        self.entries.append({**root, "annotations": {**names, **annotations}})
        self._write_index()

    def path(self, digest: str) -> Path:
        return self.root / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def _write_index(self) -> None:
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": self.entries}
        (self.root / "index.json").write_text(json.dumps(index))


def make_image(root: Path, layers: Sequence[bytes] = (), tag: str = "latest") -> LayoutMaker:
    """A layout with one image of gzip layers; without `layers` it has two of its own."""
    maker = LayoutMaker(root)
    blobs = [maker.blob(data) for data in layers or [gz(layer_tar(1)), gz(layer_tar(2))]]
    diff_ids = [sha256(gzip.decompress(data)) for data in layers or ()]
    maker.tag(maker.manifest(blobs, maker.config(diff_ids)), tag)
    return maker


def make_zstd_image(root: Path, *, wrong_diff_id: bool = False) -> LayoutMaker:
    """A layout with one image: a zstd layer, then a gzip layer."""
    maker = LayoutMaker(root)
    tars = [layer_tar(3), layer_tar(4)]
    diff_ids = [sha256(tar) for tar in tars]
    if wrong_diff_id:
        diff_ids[0] = sha256(b"something else")
    blobs = [maker.blob(zst(tars[0]), OCI_LAYER_ZSTD), maker.blob(gz(tars[1]))]
    maker.tag(maker.manifest(blobs, maker.config(diff_ids)))
    return maker


class Listener:
    """An observer that writes down all it hears."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.finished: list[tuple[str, str]] = []

    def start(self, name: str, total: int | None) -> _Task:
        return _Task(self, name)

    def note(self, message: str, kind: str = "") -> None:
        self.notes.append(message)

    def outcomes(self, digest: str) -> list[str]:
        """How the tasks for a blob ended."""
        short = digest.removeprefix("sha256:")[:12]
        return [outcome for name, outcome in self.finished if name == short]


class _Task:
    def __init__(self, listener: Listener, name: str) -> None:
        self._listener = listener
        self._name = name

    def advance(self, amount: int) -> None:
        pass

    def finish(self, outcome: str) -> None:
        self._listener.finished.append((self._name, outcome))


def options(**more: Any) -> ConvertOptions:
    """Options for small images, of linux/amd64 unless all platforms or others are named."""
    more.setdefault("min_layer_size", 0)
    more.setdefault("span_size", 1 << 16)
    if not more.get("all_platforms"):
        more.setdefault("platforms", (LINUX_AMD64,))
    return ConvertOptions(**more)


def run_convert(
    source: str | Path,
    target: str | Path,
    chosen: ConvertOptions | None = None,
    observer: Observer | None = None,
    *,
    store: Path = Path("no-store"),
) -> ConvertResult:
    """Converts from place to place; a path is a layout."""
    from_place = parse_place(f"oci:{source}" if isinstance(source, Path) else source)
    to_place = parse_place(f"oci:{target}" if isinstance(target, Path) else target)
    with (
        open_source(from_place, store) as opened,
        open_target(to_place, store, opened.names()) as written,
    ):
        return convert(opened, written, chosen or options(), observer)


def fetch(source: Source, digest: str, size: int, media_type: str = "") -> bytes:
    with source.fetch(Descriptor(media_type, digest, size)) as stream:
        data = b""
        while piece := stream.read(1 << 20):
            data += piece
    return data


def check_complete(
    place: str | Path, *, store: Path = Path("no-store"), said: str = "", verify: bool = True
) -> dict[str, bytes]:
    """All blobs of an image by digest. Fails when one is missing or is not what it should be.

    A manifest of an index may be missing when `said`, what the command wrote, names it. Without
    `verify` only sizes count.
    """
    opened = parse_place(f"oci:{place}" if isinstance(place, Path) else place)
    blobs: dict[str, bytes] = {}
    with open_source(opened, store) as source:
        root = source.resolve()
        pending: list[tuple[Json, bool]] = [(root.to_json(), True)]
        while pending:
            descriptor, is_entry = pending.pop()
            digest, size = descriptor["digest"], descriptor["size"]
            kind = descriptor["mediaType"]
            absent = not source.exists(Descriptor(kind, digest, size))
            if absent and (digest in said if is_entry else descriptor.get("urls")):
                continue
            data = blobs.get(digest) or fetch(source, digest, size, kind)
            assert sha256(data) == digest or not verify
            assert len(data) == size
            blobs[digest] = data
            if is_entry and is_index(descriptor["mediaType"]):
                pending += [(entry, True) for entry in json.loads(data)["manifests"]]
            elif is_entry and is_manifest(descriptor["mediaType"]):
                manifest = json.loads(data)
                pending += [(blob, False) for blob in (manifest["config"], *manifest["layers"])]
    return blobs


def read_index(place: str | Path, *, store: Path = Path("no-store")) -> Json:
    """The image index at a place."""
    opened = parse_place(f"oci:{place}" if isinstance(place, Path) else place)
    with open_source(opened, store) as source:
        root = source.resolve()
        value: Json = json.loads(fetch(source, root.digest, root.size, root.media_type))
        return value


def blob_json(root: Path, descriptor: Mapping[str, Any]) -> Json:
    """A document of a layout."""
    path = root / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")
    value: Json = json.loads(path.read_bytes())
    return value


def soci_entries(index: Json) -> list[Json]:
    """The SOCI indexes that an image index lists."""
    return [
        entry
        for entry in index["manifests"]
        if entry.get("artifactType") == "application/vnd.amazon.soci.index.v2+json"
    ]


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Every file under a folder with its size and time of change."""
    found: dict[str, tuple[int, int]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        if path.is_file():
            found[str(path.relative_to(root))] = status.st_size, status.st_mtime_ns
    return found


def temporary(names: Iterable[str]) -> list[str]:
    """What is left of unfinished work."""
    return [name for name in names if ".ingest-" in name or ".tmp-" in name]
