"""Copying blobs and whole images between any two places."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from soci_cli.errors import (
    IntegrityError,
    InvalidDataError,
    LostUploadError,
    NotFoundError,
    SociError,
    errors_at,
)
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import encoded_of
from soci_cli.oci.manifest import parse_index, parse_manifest
from soci_cli.oci.media_types import is_index, is_manifest
from soci_cli.parallel import Stop, StoppableTask, run_all
from soci_cli.progress import Observer, SilentObserver, Task, Work
from soci_cli.targets.blobs import ContentCheck
from soci_cli.targets.protocol import MANIFEST_LIMIT, SENDINGS, Source, Target, read_blob

DEPTH_LIMIT = 8
NODE_LIMIT = 100_000
_MANIFESTS_LIMIT = 64 * 1024 * 1024
_PAGE = 64 << 10  # bytes
_CHUNK = 1024 * 1024

Outcome: TypeAlias = Literal["already there", "linked", "mounted", "copied"]


@dataclass(frozen=True)
class CopySummary:
    """What `copy_graph` did, in blobs and manifests; `size` is the bytes that were written.

    `linked` counts what was shared or mounted instead of copied, `left_out` foreign layers that the
    source does not have and manifests that were allowed to be missing.
    """

    copied: int
    linked: int
    present: int
    left_out: int
    size: int


class BlobPages:
    """The bytes of a blob, of which only the pages that are looked at are fetched; not verified."""

    def __init__(self, source: Source, descriptor: Descriptor) -> None:
        self._source = source
        self._descriptor = descriptor
        self._pages: dict[int, bytes] = {}

    def __len__(self) -> int:
        return self._descriptor.size

    def __getitem__(self, part: slice, /) -> bytes:
        """What `Source.fetch` raises; InvalidDataError for more than a page's worth."""
        start, end, _ = part.indices(len(self))
        if end - start > _PAGE:
            raise InvalidDataError(f"blob {self._descriptor.digest}: a part of it is too long")
        pages = [self._page(at) for at in range(start - start % _PAGE, end, _PAGE)]
        return b"".join(pages)[start % _PAGE :][: end - start]

    def _page(self, at: int) -> bytes:
        if at not in self._pages:
            length = min(_PAGE, len(self) - at)
            with self._source.fetch(self._descriptor, at, length) as stream:
                self._pages[at] = stream.read()
        return self._pages[at]


def copy_blob(
    source: Source, target: Target, descriptor: Descriptor, task: Task | None = None
) -> Outcome:
    """Copy one blob, verified, and say how. Nothing is copied when the target has it already.

    `task` hears of every byte that was read. IntegrityError when the source's bytes are wrong.
    """
    if target.exists(descriptor):
        return "already there"
    if target.mount(descriptor, source):
        return "mounted"
    task = task or SilentObserver().start("", None)
    if may_link(source, target, descriptor.digest):
        # A link copies nothing, so nothing would notice a damaged file: read it once first.
        check = ContentCheck(descriptor, source.name)
        _stream(source, descriptor, check.add, task)
        check.verify()
        if target.link(descriptor, source):
            return "linked"
        task = SilentObserver().start("", None)
    for left in reversed(range(SENDINGS)):
        writer = target.open_writer(descriptor)
        try:
            _stream(source, descriptor, writer.write, task)
            writer.commit()
            break
        except LostUploadError:
            if not left:
                raise
            task = SilentObserver().start("", None)
        finally:
            writer.abort()
    return "copied"


def skip_nothing(descriptor: Descriptor) -> bool:
    """The default of `copy_graph`: every part of the image is copied."""
    return False


