"""What one process of the benchmark measures: `python -m tests.bench.tasks TASK ARGUMENT...`.

Every measurement runs in a process of its own, so that its peak memory is its own, too. It prints one
line of JSON: `seconds`, `peak` (bytes of memory at most, the interpreter's included) and what the task
found. Imports are not timed, and the layer is read once before, so that it is in the page cache.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

_SPACING = 4 << 20  # bytes between an index's points: the default span size of a zTOC
_PLAIN_READ = 256 << 10
_THREADS = 2
_GROUP = 8  # spans of a request

Result = dict[str, Any]


def plain_inflate(layer: str) -> Result:
    """Inflates with zlib-ng and forgets the output."""
    from zlib_ng import zlib_ng

    _warm(layer)
    start = perf_counter()
    size = 0
    inflater = zlib_ng.decompressobj(wbits=31)
    with Path(layer).open("rb", buffering=0) as stream:
        while data := stream.read(_PLAIN_READ):
            size += len(inflater.decompress(data))
    return {"seconds": perf_counter() - start, "uncompressed_size": size}


def build(*layers: str) -> Result:
    """Builds the zTOC of a layer, or those of several side by side."""
    from concurrent.futures import ThreadPoolExecutor

    from soci_cli.ztoc.builder import BuiltZtoc, build_ztoc

    def build_one(layer: str) -> BuiltZtoc:
        with Path(layer).open("rb", buffering=0) as stream:
            return build_ztoc(stream)

    _warm(*layers)
    start = perf_counter()
    if len(layers) == 1:
        built = [build_one(layers[0])]
    else:
        with ThreadPoolExecutor(len(layers)) as pool:
            built = list(pool.map(build_one, layers))
    return {
        "seconds": perf_counter() - start,
        "entries": sum(one.files for one in built),
        "ztoc_size": sum(len(one.data) for one in built),
    }


def convert_image(*layers: str) -> Result:
    """Runs `soci image convert` on an image of these layers, as a user would."""
    folder = Path(layers[0]).parent
    image, converted = folder / f"image-of-{len(layers)}", folder / "converted"
    entries = make_image(image, layers)
    _warm(*layers)
    shutil.rmtree(converted, ignore_errors=True)
    command = [sys.executable, "-m", "soci_cli", "image", "convert", "--quiet", "--soci"]
    command.append("--soci-min-layer-size=0")
    start = perf_counter()
    subprocess.run(
        [*command, f"oci:{image}", f"oci:{converted}"], check=True, stdout=subprocess.DEVNULL
    )
    seconds = perf_counter() - start
    shutil.rmtree(converted)
    shutil.rmtree(image)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "seconds": seconds,
        "layers": entries,
        "peak": peak if sys.platform == "darwin" else peak * 1024,
    }


def make_image(place: Path, layers: Sequence[str]) -> int:
    """An image of gzip layers that are linked, not copied."""
    from soci_cli.oci import Descriptor, Manifest, digest_of, encode, platforms
    from soci_cli.oci.media_types import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST
    from soci_cli.targets import open_target, parse_place

    shutil.rmtree(place, ignore_errors=True)
    blobs = place / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    descriptors, diff_ids = [], []
    for layer in layers:
        with Path(layer).open("rb") as stream:
            hasher, content, inflater = hashlib.sha256(), hashlib.sha256(), zlib.decompressobj(31)
            while piece := stream.read(1 << 20):
                hasher.update(piece)
                content.update(inflater.decompress(piece))
        (blobs / hasher.hexdigest()).hardlink_to(layer)
        size = Path(layer).stat().st_size
        diff_ids.append(f"sha256:{content.hexdigest()}")
        descriptors.append(Descriptor(OCI_LAYER_GZIP, f"sha256:{hasher.hexdigest()}", size))
    host = platforms.host_platform()
    config = json.dumps(
        {
            "architecture": host.architecture,
            "os": host.os,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    ).encode()
    with open_target(parse_place(f"oci:{place}:latest"), place) as target:
        config_blob = Descriptor(OCI_CONFIG, digest_of(config), len(config))
        target.push(config_blob, config)
        manifest = encode(Manifest(2, OCI_MANIFEST, "", config_blob, tuple(descriptors)))
        root = Descriptor(OCI_MANIFEST, digest_of(manifest), len(manifest))
        target.push(root, manifest)
        target.tag(root)
    return len(descriptors)


def index_indexed_gzip(layer: str) -> Result:
    """Builds the whole index of indexed_gzip."""
    indexed_gzip = importlib.import_module("indexed_gzip")
    _warm(layer)
    start = perf_counter()
    with indexed_gzip.IndexedGzipFile(layer, spacing=_SPACING) as file:
        file.build_full_index()
        return {"seconds": perf_counter() - start}


def index_rapidgzip(layer: str) -> Result:
    """Builds the whole index of rapidgzip."""
    rapidgzip = importlib.import_module("rapidgzip")
    _warm(layer)
    start = perf_counter()
    with rapidgzip.open(layer, parallelization=_THREADS) as file:
        size = max(file.block_offsets().values())
        return {"seconds": perf_counter() - start, "uncompressed_size": size}


def list_tarfile(layer: str) -> Result:
    """Lists the archive with Python's tarfile and gzip."""
    import tarfile

    _warm(layer)
    start = perf_counter()
    entries = 0
    with tarfile.open(layer, "r:gz") as tar:
        for _ in tar:
            entries += 1
        return {"seconds": perf_counter() - start, "entries": entries}


