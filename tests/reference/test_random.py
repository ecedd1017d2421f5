"""Random layers, against the reference's own library: the same zTOC, and the same files read through it.

The program beside this file is built on github.com/awslabs/soci-snapshotter, package ztoc.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from soci_cli.ztoc import Compression, LayerReader, decode_ztoc
from tests.support.layers import BUILD_TOOL, build, reader_of
from tests.support.machine import need
from tests.support.scale import scaled

LAYERS = 300
_BATCH = 50
_SPANS = (1, 1000, 1 << 14, 1 << 16, 1 << 18, 1 << 22)
_WORDS = [
    "bin",
    "usr",
    "lib",
    "etc",
    "Ünï",
    "a b",
    "日本",
    "x" * 99,
    "y" * 100,
    "z" * 140,
    "-",
    "k=v",
    ".wh.a",
]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program on the reference's library."""
    go, _ = need("go"), need("gcc")
    if not Path("/usr/include/zlib.h").exists():
        pytest.skip("zlib's header files are not installed")
    made = tmp_path_factory.mktemp("reference") / "reference"
    done = subprocess.run(
        [go, "build", "-buildvcs=false", "-o", made, "."],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    if "requires go >=" in done.stderr:
        pytest.skip(f"this Go is too old: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return made


def content(random_: random.Random) -> bytes:
    size = random_.choice(
        [0, 1, 511, 512, 513, random_.randrange(5000), random_.randrange(150_000)]
    )
    kind = random_.randrange(3)
    if kind == 0:
        return random_.randbytes(size)
    if kind == 1:
        return bytes(size)
    return (random_.randbytes(random_.randrange(1, 300)) * (size + 1))[:size]


def member(random_: random.Random, names: list[str], format_: int) -> tarfile.TarInfo:
    """An entry of any kind that all tools know; `names` are those before it."""
    parts = [random_.choice(_WORDS) for _ in range(random_.randrange(1, 4))]
    if format_ == tarfile.USTAR_FORMAT:
        parts = [part[:60] if part.isascii() else "ascii" for part in parts]
    name = "/".join(parts) + str(random_.randrange(1000))
    name = random_.choice(["", "", "./", "/", "../"]) + name
    info = tarfile.TarInfo(name)
    info.mode = random_.choice([0o644, 0o755, 0o4755, 0o1777, 0, 0o7777])
    info.uid, info.gid = random_.choice([0, 1000, 65534]), random_.choice([0, 5, 2_000_000])
    info.uname, info.gname = random_.choice(["", "root", "nobody"]), random_.choice(["", "wheel"])
    info.mtime = random_.choice([0, 1, 1_700_000_000, 2**31, 2**33 - 1, 1_600_000_000])
    info.type = random_.choice(
        [tarfile.REGTYPE] * 6
        + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
        + [tarfile.CHRTYPE, tarfile.BLKTYPE]
    )
    if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname = random_.choice([*names, "target", "../up"])[:99]
        if format_ == tarfile.USTAR_FORMAT and not info.linkname.isascii():
            info.linkname = "target"
    if info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = random_.randrange(300), random_.randrange(300)
    if format_ == tarfile.PAX_FORMAT:
        records: dict[str, str] = {}
        for _ in range(random_.choice([0, 0, 0, 1, 3])):
            key = random_.choice(
                ["user.a", "security.capability", "trusted.overlay.opaque", "user.ü"]
            )
            records[f"SCHILY.xattr.{key}"] = random_.choice(["", "y", "value=1", "ö" * 20])
        if random_.random() < 0.2:
            records["mtime"] = f"{random_.randrange(2**31)}.{random_.randrange(10**9)}"
        if random_.random() < 0.1:
            records["comment"] = "x" * random_.randrange(2000)
        info.pax_headers = records
    return info


def archive(random_: random.Random) -> bytes:
    formats = (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT)
    out = io.BytesIO()
    format_ = random_.choice(formats)
    names: list[str] = []
    with tarfile.open(fileobj=out, mode="w", format=format_) as tar:
        for _ in range(random_.choice([0, 1, 3, 10, 40])):
            info = member(random_, names, format_)
            data = content(random_) if info.isreg() else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            names.append(info.name)
        ended = tar.offset
    # As many zero blocks as tar writes, more, fewer, and none at all.
    data = out.getvalue()
    end = random_.choice([len(data), len(data), len(data) + 10_000, ended + 1024, ended])
    return data.ljust(end, b"\0")[:end]


def deflated(data: bytes, random_: random.Random) -> bytes:
    """A gzip stream with flush blocks of several kinds, as programs that stream write it."""
    level = random_.choice([0, 1, 6, 9])
    compressor = zlib.compressobj(
        level, zlib.DEFLATED, 31, random_.choice([1, 8]), random_.randrange(5)
    )
    out = bytearray()
    for start in range(0, len(data), 30_000):
        out += compressor.compress(data[start : start + 30_000])
        out += compressor.flush(
            random_.choice([zlib.Z_NO_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH])
        )
    return bytes(out + compressor.flush())


def members(data: bytes, random_: random.Random) -> bytes:
    """Several gzip members."""
    cuts = sorted(random_.randrange(len(data) + 1) for _ in range(random_.randrange(1, 5)))
    parts = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return b"".join(gzip.compress(part, random_.randrange(10), mtime=0) for part in parts)


def by(*command: str) -> Callable[[bytes, random.Random], bytes]:
    def pack(data: bytes, random_: random.Random) -> bytes:
        done = subprocess.run(
            [*command, f"-{random_.randrange(1, 10)}"], input=data, capture_output=True
        )
        return done.stdout if done.returncode == 0 else gzip.compress(data, mtime=0)

    return pack


PACKERS: list[Callable[[bytes, random.Random], bytes]] = [
    lambda data, random_: data,
    lambda data, random_: gzip.compress(data, random_.randrange(10), mtime=0),
    deflated,
    deflated,
    members,
    *([by("pigz", "-nc")] if shutil.which("pigz") else []),
    *([by("gzip", "-nc")] if shutil.which("gzip") else []),
]


@dataclass(frozen=True)
class Case:
    """One layer; `seed` makes it again."""

    seed: int
    layer: bytes
    span: int

    @property
    def is_gzip(self) -> bool:
        return self.layer[:2] == b"\x1f\x8b"


def case(seed: int) -> Case:
    random_ = random.Random(seed)
    data = archive(random_)
    layer = random_.choice(PACKERS)(data, random_)
    # A small span makes a checkpoint of 32 KiB for each block of a large layer.
    span = random_.choice([size for size in _SPANS if len(data) // size < 300])
    return Case(seed, layer, span)


def batches(first: int, count: int) -> Iterator[list[Case]]:
    for start in range(first, first + count, _BATCH):
        yield [case(seed) for seed in range(start, min(start + _BATCH, first + count))]


def ours(one: Case) -> tuple[str, list[str], list[str]]:
    built = build(
        one.layer,
        span_size=one.span,
        compression=Compression.GZIP if one.is_gzip else Compression.UNCOMPRESSED,
        build_tool_identifier=BUILD_TOOL,
    )
    ztoc = decode_ztoc(built.data)
    reader = LayerReader(ztoc, reader_of(one.layer))
    names, files = [], []
    for entry in ztoc.files:
        found = ""
        if entry.type == b"reg" and entry.uncompressed_size:
            found = hashlib.sha256(b"".join(reader.read_file(entry))).hexdigest()
        names.append(entry.name.hex())
        files.append(found)
    return built.digest, names, files


def test_random_layers(program: Path, tmp_path: Path) -> None:
    start = random.SystemRandom().randrange(2**40)
    for batch in batches(start, scaled(LAYERS)):
        lines = []
        for one in batch:
            path = tmp_path / str(one.seed)
            path.write_bytes(one.layer)
            name = "gzip" if one.is_gzip else "uncompressed"
            lines.append(f"{one.span} {name} {path}\n")
        done = subprocess.run(
            [program, BUILD_TOOL],
            input="".join(lines),
            capture_output=True,
            text=True,
            check=True,
            env={"TZ": "UTC"},
        )
        for one, line in zip(batch, done.stdout.splitlines(), strict=True):
            answer = json.loads(line)
            what = f"the layer of the seed {one.seed}, spans of {one.span}"
            assert not answer["error"], f"{what}: {answer['error']}"
            digest, names, files = ours(one)
            assert digest == answer["digest"], what
            assert names == (answer["names"] or []), what
            assert files == (answer["files"] or []), what
            (tmp_path / str(one.seed)).unlink()