def copy_graph(
    source: Source,
    target: Target,
    root: Descriptor,
    observer: Observer | None = None,
    concurrency: int = 2,
    skip: Callable[[Descriptor], bool] = skip_nothing,
    *,
    allow_missing_manifests: bool = False,
) -> CopySummary:
    """Copy an image: manifests with their exact bytes, configs, layers. Subjects are not followed.

    Children are there before their parents, so an interrupted copy leaves no manifest without its
    blobs. What `skip` answers True for is left out together with all below it. `concurrency` blobs
    are copied at a time. The caller tags afterwards.

    A foreign layer (one with urls) that the source does not have is left out; another absent blob
    is NotFoundError, except that `allow_missing_manifests` leaves out absent manifests of an index,
    as layouts with a part of the platforms have them. InvalidDataError when the graph is deeper
    than 8 or has more than 100,000 parts.
    """
    graph = _walk(source, root, skip, allow_missing_manifests)
    leaves = [descriptor for digest, descriptor in graph.seen.items() if digest not in graph.data]
    outcomes = copy_blobs(source, target, leaves, observer, concurrency)
    count = Counter({"left out": graph.left_out})
    size = 0
    for descriptor, outcome in zip(leaves, outcomes, strict=True):
        count[outcome] += 1
        size += descriptor.size if outcome == "copied" else 0
    for descriptor in _children_first(graph, root):
        if target.exists(descriptor):
            count["already there"] += 1
            continue
        target.push(descriptor, graph.data[descriptor.digest])
        count["copied"] += 1
        size += descriptor.size
    return CopySummary(
        copied=count["copied"],
        linked=count["linked"] + count["mounted"],
        present=count["already there"],
        left_out=count["left out"],
        size=size,
    )


def copy_blobs(
    source: Source,
    target: Target,
    blobs: Sequence[Descriptor],
    observer: Observer | None = None,
    concurrency: int = 2,
) -> list[str]:
    """Copy blobs that are no manifests, `concurrency` at a time; how each went, in their order.

    A foreign layer that the source does not have is left out.
    """
    heard = observer or SilentObserver()

    def copy(descriptor: Descriptor, stop: Stop) -> str:
        return copy_leaf(source, target, descriptor, heard, stop)

    return run_all(copy, blobs, concurrency)


def children_of(descriptor: Descriptor, data: bytes, what: str) -> tuple[Descriptor, ...]:
    """What a manifest or index names, in order: manifests, or config and layers; no subject.

    Empty for any other media type. Raises InvalidDataError.
    """
    if is_index(descriptor.media_type):
        return tuple(parse_index(data, what, descriptor.media_type).manifests)
    if is_manifest(descriptor.media_type):
        manifest = parse_manifest(data, what, descriptor.media_type)
        return (manifest.config, *manifest.layers)
    return ()


def referring_entries(
    source: Source, entries: Iterable[Descriptor], subject: Descriptor, artifact_type: str
) -> tuple[Descriptor, ...]:
    """Those of some manifests that refer to `subject`; for places that keep no list of referrers."""
    found = []
    for entry in entries:
        if not is_manifest(entry.media_type):
            continue
        # A damaged neighbour is no reason to fail over an image.
        with suppress(SociError):
            manifest = parse_manifest(read_blob(source, entry), f"manifest {entry.digest}")
            kind = manifest.artifact_type or manifest.config.media_type
            refers = manifest.subject is not None and manifest.subject.digest == subject.digest
            if refers and kind == artifact_type:
                found.append(replace(entry, artifact_type=kind))
    return tuple(found)


@dataclass
class _Graph:
    """Every part of an image by digest, with the bytes and the children of its manifests."""

    seen: dict[str, Descriptor] = field(default_factory=dict)
    data: dict[str, bytes] = field(default_factory=dict)
    children: dict[str, tuple[Descriptor, ...]] = field(default_factory=dict)
    left_out: int = 0

    def has(self, descriptor: Descriptor, place: str) -> bool:
        """Whether a part was seen before; IntegrityError when it had another size then."""
        known = self.seen.get(descriptor.digest)
        if known is not None and known.size != descriptor.size:
            raise two_sizes(place, known, descriptor)
        return known is not None


def two_sizes(place: str, one: Descriptor, other: Descriptor) -> IntegrityError:
    """The error for an image whose manifests do not agree on the size of a blob."""
    return IntegrityError(
        f"the image in {place} gives blob {one.digest} two sizes, {one.size} and {other.size}",
        place=place,
    )