def prepare(layer: str, ztoc_path: str, index_path: str) -> Result:
    """Writes the layer's zTOC and indexed_gzip's index, and picks a small file in the middle."""
    from soci_cli.ztoc import build_ztoc, decode_ztoc

    with Path(layer).open("rb", buffering=0) as stream:
        built = build_ztoc(stream)
    Path(ztoc_path).write_bytes(built.data)
    with suppress(ImportError):
        indexed_gzip = importlib.import_module("indexed_gzip")
        with indexed_gzip.IndexedGzipFile(layer, spacing=_SPACING) as file:
            file.build_full_index()
            file.export_index(index_path)
    files = [entry for entry in decode_ztoc(built.data).files if entry.has_data]
    small = [entry for entry in files if 4000 <= entry.uncompressed_size <= 6000] or files
    middle = built.uncompressed_size // 2
    entry = min(small, key=lambda entry: abs(entry.uncompressed_offset - middle))
    return {
        "file": os.fsdecode(entry.name),
        "offset": entry.uncompressed_offset,
        "size": entry.uncompressed_size,
        "ztoc_size": len(built.data),
    }


def read_ours(layer: str, ztoc_path: str, name: str) -> Result:
    """Reads one file through the zTOC."""
    from soci_cli.ztoc import FileTree, LayerReader, decode_ztoc
    from soci_cli.ztoc.inflate import backend

    backend()  # imports zlib-ng
    _warm(layer, ztoc_path)
    start = perf_counter()
    ztoc = decode_ztoc(Path(ztoc_path).read_bytes())
    tree = FileTree(ztoc)
    loaded = perf_counter()
    with Path(layer).open("rb", buffering=0) as stream:
        reader = LayerReader(
            ztoc, lambda offset, length: os.pread(stream.fileno(), length, offset), layer
        )
        data = b"".join(reader.read_file(tree.find(os.fsencode(name))))
    return _read_result(start, loaded, data)


def read_indexed_gzip(layer: str, index_path: str, offset: str, size: str) -> Result:
    """Reads one file, whose place is known, with indexed_gzip and its index."""
    indexed_gzip = importlib.import_module("indexed_gzip")
    _warm(layer, index_path)
    start = perf_counter()
    with indexed_gzip.IndexedGzipFile(layer, index_file=index_path) as file:
        loaded = perf_counter()
        file.seek(int(offset))
        return _read_result(start, loaded, file.read(int(size)))


def read_gzip(layer: str, offset: str, size: str) -> Result:
    """Reads one file, whose place is known, with Python's gzip from the layer's start."""
    import gzip

    _warm(layer)
    start = perf_counter()
    with gzip.open(layer) as file:
        file.seek(int(offset))
        return _read_result(start, start, file.read(int(size)))


