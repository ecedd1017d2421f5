"""OCI image layouts in a folder: `oci:DIR[:TAG]`.

See "image-layout.md" of the OCI image specification. A `Layout` reads; a `WritableLayout` also
writes, safely beside other processes of this program. skopeo and umoci read what it leaves at any
moment.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from soci_cli.errors import IntegrityError, NotFoundError
from soci_cli.new_file import unlink_quietly
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import digest_of, encoded_of
from soci_cli.targets._disk import (
    FileWriter,
    MemoryReader,
    RegionReader,
    disk_errors,
    storage_error,
)
from soci_cli.targets._folder import LayoutFolder, write_all
from soci_cli.targets._index_json import (
    REF_NAME,
    add_beside,
    check_tag_for_writing,
    check_taggable,
    entry_naming,
    flat_index,
    put_entry,
    resolve_entry,
)
from soci_cli.targets.blobs import BlobReader, ContentCheck, check_range
from soci_cli.targets.copy import referring_entries
from soci_cli.targets.protocol import Source, Target, describe_manifest


class Layout(Source):
    """A layout that is read."""

    folder: LayoutFolder

    def __init__(self, root: Path, tag: str | None = None, name: str | None = None) -> None:
        """`tag` chooses the image: a name, `@DIGEST`, or None for the only one there is.

        Nothing is read yet. `name` is the place in messages.
        """
        super().__init__(name or _place(root, tag))
        self._tag = tag
        self.folder = LayoutFolder(root, self._name)

    def blob_path(self, digest: str) -> Path:
        """Where a blob is, or would be. InvalidDataError when `digest` is no digest."""
        return self.folder.blob_path(digest)

    def resolve(self) -> Descriptor:
        """The entry of index.json with this tag; see `Source.resolve`.

        A flat list of platforms, as go-containerregistry writes it, is resolved without a tag to
        the image index that the list stands for; `fetch` hands out that index too.
        """
        return resolve_entry(self.folder.read_index(), self._tag, self._name)

    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> BlobReader:
        """See `Source.fetch`; reads the file in place."""
        count = check_range(descriptor, offset, length)
        opened = self.folder.open_blob(descriptor.digest)
        if opened is None:
            flat = self._flat(descriptor)
            if flat is None:
                raise NotFoundError(
                    f"{self._name} has no blob {descriptor.digest}", place=self._name
                )
            return MemoryReader(flat[offset : offset + count])
        fd, status = opened
        if status.st_size != descriptor.size:
            os.close(fd)
            raise IntegrityError(
                f"blob {descriptor.digest} in {self._name} has {status.st_size} bytes, not the "
                f"{descriptor.size} of its descriptor; the layout is damaged",
                place=self._name,
            )
        return RegionReader(fd, offset, count, f"blob {descriptor.digest} in {self._name}")

    def find(self, digest: str) -> Descriptor:
        """See `Source.find`: any blob that is a manifest."""
        opened = self.folder.open_blob(digest)
        if opened is None:
            return super().find(digest)
        os.close(opened[0])
        return describe_manifest(self, digest, opened[1].st_size)

    def exists(self, descriptor: Descriptor) -> bool:
        """See `Source.exists`."""
        return self._has_file(descriptor) or self._flat(descriptor) is not None

    def names(self) -> dict[str, str]:
        """See `Source.names`."""
        return entry_naming(self.folder.read_index_or_empty(), self._tag)

    def referrers(self, subject: Descriptor, artifact_type: str) -> tuple[Descriptor, ...]:
        """See `Source.referrers`: entries of index.json that refer to the manifest."""
        return referring_entries(self, self.entries(), subject, artifact_type)

    def entries(self) -> tuple[Descriptor, ...]:
        """All images of the layout, with the annotations that name them."""
        return self.folder.read_index_or_empty().entries

    def pin(self, *manifests: Descriptor) -> None:
        """See `Source.pin`: read from the folder that is here now."""
        self.folder.hold()

    def close(self) -> None:
        """Lets go of a folder that is held."""
        super().close()
        self.folder.release()

    def _has_file(self, descriptor: Descriptor) -> bool:
        opened = self.folder.open_blob(descriptor.digest)
        if opened is None:
            return False
        os.close(opened[0])
        return opened[1].st_size == descriptor.size

    def _flat(self, descriptor: Descriptor) -> bytes | None:
        """The bytes of the flat index when the descriptor is that index."""
        if not self.folder.root.is_dir():
            return None
        data = flat_index(self.folder.read_index_or_empty())
        if data is None or digest_of(data) != descriptor.digest or len(data) != descriptor.size:
            return None
        return data


class WritableLayout(Layout, Target):
    """A layout that is written, and read back.

    Blobs are written aside, checked, synced and renamed. index.json is changed under a lock, by
    `tag` and `refer` alone. When its `with` ends in an error before `tag`, the blobs that it wrote are
    removed, unless somebody else is at work there too and may count on them.
    """

    def __init__(
        self,
        root: Path,
        tag: str | None = None,
        name: str | None = None,
        *,
        names: Mapping[str, str] | None = None,
        folder_mode: int = 0o755,
    ) -> None:
        """`names` are the annotations of a new entry, by default the tag as ref.name.

        `folder_mode` are the permissions of a new folder. Raises StorageError for a folder that is
        something else, UsageError when the tag is a digest or several images could be replaced.
        """
        super().__init__(root, tag, name)
        self.folder = LayoutFolder(root, self._name, folder_mode)
        self._names = names if names is not None else ({REF_NAME: tag} if tag else {})
        self._writers: set[_LayoutWriter] = set()
        self._mutex = threading.Lock()
        self._made_root = False
        self._cleaned = False
        self._tagged = False
        self._placed: set[str] = set()
        self._lock = -1
        self._lock_mutex = threading.Lock()
        check_tag_for_writing(tag, self._name)
        self.folder.check_usable()
        check_taggable(self.folder.read_index_or_empty(), tag, self._name)

    def resolve(self) -> Descriptor:
        """See `Layout.resolve`; NotFoundError for a layout that does not exist yet."""
        index = self.folder.read_index_or_empty()
        return resolve_entry(index, self._tag, self._name)

    def exists(self, descriptor: Descriptor) -> bool:
        """See `Source.exists`. Only files count, so a flat index gets a file of its own.

        The blob stays at least until `close`.
        """
        self._guard()
        return self._has_file(descriptor)

    def open_writer(self, descriptor: Descriptor) -> _LayoutWriter:
        """See `Target.open_writer`."""
        check = ContentCheck(descriptor, self._name)
        self._prepare(descriptor.digest)
        writer = _LayoutWriter(self, descriptor.digest, check)
        with self._mutex:
            self._writers.add(writer)
        return writer

    def link(self, descriptor: Descriptor, source: Source) -> bool:
        """See `Target.link`: a hard link to a blob of another layout on the same disk.

        Only a regular file of the same owner is shared, since its owner could change the bytes.
        """
        if source.folder is None:
            return False
        if self.exists(descriptor):
            return True
        opened = source.folder.open_blob(descriptor.digest)
        if opened is None:
            return False
        fd, status = opened
        os.close(fd)
        if status.st_size != descriptor.size or status.st_uid != os.geteuid():
            return False
        self._prepare(descriptor.digest)
        encoded = encoded_of(descriptor.digest)
        try:
            with (
                source.folder.blobs_folder(descriptor.digest) as there,
                self.folder.blobs_folder(descriptor.digest) as here,
            ):
                os.link(encoded, encoded, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)
        except FileExistsError:
            return self.exists(descriptor)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise storage_error("write", self.blob_path(descriptor.digest), error) from error
            return False
        self._placed.add(descriptor.digest)
        return True

    def before(self) -> Source | None:
        """See `Target.before`: itself, since what is there is only added to."""
        return Layout(self.folder.root, self._tag, self._name)

    def tag(self, descriptor: Descriptor) -> None:
        """See `Target.tag`: puts the entry into index.json and leaves all others as they are.

        The entry that had the tag is replaced in its position and keeps its names. Without a tag
        that is the only entry, or the only one without a name; UsageError when there is no telling.
        NotFoundError when the blob was never written.
        """
        self._prepare(descriptor.digest)
        if not self.exists(descriptor):
            flat = self._flat(descriptor)
            if flat is None:
                raise NotFoundError(
                    f"{self._name} cannot be tagged: it has no blob {descriptor.digest}",
                    place=self._name,
                )
            self.push(descriptor, flat)
        with self.folder.locked():
            index = self.folder.read_index_or_empty()
            data = put_entry(index, self._tag, self._names, descriptor, self._name)
            self.folder.write_index(data)
        self._tagged = True

    def refer(self, referrer: Descriptor) -> bool:
        """See `Target.refer`: an entry without a name."""
        self._prepare(referrer.digest)
        with self.folder.locked():
            self.folder.write_index(add_beside(self.folder.read_index_or_empty(), referrer))
        return True

    def close(self) -> None:
        """Abort the writers that are still open; undo a new folder that got nothing."""
        super().close()
        with self._mutex:
            writers = list(self._writers)
        for writer in writers:
            writer.abort()
        self._unlock()
        if self._made_root:
            self.folder.remove_empty_folders()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and self._placed and not self._tagged:
            self._undo()
        self.close()

    def _prepare(self, digest: str) -> None:
        self._check_open()
        with self._mutex:
            self._made_root = self.folder.make_folders(digest) or self._made_root
            if not self._cleaned:
                self.folder.clean_leftovers()
                self._cleaned = True
        self._guard()

    def _guard(self) -> None:
        """Take a shared lock on the folder, once there is one: it keeps `_undo` of others away."""
        with self._lock_mutex:
            if self._lock >= 0 or not self.folder.root.is_dir():
                return
            with disk_errors("lock", self.folder.root):
                fd = os.open(self.folder.root, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    fcntl.flock(fd, fcntl.LOCK_SH)
                except BaseException:
                    os.close(fd)
                    raise
            self._lock = fd

    def _unlock(self) -> None:
        with self._lock_mutex:
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def _undo(self) -> None:
        """Remove what this run wrote, when nobody else is at work in the layout."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        for digest in self._placed:
            unlink_quietly(self.blob_path(digest))

    def _finish_writer(self, writer: _LayoutWriter, placed: str | None) -> None:
        with self._mutex:
            self._writers.discard(writer)
            if placed is not None:
                self._placed.add(placed)


class _LayoutWriter(FileWriter):
    """One blob being written to a temporary file of the layout."""

    def __init__(self, layout: WritableLayout, digest: str, check: ContentCheck) -> None:
        self._layout = layout
        self._digest = digest
        fd, self._aside = layout.folder.new_file()
        super().__init__(fd, check, layout.blob_path(digest))

    def _put(self, view: memoryview) -> None:
        write_all(self._fd, view)

    def _keep(self) -> None:
        os.fsync(self._fd)
        # Another process may just have undone the same new layout.
        self._layout.folder.make_folders(self._digest)
        self._layout.folder.place_blob(self._aside, self._digest)
        self._layout._finish_writer(self, self._digest)

    def _drop(self) -> None:
        unlink_quietly(self._aside)
        self._layout._finish_writer(self, None)


def _place(root: Path, tag: str | None) -> str:
    if tag is None or tag.startswith("@"):
        return f"oci:{root}{tag or ''}"
    return f"oci:{root}:{tag}"
