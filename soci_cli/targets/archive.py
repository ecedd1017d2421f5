"""OCI image layouts in a tar file: `oci-archive:FILE[:TAG]`.

See "image-layout.md" of the OCI image specification. Reading needs an uncompressed tar file, in
which blobs are read where they lie. Writing makes a new file: an image under another tag in an
existing file is not kept, as with skopeo.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from soci_cli.errors import (
    IntegrityError,
    InvalidDataError,
    NotFoundError,
    SociError,
    StorageError,
)
from soci_cli.new_file import NewFile, unlink_quietly
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import algorithm_of, digest_of, encoded_of
from soci_cli.targets._disk import (
    FileWriter,
    MemoryReader,
    RegionReader,
    disk_errors,
)
from soci_cli.targets._folder import LEFTOVER_AGE
from soci_cli.targets._index_json import (
    CONTAINERD_NAME,
    INDEX_LIMIT,
    MARKER,
    MARKER_LIMIT,
    REF_NAME,
    add_beside,
    check_marker,
    check_tag_for_writing,
    empty_index,
    entry_naming,
    flat_index,
    parse_index_json,
    put_entry,
    resolve_entry,
    without_names,
)
from soci_cli.targets._tar import Region, file_header, folder_header, open_regular, scan
from soci_cli.targets.blobs import BlobReader, ContentCheck, check_range
from soci_cli.targets.copy import referring_entries
from soci_cli.targets.docker_archive import docker_manifest
from soci_cli.targets.protocol import Source, Target, describe_manifest
from soci_cli.text import brief

_BLOCK = 512


class Archive(Source):
    """A tar file that is read. Its headers are scanned once, at opening."""

    def __init__(self, path: Path, tag: str | None = None, name: str | None = None) -> None:
        """`tag` chooses the image: a name, `@DIGEST`, or None for the only one there is.

        NotFoundError when there is no such file, InvalidDataError when it is no OCI archive.
        """
        super().__init__(name or _place(path, tag))
        self._tag = tag
        self._fd = open_regular(path, self._name)
        try:
            self._regions = scan(self._fd, self._name)
            if "index.json" not in self._regions:
                raise _no_index(path, self._name, "manifest.json" in self._regions)
            check_marker(self._read_member("oci-layout", MARKER_LIMIT), self._name)
            index = self._read_member("index.json", INDEX_LIMIT)
            self._index = parse_index_json(index, self._name)
        except BaseException:
            os.close(self._fd)
            raise
        self._flat = flat_index(self._index)
        self._flat_digest = "" if self._flat is None else digest_of(self._flat)

    def resolve(self) -> Descriptor:
        """The entry of index.json with this tag; as `Layout.resolve`."""
        return resolve_entry(self._index, self._tag, self._name)

    def names(self) -> dict[str, str]:
        """See `Source.names`."""
        return entry_naming(self._index, self._tag)

    def referrers(self, subject: Descriptor, artifact_type: str) -> tuple[Descriptor, ...]:
        """See `Source.referrers`: entries of index.json that refer to the manifest."""
        return referring_entries(self, self.entries(), subject, artifact_type)

    def entries(self) -> tuple[Descriptor, ...]:
        """All images of the archive, with the annotations that name them."""
        return self._index.entries

    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> BlobReader:
        """See `Source.fetch`; reads the archive in place."""
        count = check_range(descriptor, offset, length)
        region = self._regions.get(_blob_name(descriptor.digest))
        if region is None:
            if self._flat is None or descriptor.digest != self._flat_digest:
                raise NotFoundError(
                    f"{self._name} has no blob {descriptor.digest}", place=self._name
                )
            _check_size(len(self._flat), descriptor, self._name)
            return MemoryReader(self._flat[offset : offset + count])
        _check_size(region.size, descriptor, self._name)
        return _region_reader(self._fd, region.offset + offset, count, descriptor, self._name)

    def find(self, digest: str) -> Descriptor:
        """See `Source.find`: any blob that is a manifest."""
        region = self._regions.get(_blob_name(digest))
        return (
            super().find(digest) if region is None else describe_manifest(self, digest, region.size)
        )

    def exists(self, descriptor: Descriptor) -> bool:
        """See `Source.exists`."""
        region = self._regions.get(_blob_name(descriptor.digest))
        if region is not None:
            return region.size == descriptor.size
        return descriptor.digest == self._flat_digest

    def close(self) -> None:
        """Close the file; readers that are still open stay usable."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_member(self, member: str, limit: int) -> bytes:
        region = self._regions.get(member)
        if region is None:
            raise InvalidDataError(
                f"{self._name} is no OCI archive: it has no member {member}", place=self._name
            )
        if region.size > limit:
            raise InvalidDataError(
                f"{member} of {self._name} has {region.size} bytes; at most {limit} are accepted",
                place=self._name,
            )
        with disk_errors("read", self._name):
            return os.pread(self._fd, region.size, region.offset)