def _read_result(start: float, loaded: float, data: bytes) -> Result:
    end = perf_counter()
    return {
        "seconds": end - start,
        "load": loaded - start,
        "read": end - loaded,
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def plain_spans(host: str, repository: str, layer: str, ztoc_path: str) -> Result:
    """Downloads all spans of a layer, checks and inflates them, with two threads; forgets the output.

    It is what reading through spans cannot do without, written as plainly as it goes: a connection for
    each thread, requests of several spans, one call for each digest and each inflate.
    """
    from concurrent.futures import ThreadPoolExecutor

    from soci_cli.ztoc import decode_ztoc
    from soci_cli.ztoc.inflate import backend

    backend()
    ztoc = decode_ztoc(Path(ztoc_path).read_bytes())
    count = len(ztoc.spans)
    groups = [range(at, min(at + _GROUP, count)) for at in range(0, count, _GROUP)]
    path = f"/v2/{repository}/blobs/{layer}"
    start = perf_counter()
    with ThreadPoolExecutor(_THREADS) as pool:
        work = [pool.submit(_plain_groups, host, path, ztoc, groups) for _ in range(_THREADS)]
        size = sum(one.result() for one in work)
    seconds = perf_counter() - start
    if size != ztoc.uncompressed_archive_size:
        raise SystemExit(f"inflated {size} bytes, not {ztoc.uncompressed_archive_size}")
    return {"seconds": seconds, "uncompressed_size": size}


def _plain_groups(host: str, path: str, ztoc: Any, groups: list[range]) -> int:
    """Takes groups of spans until there are none left; how many bytes they inflated to."""
    from http.client import HTTPConnection

    from soci_cli.ztoc.inflate import RAW, Z_NO_FLUSH, Buffer, Inflater

    spans = ztoc.spans
    ends = [*spans.starts[1:], ztoc.uncompressed_archive_size]
    target = Buffer(max(end - start for start, end in zip(spans.starts, ends, strict=True)))
    source = Buffer(1)
    connection = HTTPConnection(host)
    total = 0
    with suppress(IndexError), Inflater(RAW) as inflater:
        while True:
            group = groups.pop()
            first, last = spans.compressed_range(group[0])[0], spans.compressed_range(group[-1])[1]
            if len(source.data) < last - first:
                source = Buffer(last - first)
            connection.request("GET", path, headers={"Range": f"bytes={first}-{last - 1}"})
            answer = connection.getresponse()
            got, view = 0, source.view[: last - first]
            while moved := answer.readinto(view[got:]):
                got += moved
            if answer.status != 206 or got != last - first:
                raise SystemExit(f"status {answer.status}, {got} bytes")
            for span in group:
                begin, end = spans.compressed_range(span)
                begin, end = begin - first, end - first
                digest = b"sha256:" + hashlib.sha256(view[begin:end]).hexdigest().encode()
                if digest != ztoc.span_digests[span]:
                    raise SystemExit(f"span {span} is wrong")
                point = spans.checkpoints[span]
                shared = 1 if point.bits else 0
                inflater.reset(RAW)
                inflater.resume(point.bits, view[begin] if shared else 0, point.window)
                stream = inflater.stream
                stream.next_in = source.address + begin + shared
                stream.avail_in = end - begin - shared
                stream.next_out = target.address
                stream.avail_out = ends[span] - spans.starts[span]
                inflater.run(Z_NO_FLUSH)
                total += ends[span] - spans.starts[span] - stream.avail_out
    connection.close()
    return total


def complete(layer: str, ztoc_path: str, cache: str, cores: str) -> Result:
    """Makes the complete device of a layer that is a file, and syncs it; on so many cores, 0 for all."""
    from soci_cli.lazy import Cache, Fetching, LayerSpans
    from soci_cli.oci import Descriptor
    from soci_cli.targets import open_source, parse_place
    from soci_cli.ztoc import decode_ztoc

    if int(cores):
        os.sched_setaffinity(0, list(os.sched_getaffinity(0))[: int(cores)])
    ztoc = decode_ztoc(Path(ztoc_path).read_bytes())
    hasher, plain, inflater = hashlib.sha256(), hashlib.sha256(), zlib.decompressobj(31)
    with Path(layer).open("rb") as stream:
        while piece := stream.read(1 << 20):
            hasher.update(piece)
            plain.update(inflater.decompress(piece))
    image = Path(cache).with_name("image")
    make_image(image, [layer])
    about = Descriptor("", f"sha256:{hasher.hexdigest()}", Path(layer).stat().st_size)
    with (
        open_source(parse_place(f"oci:{image}:latest"), image) as source,
        Fetching(Cache(Path(cache), 1 << 40)) as fetching,
    ):
        digest = f"sha256:{hashlib.sha256(Path(ztoc_path).read_bytes()).hexdigest()}"
        diff_id = f"sha256:{plain.hexdigest()}"
        spans = LayerSpans(fetching, source, about, ztoc, digest, lambda: diff_id)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        start = perf_counter()
        spans.complete()
        seconds = perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
    return {"seconds": seconds, "cpu": cpu}


def read_again(names: str, times: str) -> Result:
    """Reads files several times, each time anew from their file system. `names` lists them."""
    paths = Path(names).read_bytes().split(b"\0")
    buffer = bytearray(1 << 20)
    start = perf_counter()
    size = 0
    for _ in range(int(times)):
        for path in paths:
            fd = os.open(path, os.O_RDONLY)
            while count := os.readv(fd, [buffer]):
                size += count
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)
    return {"seconds": perf_counter() - start, "uncompressed_size": size}