def _walk(
    source: Source, root: Descriptor, skip: Callable[[Descriptor], bool], allow_missing: bool
) -> _Graph:
    graph = _Graph()
    held = 0
    level = [] if skip(root) else [root]
    for depth in range(DEPTH_LIMIT + 1):
        below: list[Descriptor] = []
        for descriptor in level:
            if graph.has(descriptor, source.name):
                continue
            graph.seen[descriptor.digest] = descriptor
            if len(graph.seen) > NODE_LIMIT:
                raise InvalidDataError(
                    f"the image in {source.name} has more than {NODE_LIMIT} parts",
                    place=source.name,
                )
            if not (is_index(descriptor.media_type) or is_manifest(descriptor.media_type)):
                continue
            try:
                data = read_blob(source, descriptor)
            except NotFoundError:
                if depth == 0 or not allow_missing:
                    raise
                del graph.seen[descriptor.digest]
                graph.left_out += 1
                continue
            held += len(data)
            if held > _MANIFESTS_LIMIT:
                raise InvalidDataError(
                    f"the manifests of the image in {source.name} take more than "
                    f"{_MANIFESTS_LIMIT} bytes",
                    place=source.name,
                )
            graph.data[descriptor.digest] = data
            what = f"manifest {descriptor.digest} in {source.name}"
            children = tuple(
                child for child in children_of(descriptor, data, what) if not skip(child)
            )
            graph.children[descriptor.digest] = children
            below.extend(children)
        level = [descriptor for descriptor in below if not graph.has(descriptor, source.name)]
        if not level:
            return graph
    raise InvalidDataError(
        f"the image in {source.name} is nested deeper than {DEPTH_LIMIT}: {root.digest}",
        place=source.name,
    )


def _children_first(graph: _Graph, root: Descriptor) -> list[Descriptor]:
    """The manifests of the graph, each after all that it names."""
    order: list[Descriptor] = []
    done: set[str] = set()
    pending: list[tuple[str, bool]] = [(root.digest, False)]
    while pending:
        digest, children_done = pending.pop()
        if children_done:
            order.append(graph.seen[digest])
        elif digest in graph.data and digest not in done:
            done.add(digest)
            pending.append((digest, True))
            pending.extend((child.digest, False) for child in graph.children[digest])
    return order


def copy_leaf(
    source: Source, target: Target, descriptor: Descriptor, observer: Observer, stop: Stop
) -> str:
    """`copy_blob`, watched; "left out" for a foreign layer that the source does not have."""
    with Work(observer, encoded_of(descriptor.digest)[:12], descriptor.size) as work:
        # Asked first: a rehearsal must not take what nobody has for something new.
        if descriptor.urls and not source.exists(descriptor):
            work.outcome = "left out"
        else:
            work.outcome = copy_blob(source, target, descriptor, StoppableTask(work, stop))
    return work.outcome


def _stream(
    source: Source, descriptor: Descriptor, write: Callable[[memoryview], object], task: Task
) -> None:
    with errors_at(place=source.name):
        stream = source.fetch(descriptor)
    with stream:
        buffer = memoryview(bytearray(min(_CHUNK, descriptor.size + 1)))
        while True:
            with errors_at(place=source.name):
                count = stream.readinto(buffer)
            if not count:
                return
            write(buffer[:count])
            task.advance(count)


def may_link(source: Source, target: Target, digest: str) -> bool:
    """Whether `target.link` has a chance: both places keep files, and on the same disk."""
    if source.folder is None or target.folder is None:
        return False
    try:
        here = os.lstat(source.folder.blob_path(digest)).st_dev
        there = target.folder.blob_path(digest).parent
        while not there.exists():
            there = there.parent
        return here == there.stat().st_dev
    except OSError:
        return False


__all__ = [
    "MANIFEST_LIMIT",
    "CopySummary",
    "Outcome",
    "children_of",
    "copy_blob",
    "copy_blobs",
    "copy_graph",
    "may_link",
    "read_blob",
    "referring_entries",
    "skip_nothing",
]