class ArchiveTarget(Target):
    """A tar file that is written, and read back.

    All goes to a new file beside FILE, which takes FILE's name in `tag`. Until then an existing
    FILE stays as it is; then it is replaced whole.
    """

    def __init__(
        self,
        path: Path,
        tag: str | None = None,
        name: str | None = None,
        *,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing is written yet.

        Without a tag the image gets `names`, the annotations of its entry, or else keeps the name of
        an only image in FILE.
        """
        super().__init__(name or _place(path, tag))
        self._path = path
        self._tag = tag
        self._names = {REF_NAME: tag} if tag else dict(names or {}) or _names_in(path)
        self._tagged: Descriptor | None = None
        self._beside: list[Descriptor] = []
        self._mutex = threading.Lock()
        self._file: NewFile | None = None
        self._end = 0
        self._folders: set[str] = set()
        self._blobs: dict[str, Region] = {}
        self._aborted: dict[str, Region] = {}
        self._open_writers: set[_ArchiveWriter] = set()
        check_tag_for_writing(tag, self._name)
        if path.exists() and not path.is_file():
            raise StorageError(f"{brief(str(path))} is no regular file; an OCI archive is one")

    def resolve(self) -> Descriptor:
        """What was tagged here; NotFoundError before, since an existing FILE is replaced."""
        if self._tagged is None:
            raise NotFoundError(f"{self._name} was not written yet", place=self._name)
        return self._tagged

    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> BlobReader:
        """See `Source.fetch`; only blobs that were written and committed here."""
        count = check_range(descriptor, offset, length)
        with self._mutex:
            region = self._blobs.get(descriptor.digest)
        if region is None:
            raise NotFoundError(f"{self._name} has no blob {descriptor.digest}", place=self._name)
        _check_size(region.size, descriptor, self._name)
        return _region_reader(self._fd, region.offset + offset, count, descriptor, self._name)

    def exists(self, descriptor: Descriptor) -> bool:
        """See `Source.exists`; only blobs that were written and committed here."""
        with self._mutex:
            region = self._blobs.get(descriptor.digest)
        return region is not None and region.size == descriptor.size

    def open_writer(self, descriptor: Descriptor) -> _ArchiveWriter:
        """See `Target.open_writer`. The blob's place in the tar file is taken at once.

        The place of an aborted blob is filled by the next writer for that blob; until then the
        archive cannot be finished.
        """
        check = ContentCheck(descriptor, self._name)
        with self._mutex, self._writing():
            region = self._aborted.get(descriptor.digest)
            if region is not None and region.size == descriptor.size:
                del self._aborted[descriptor.digest]
            else:
                algorithm = algorithm_of(descriptor.digest)
                for folder in ("blobs/", f"blobs/{algorithm}/"):
                    if folder not in self._folders:
                        self._reserve(folder_header(folder), 0)
                        self._folders.add(folder)
                header = file_header(_blob_name(descriptor.digest), descriptor.size)
                region = self._reserve(header, descriptor.size)
            writer = _ArchiveWriter(self, self._fd, region, descriptor.digest, check)
            self._open_writers.add(writer)
            return writer

    def names(self) -> dict[str, str]:
        """See `Source.names`."""
        return dict(self._names)

    def before(self) -> Source | None:
        """See `Target.before`: the FILE that will be replaced, if it is an OCI archive."""
        try:
            return Archive(self._path, self._tag, self._name)
        except SociError:
            return None

    def refer(self, referrer: Descriptor) -> bool:
        """See `Target.refer`: an entry without a name."""
        self._beside.append(referrer)
        return True

    def tag(self, descriptor: Descriptor) -> None:
        """See `Target.tag`: finishes the tar file and gives it its name. Only once.

        NotFoundError when the blob was not written, StorageError when another was not finished.
        """
        if not self.exists(descriptor):
            raise NotFoundError(
                f"{self._name} cannot be tagged: it has no blob {descriptor.digest}",
                place=self._name,
            )
        docker = docker_manifest(self, descriptor, self._names.get(CONTAINERD_NAME, ""))
        with self._mutex, self._writing() as file:
            unfinished = {writer.digest for writer in self._open_writers} | set(self._aborted)
            if unfinished:
                raise StorageError(
                    f"{self._name} cannot be finished: blob {min(unfinished)} was not written",
                    place=self._name,
                )
            index = put_entry(empty_index(), self._tag, self._names, descriptor, self._name)
            for referrer in self._beside:
                index = add_beside(parse_index_json(index, self._name), referrer)
            # manifest.json is what `docker load` reads it by.
            members = [] if docker is None else [("manifest.json", docker)]
            members += [("index.json", index), ("oci-layout", MARKER)]
            for member, data in members:
                region = self._reserve(file_header(member, len(data)), len(data))
                _pwrite_all(self._fd, data, region.offset)
            # Two zero blocks end a tar file; tar pads the whole to records of 20 blocks.
            record = _BLOCK * 20
            os.truncate(self._fd, -(-(self._end + 2 * _BLOCK) // record) * record)
            file.commit()
            self._tagged = without_names(descriptor)

    def close(self) -> None:
        """Close the file, and remove it when it was not tagged."""
        super().close()
        with self._mutex:
            writers = list(self._open_writers)
        for writer in writers:
            writer.abort()
        if self._file is not None:
            self._file.close()

    @property
    def _fd(self) -> int:
        return -1 if self._file is None else self._file.fd

    @contextmanager
    def _writing(self) -> Iterator[NewFile]:
        """The new file is open and still without its final name; OSErrors become StorageError."""
        self._check_open()
        if self._tagged is not None:
            raise StorageError(
                f"{self._name} is finished; open it again to write another image", place=self._name
            )
        with disk_errors("write", self._path):
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                _clean_leftovers(self._path)
                self._file = NewFile(self._path, 0o644, f".{self._path.name}.tmp-")
            yield self._file

    def _reserve(self, header: bytes, size: int) -> Region:
        """Write a header at the end and keep the room for its data. Raises OSError."""
        _pwrite_all(self._fd, header, self._end)
        region = Region(self._end + len(header), size)
        end = region.offset + -(-size // _BLOCK) * _BLOCK
        os.truncate(self._fd, end)
        self._end = end
        return region

    def _finish_writer(self, writer: _ArchiveWriter, region: Region, committed: bool) -> None:
        with self._mutex:
            self._open_writers.discard(writer)
            (self._blobs if committed else self._aborted)[writer.digest] = region


class _ArchiveWriter(FileWriter):
    """One blob being written to its place in the tar file."""

    def __init__(
        self, archive: ArchiveTarget, fd: int, region: Region, digest: str, check: ContentCheck
    ) -> None:
        # Its own file descriptor: closing the archive must not hand the number to another file.
        super().__init__(os.dup(fd), check, archive.name)
        self.digest = digest
        self._archive = archive
        self._region = region
        self._position = region.offset

    def _put(self, view: memoryview) -> None:
        _pwrite_all(self._fd, view, self._position)
        self._position += view.nbytes

    def _keep(self) -> None:
        self._archive._finish_writer(self, self._region, committed=True)

    def _drop(self) -> None:
        self._archive._finish_writer(self, self._region, committed=False)


def _region_reader(
    fd: int, start: int, count: int, descriptor: Descriptor, name: str
) -> RegionReader:
    with disk_errors("read", name):
        own = os.dup(fd)
    return RegionReader(own, start, count, f"blob {descriptor.digest} in {name}")


def _check_size(size: int, descriptor: Descriptor, name: str) -> None:
    if size != descriptor.size:
        raise IntegrityError(
            f"blob {descriptor.digest} in {name} has {size} bytes, not the {descriptor.size} "
            "of its descriptor; the archive is damaged",
            place=name,
        )


def _no_index(path: Path, name: str, is_docker: bool) -> InvalidDataError:
    if is_docker:
        return InvalidDataError(
            f"{name} is a Docker archive; read it as docker-archive:{brief(str(path))}, or "
            f"convert it first: skopeo copy docker-archive:{brief(str(path))} oci-archive:OUT",
            place=name,
        )
    return InvalidDataError(f"{name} is no OCI archive: it has no member index.json", place=name)


def _names_in(path: Path) -> dict[str, str]:
    """How the only image of an existing archive is named; empty when there is none to speak of."""
    try:
        with Archive(path) as archive:
            return archive.names()
    except SociError:
        return {}


def _blob_name(digest: str) -> str:
    return f"blobs/{algorithm_of(digest)}/{encoded_of(digest)}"


def _pwrite_all(fd: int, data: bytes | memoryview, position: int) -> None:
    view = memoryview(data)
    while view.nbytes:
        count = os.pwrite(fd, view, position)
        view = view[count:]
        position += count


def _clean_leftovers(path: Path) -> None:
    """Remove what crashed runs left beside FILE more than a day ago."""
    oldest = time.time() - LEFTOVER_AGE
    prefix = f".{path.name}.tmp-"
    with suppress(OSError):
        for other in path.parent.iterdir():
            if other.name.startswith(prefix) and other.lstat().st_mtime < oldest:
                unlink_quietly(other)


def _place(path: Path, tag: str | None) -> str:
    if tag is None or tag.startswith("@"):
        return f"oci-archive:{path}{tag or ''}"
    return f"oci-archive:{path}:{tag}"