def make_layers(request: str) -> Result:
    """Makes layers; `request` is what bench.py wrote."""
    from tests.bench.layers import Shape
    from tests.bench.layers import make_layers as make

    wanted = json.loads(request)
    make(
        [Shape(**shape) for shape in wanted["shapes"]],
        [Path(source) for source in wanted["sources"]],
        Path(wanted["work"]),
        [Path(path) for path in wanted["excluded"]],
    )
    return {}


def _warm(*paths: str) -> None:
    buffer = bytearray(1 << 20)
    for path in paths:
        with Path(path).open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def _peak_memory() -> int:
    """Bytes of memory that this process had at most."""
    # On Linux ru_maxrss also counts the parent at the time of the fork; VmHWM does not.
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def spans_needed(image: str, *command: str) -> Result:
    """Runs a command in a mount where nothing is read ahead: the bytes of spans that hold what it reads."""
    import tempfile

    from soci_cli.lazy import Cache, Fetching, open_image
    from soci_cli.lazy.fuse import MountOptions, mount_image
    from soci_cli.targets import open_source, parse_place

    bdi = Path("/sys/class/bdi")
    before = set(bdi.iterdir())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target, scratch = folder / "mounted", folder / "scratch"
        target.mkdir()
        scratch.mkdir(0o700)
        with (
            open_source(parse_place(f"docker://{image}"), folder / "store") as source,
            Fetching(Cache(folder / "cache", 10 << 30)) as fetching,
            open_image(source, fetching) as opened,
            mount_image(opened, target, scratch, MountOptions(), print) as mounted,
        ):
            for device in set(bdi.iterdir()) - before:
                (device / "read_ahead_kb").write_text("0")
            start = perf_counter()
            subprocess.run(["chroot", str(target), *command], check=True)
            seconds = perf_counter() - start
            fetched = fetching.stats.report().demand.fetched
            mounted.unmount()
    return {"seconds": seconds, "fetched": fetched}


_TASKS: Sequence[Callable[..., Result]] = (
    plain_inflate,
    build,
    convert_image,
    index_indexed_gzip,
    index_rapidgzip,
    list_tarfile,
    prepare,
    read_ours,
    read_indexed_gzip,
    read_gzip,
    plain_spans,
    read_again,
    spans_needed,
    complete,
    make_layers,
)

if __name__ == "__main__":
    task = {task.__name__: task for task in _TASKS}[sys.argv[1]]
    result = task(*sys.argv[2:])
    result.setdefault("peak", _peak_memory())
    print(json.dumps(result))
