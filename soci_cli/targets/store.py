"""The local store: an OCI image layout whose entries have full image names.

Any number of processes may use it at once. A file lock keeps the sweep of `remove` away from blobs
that somebody is reading or has written but not tagged yet.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from soci_cli.errors import NotFoundError, SociError, UsageError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import is_digest, parse_digest
from soci_cli.oci.manifest import parse_manifest
from soci_cli.oci.media_types import is_index, is_manifest
from soci_cli.oci.references import Reference
from soci_cli.parallel import no_check
from soci_cli.targets._database import LOCAL_CONTENT, StoredArtifact, StoreDatabase
from soci_cli.targets._disk import disk_errors, storage_error
from soci_cli.targets._folder import INGEST_PREFIX, LayoutFolder
from soci_cli.targets._index_json import (
    CONTAINERD_NAME,
    REF_NAME,
    remove_entries,
    without_names,
)
from soci_cli.targets._pins import Pin, pinned
from soci_cli.targets.blobs import BlobReader
from soci_cli.targets.copy import children_of, read_blob
from soci_cli.targets.layout import Layout, WritableLayout
from soci_cli.targets.protocol import Source

__all__ = [
    "LOCAL_CONTENT",
    "OpenPlace",
    "Store",
    "StoreTarget",
    "StoredArtifact",
    "StoredImage",
    "Sweep",
]

_FOLDER_MODE = 0o700
_GC_LOCK = ".gc-lock"
_REFERRER = "referrer"
_LEFT = "it was left in its registry when the image was pulled, and cannot be read from there now"
# No image can have this name (RFC 2606, section 2).
_NO_IMAGE = Reference("store.invalid", "none", "none")

OpenPlace: TypeAlias = Callable[[str], Source]
"""Opens a place such as `docker://HOST/REPO` to read blobs from."""


@dataclass(frozen=True)
class StoredImage:
    """One image of the store: its full name and its manifest or index."""

    name: str
    descriptor: Descriptor


@dataclass(frozen=True)
class Sweep:
    """What a sweep removed: digests, and the bytes that this freed.

    `skipped` says why nothing was swept, such as another process using the store; else it is empty.
    """

    blobs: tuple[str, ...] = ()
    freed: int = 0
    skipped: str = ""


class Store:
    """The store in the folder `root`, which is created, for its owner only, by the first write."""

    def __init__(self, root: Path, open_place: OpenPlace | None = None) -> None:
        """`open_place` opens the places where missing blobs can be had; see `remember_location`."""
        self.root = root
        self.open_place = open_place
        self._name = f"the local store {root}"
        self._folder = LayoutFolder(root, self._name, _FOLDER_MODE)
        self._database = StoreDatabase(self._folder)

    def open(self, reference: Reference, name: str | None = None) -> StoreTarget:
        """The place of one image, to read or to write. Close it, or `pin`: till then no sweep can run."""
        return StoreTarget(self, reference, name or str(reference))

    def open_unnamed(self) -> StoreTarget:
        """The store's blobs without an image, to read and write artifacts; see `open`."""
        return StoreTarget(self, _NO_IMAGE, self._name)

    def images(self) -> list[StoredImage]:
        """All images, sorted by name. Empty when there is no store yet."""
        entries = self._folder.read_index_or_empty().entries
        images = [
            StoredImage(name, without_names(entry))
            for entry in entries
            if (name := entry.annotations.get(REF_NAME))
        ]
        return sorted(images, key=lambda image: image.name)

    def tag_image(self, source: Reference, new: Reference) -> Descriptor:
        """Give an image a second name. NotFoundError when there is no such image."""
        with self.open(source) as old, self.open(new) as target:
            descriptor = old.resolve()
            target.tag(descriptor)
            return descriptor

    def remove(self, reference: Reference) -> Sweep:
        """Forget an image's name, then sweep. NotFoundError when there is no such image."""
        missing = NotFoundError(f"{reference} is not in {self._name}", place=self._name)
        if not (self.root / "oci-layout").exists():
            raise missing
        # A sweep of another process takes what is unfinished for a leftover, index.json included.
        with self.open(reference) as place:
            place.keep_sweeps_away()
            self._forget_name(reference, missing)
        return self.sweep()

    def _forget_name(self, reference: Reference, missing: NotFoundError) -> None:
        with self._folder.locked():
            data = remove_entries(self._folder.read_index_or_empty(), str(reference))
            if data is None:
                raise missing
            self._folder.write_index(data)

    def sweep(self) -> Sweep:
        """Remove every blob that no image needs, unless the store is in use.

        Needed are the manifests of all images and pinned artifacts, those that are pinned by who reads
        them for long (see `StoreTarget.pin`), all that they name, and what was derived (see
        `remember_derived`) from something that is needed.
        """
        if not (self.root / "oci-layout").exists():
            return Sweep()
        with self._alone() as alone:
            if not alone:
                return Sweep(skipped="another soci command is using the store")
            try:
                roots = [*self._roots(), *self._pinned(), *pinned(self.root)]
                needed = self._reachable(roots)
            except SociError as error:
                # What a damaged manifest names is unknown, so everything stays.
                return Sweep(skipped=str(error))
            self._database.keep_only(needed)
            return self._remove_blobs(needed)

    def remember_derived(
        self, kind: str, source_digest: str, key: str, descriptor: Descriptor
    ) -> None:
        """Remember that the stored blob `descriptor` was made from another blob.

        `kind` and `key` say what was made and with which settings. As long as an image needs the
        source, a sweep keeps what was derived from it.
        """
        self._ensure()
        self._database.put_derived(kind, parse_digest(source_digest), key, descriptor)

    def recall_derived(self, kind: str, source_digest: str, key: str) -> Descriptor | None:
        """What `remember_derived` was told; None when unknown or when the blob is gone.

        Hold a place of the store open to be sure that the blob stays.
        """
        made = self._database.get_derived(kind, source_digest, key)
        if made is None or not Layout(self.root).exists(made):
            return None
        return made

    def remember_referrer(self, subject: Descriptor, referrer: Descriptor) -> None:
        """List a stored manifest among those that refer to `subject`."""
        self.remember_derived(_REFERRER, subject.digest, referrer.digest, referrer)

    def referrers(self, subject: Descriptor) -> list[Descriptor]:
        """The stored manifests that refer to `subject`, the newest first."""
        layout = Layout(self.root)
        known = self._database.derived_from(_REFERRER, subject.digest)
        return [one for one in known if layout.exists(one)]

    def remember_location(self, digest: str, place: str) -> None:
        """Remember a place that has a blob which the store itself need not have.

        A sweep forgets it when no image needs the blob; so hold the image's place open.
        """
        self._ensure()
        self._database.put_location(parse_digest(digest), place)

    def locations(self, digest: str) -> list[str]:
        """The places that `remember_location` was told of, sorted."""
        return self._database.get_locations(digest)

    def put_artifacts(self, artifacts: Iterable[StoredArtifact]) -> None:
        """List artifacts, here or in another content store; replaces what was known of them.

        A sweep keeps those here that are pinned and manifests, with all that they name; it forgets those
        whose blobs it removes. So hold `open_unnamed` open from before they are written.
        """
        self._ensure()
        self._database.put_artifacts(artifacts)

    def artifacts(self) -> list[StoredArtifact]:
        """All artifacts that are listed, the newest first."""
        return self._database.artifacts()

    def forget_artifacts(self, artifacts: Iterable[StoredArtifact]) -> None:
        """List artifacts no more. A sweep removes those here that nothing else needs."""
        self._database.remove_artifacts(artifacts)

    def needed_by_images(self) -> set[str]:
        """The digests of all that the images of the store need. Raises what reading them raises."""
        return self._reachable(self._roots())

    def blobs(self) -> Iterator[tuple[str, int, float]]:
        """Digest, size in bytes and time of change of every blob."""
        with disk_errors("read", self.root):
            for path in sorted(self.root.glob("blobs/*/*")):
                digest = f"{path.parent.name}:{path.name}"
                status = path.lstat()
                if is_digest(digest) and stat.S_ISREG(status.st_mode):
                    yield digest, status.st_size, status.st_mtime

    def _roots(self) -> list[Descriptor]:
        return list(self._folder.read_index_or_empty().entries)

    def _pinned(self) -> list[Descriptor]:
        return [
            one.descriptor
            for one in self._database.artifacts()
            if one.pinned and one.content_store == LOCAL_CONTENT and is_manifest(one.media_type)
        ]

    def _ensure(self) -> None:
        self._folder.make_folders()
        with self._folder.locked():
            pass

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Keep everybody else out; False, at once, when somebody is in."""
        path = self.root / _GC_LOCK
        with disk_errors("lock", path):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError as error:
                raise storage_error("lock", path, error) from error
            yield True
        finally:
            os.close(fd)

    def _reachable(self, roots: list[Descriptor]) -> set[str]:
        derived: dict[str, list[Descriptor]] = {}
        for source, made in self._database.all_derived():
            derived.setdefault(source, []).append(made)
        layout = Layout(self.root, name=self._name)
        needed: set[str] = set()
        pending = list(roots)
        while pending:
            descriptor = pending.pop()
            if descriptor.digest in needed:
                continue
            needed.add(descriptor.digest)
            pending.extend(derived.get(descriptor.digest, ()))
            with suppress(NotFoundError):
                pending.extend(_children(layout, descriptor))
        return needed

    def _remove_blobs(self, needed: set[str]) -> Sweep:
        removed: list[str] = []
        freed = 0
        with disk_errors("clean", self.root):
            for path in sorted(self.root.glob("blobs/*/*")):
                status = path.lstat()
                digest = f"{path.parent.name}:{path.name}"
                if digest in needed or not is_digest(digest) or not stat.S_ISREG(status.st_mode):
                    continue
                path.unlink()
                removed.append(digest)
                # The bytes of a blob that a layout shares stay there.
                freed += status.st_size if status.st_nlink == 1 else 0
            # Nobody is writing, so whatever is unfinished is left from a crash.
            for path in self.root.glob(f"{INGEST_PREFIX}*"):
                freed += path.lstat().st_size
                path.unlink()
        return Sweep(tuple(removed), freed)


class StoreTarget(WritableLayout):
    """One image of the store; reading it creates nothing.

    From its first use till `close` it holds a shared lock that keeps sweeps away.
    """

    def __init__(self, store: Store, reference: Reference, name: str) -> None:
        self._reference = reference
        self._origins: dict[str, Source] = {}
        self._failed: set[str] = set()  # names of places that are tried last from now on
        self._pin: Pin | None = None
        full = str(reference)
        names = {REF_NAME: full, CONTAINERD_NAME: full}
        super().__init__(store.root, full, name, names=names, folder_mode=_FOLDER_MODE)
        self.store: Store = store

    def resolve(self) -> Descriptor:
        """The image of exactly this name; one with a digest also matches the repository's tags."""
        self._guard()
        entries = self.folder.read_index_or_empty().entries
        for entry in entries:
            if entry.annotations.get(REF_NAME) == self._tag:
                return without_names(entry)
        digest, repository = self._reference.digest, self._reference.name
        for entry in entries:
            stored = entry.annotations.get(REF_NAME, "")
            if entry.digest == digest and stored.startswith((f"{repository}:", f"{repository}@")):
                return without_names(entry)
        raise NotFoundError(
            f"{self._reference} is not in the local store; `soci images` lists what is there"
        )

    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> BlobReader:
        """See `Source.fetch`. A layer that stayed in a registry is streamed from there."""
        return self.fetch_while(no_check, descriptor, offset, length)

    def fetch_while(
        self,
        check: Callable[[], None],
        descriptor: Descriptor,
        offset: int = 0,
        length: int | None = None,
    ) -> BlobReader:
        """See `Source.fetch_while`."""
        self._guard()
        missing: SociError
        try:
            return super().fetch(descriptor, offset, length)
        except NotFoundError as error:
            missing = error
        # A registry that is gone must not hold up every request anew.
        for place in sorted(self.origins(descriptor), key=lambda one: one.name in self._failed):
            try:
                return place.fetch_while(check, descriptor, offset, length)
            except SociError as error:
                check()
                self._failed.add(place.name)
                missing = error.explained(_LEFT).at(image=self.name, layer=descriptor.digest)
        raise missing

    def origins(self, descriptor: Descriptor) -> list[Source]:
        """See `Source.origins`: where a lazily pulled layer stayed."""
        found = []
        for place in self.store.locations(descriptor.digest):
            with self._lock_mutex:
                if place not in self._origins and self.store.open_place is not None:
                    self._origins[place] = self.store.open_place(place)
            if place in self._origins:
                found.append(self._origins[place])
        return found

    def referrers(self, subject: Descriptor, artifact_type: str) -> tuple[Descriptor, ...]:
        """See `Source.referrers`: the newest first."""
        self._guard()
        known = self.store.referrers(subject)
        return tuple(one for one in known if one.artifact_type == artifact_type)

    def push(self, descriptor: Descriptor, data: bytes) -> None:
        """See `Target.push`."""
        super().push(descriptor, data)
        if is_manifest(descriptor.media_type):
            manifest = parse_manifest(data, f"manifest {descriptor.digest}")
            if manifest.subject is not None:
                kind = manifest.artifact_type or manifest.config.media_type
                referrer = Descriptor(
                    descriptor.media_type, descriptor.digest, descriptor.size, artifact_type=kind
                )
                self.store.remember_referrer(manifest.subject, referrer)

    def refer(self, referrer: Descriptor) -> bool:
        """See `Target.refer`: `push` has done it."""
        return True

    def before(self) -> Source | None:
        """See `Target.before`."""
        return StoreTarget(self.store, self._reference, self._name)

    def tag(self, descriptor: Descriptor) -> None:
        """See `Target.tag`. UsageError when the reference has another digest than the image."""
        if self._reference.digest not in (None, descriptor.digest):
            raise UsageError(
                f"{self._reference} cannot name {descriptor.digest}; choose a name with a tag"
            )
        super().tag(descriptor)

    def link(self, descriptor: Descriptor, source: Source) -> bool:
        """See `Target.link`."""
        self._guard()
        return super().link(descriptor, source)

    def _undo(self) -> None:
        """Sweep what this run wrote, and nothing else, when nobody else is using the store."""
        self._unlock()
        self.store.sweep()

    def _prepare(self, digest: str) -> None:
        super()._prepare(digest)
        # The marker comes before the lock file: a folder with other files is not taken for a store.
        if not (self.folder.root / "oci-layout").exists():
            with self.folder.locked():
                pass
        self._guard()

    def pin(self, *manifests: Descriptor) -> None:
        """See `Source.pin`: sweeps may remove what else is here. Nothing can be written after this."""
        super().pin()
        self._guard()
        if self._lock >= 0 and manifests:
            self._pin = Pin(self.store.root, manifests)
            self._unlock()

    def close(self) -> None:
        """See `WritableLayout.close`."""
        super().close()
        if self._pin is not None:
            self._pin.close()

    def keep_sweeps_away(self) -> None:
        """Hold the shared lock from now till `close`."""
        self._guard()

    def _guard(self) -> None:
        """Take the shared lock once there is a store; a store that cannot be written needs none."""
        with self._lock_mutex:
            if self._lock >= 0 or self._pin is not None:
                return
            if not (self.folder.root / "oci-layout").exists():
                return
            path = self.folder.root / _GC_LOCK
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                    return
                raise storage_error("lock", path, error) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)
            except BaseException:
                os.close(fd)
                raise
            self._lock = fd


def _children(layout: Layout, descriptor: Descriptor) -> tuple[Descriptor, ...]:
    if not (is_index(descriptor.media_type) or is_manifest(descriptor.media_type)):
        return ()
    data = read_blob(layout, descriptor)
    return children_of(descriptor, data, f"manifest {descriptor.digest} in {layout.name}")
