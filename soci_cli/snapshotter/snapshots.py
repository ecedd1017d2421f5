"""The calls of a snapshotter, without gRPC: from Prepare to Cleanup.

    ROOT/snapshots.db            what is known of them (`metadata.py`)
    ROOT/snapshots/ID/fs         the files of a snapshot, or where its layer is mounted
    ROOT/snapshots/ID/work       what overlayfs needs beside them

A snapshot's row is written before its folder and removed before it, so a folder without a row is rubbish.
The errors and the order of all calls are those of containerd's overlayfs snapshotter.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from soci_cli.closing import Closing
from soci_cli.errors import (
    AlreadyExistsError,
    NotFoundError,
    SociError,
    StateError,
    StorageError,
    UsageError,
)
from soci_cli.kernel.namespaces import is_initial_user_namespace
from soci_cli.kernel.unmount import detach_all
from soci_cli.processes.tree import remove_tree
from soci_cli.snapshotter.filters import parse_filters
from soci_cli.snapshotter.metadata import Kind, Metadata, Snapshot, Usage
from soci_cli.snapshotter.turns import Turns
from soci_cli.targets.containerd.snapshots import TARGET
from soci_cli.text import brief

REMOTE = "containerd.io/snapshot/remote"
"""The label of a layer that is mounted and not unpacked."""

DATABASE = "snapshots.db"
FILES, WORK = "fs", "work"
_LABELS = "labels"
_BLOCK = 512


@dataclass(frozen=True)
class Mount:
    """What containerd is to mount, as mount(8) would."""

    type: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Provided:
    """A layer that is here: what it is served from (see `Snapshot.layer`), and labels to add."""

    layer: str
    labels: Mapping[str, str]
    usage: Usage


class Layers(Protocol):
    """Has layers of images mounted or unpacked, so that containerd need not fetch them."""

    def provide(
        self,
        snapshot: Snapshot,
        files: Path,
        below: Sequence[Snapshot],
        namespace: str,
    ) -> Provided | None:
        """Puts the layer that a Prepare is for at `files`, an empty folder; None where containerd must.

        `below` are the snapshots under it, the uppermost first. Raises no SociError.
        """

    def check(self, chain: Sequence[Snapshot], files: Callable[[Snapshot], Path]) -> None:
        """Sees to it that layers are served. UnavailableError for one that cannot be just now."""

    def release(self, files: Path) -> None:
        """Ends what is mounted at a folder, without waiting for whoever serves it."""

    def usage(self, snapshot: Snapshot) -> Usage:
        """What a lazy layer occupies on this disk."""

    def owner(self, snapshot: Snapshot) -> tuple[int, int]:
        """The user and group of the root of a lazy layer, which is not asked for it."""

    def forget(self, snapshot: Snapshot, left: Sequence[Snapshot]) -> None:
        """Removes what is kept of a lazy layer whose snapshot is gone, but for what those `left` need.

        Raises no SociError.
        """


class NoLayers:
    """Leaves all layers to containerd. Implements `Layers`."""

    def provide(
        self, snapshot: Snapshot, files: Path, below: Sequence[Snapshot], namespace: str
    ) -> Provided | None:
        """See `Layers.provide`."""
        return None

    def check(self, chain: Sequence[Snapshot], files: Callable[[Snapshot], Path]) -> None:
        """See `Layers.check`."""

    def release(self, files: Path) -> None:
        """See `Layers.release`."""
        detach_all(files)

    def usage(self, snapshot: Snapshot) -> Usage:
        """See `Layers.usage`."""
        return snapshot.usage

    def owner(self, snapshot: Snapshot) -> tuple[int, int]:
        """See `Layers.owner`."""
        return 0, 0

    def forget(self, snapshot: Snapshot, left: Sequence[Snapshot]) -> None:
        """See `Layers.forget`."""


class Snapshotter(Closing):
    """The snapshots below a folder. Several threads may use it."""

    def __init__(
        self,
        root: Path,
        layers: Layers | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`log` is told what could not be removed. StorageError."""
        self._layers = layers or NoLayers()
        self._log = log
        self._folder = root / "snapshots"
        self._own_options = () if is_initial_user_namespace() else ("userxattr",)
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{error.filename}: {error.strerror}") from error
        self.metadata = Metadata(root / DATABASE)
        self._turns = Turns()
        self._removing = threading.Lock()
        self._removed: queue.SimpleQueue[Snapshot | Callable[[], None] | None] = queue.SimpleQueue()
        self._mend()
        self._remover = threading.Thread(target=self._remove_all, name="soci-remove", daemon=True)
        self._remover.start()

    def close(self) -> None:
        """Ends what is done in the background; what is mounted stays."""
        self._removed.put(None)
        self._remover.join()
        self.metadata.close()

    # Calls.

    def prepare(
        self, key: str, parent: str, labels: Mapping[str, str], namespace: str = ""
    ) -> list[Mount]:
        """A new snapshot that is written to.

        AlreadyExistsError also where it is for a layer that is here, or has been put here: then it is
        committed under the name of the label `containerd.io/snapshot.ref`, with this parent.
        """
        target = labels.get(TARGET)
        if not target:
            return self._create(Kind.ACTIVE, key, parent, labels)[1]
        with self._turns.of(target):
            with suppress(NotFoundError):
                # With another parent it would not be found by containerd's List.
                if self.metadata.get(target).parent == parent:
                    raise _is_here(target)
                return self._create(Kind.ACTIVE, key, parent, labels)[1]
            snapshot, mounts = self._create(Kind.ACTIVE, key, parent, labels)
            below = self.metadata.chain(parent) if parent else []
            provided = self._layers.provide(snapshot, self.files(snapshot), below, namespace)
            if provided is None:
                self.metadata.get(key)  # it may have been removed meanwhile
                return mounts
            self._commit_layer(snapshot, target, provided)
        raise _is_here(target)

    def view(self, key: str, parent: str, labels: Mapping[str, str]) -> list[Mount]:
        """A new snapshot that is only read."""
        return self._create(Kind.VIEW, key, parent, labels)[1]

    def mounts(self, key: str) -> list[Mount]:
        """What `prepare` or `view` answered. StateError for a committed snapshot."""
        chain = self.metadata.chain(key)
        if chain[0].kind is Kind.COMMITTED:
            raise StateError(f"snapshot {brief(key)} is committed")
        return self._mounts(chain)

    def commit(self, key: str, name: str, labels: Mapping[str, str], parent: str = "") -> None:
        """Makes an active snapshot a committed one."""
        found = self.metadata.get(key)
        usage = disk_usage(self.files(found)) if found.kind is Kind.ACTIVE else Usage()
        self.metadata.commit(key, name, labels, usage, parent)

    def remove(self, key: str) -> None:
        """Forgets a snapshot; its files are removed in the background. StateError where it has children."""
        self._removed.put(self.metadata.remove(key))

    def stat(self, key: str) -> Snapshot:
        """What is known of a snapshot."""
        return self.metadata.get(key)

    def usage(self, key: str) -> Usage:
        """What it has of its own."""
        found = self.metadata.get(key)
        if found.kind is Kind.ACTIVE:
            return disk_usage(self.files(found))
        return self._layers.usage(found) if found.layer else found.usage

    def update(self, name: str, labels: Mapping[str, str], paths: Sequence[str]) -> Snapshot:
        """Replaces all labels, or only those that `paths` name: `labels`, `labels.KEY`.

        Of those, one that `labels` lacks or has as "" is taken away. UsageError for other paths.
        """
        keys = []
        for path in paths:
            first, _, key = path.partition(".")
            if first != _LABELS:
                raise UsageError(f"{brief(path)} of snapshot {brief(name)} cannot be changed")
            keys.append(key)

        def change(before: Mapping[str, str]) -> Mapping[str, str]:
            if not keys or "" in keys:
                return labels
            after = {**before, **{key: labels.get(key, "") for key in keys}}
            return {key: value for key, value in after.items() if value or key not in keys}

        return self.metadata.update(name, change)

    def walk(self, filters: Sequence[str]) -> Iterator[Snapshot]:
        """Those that a filter wants, or all; see `filters`."""
        wanted = parse_filters(filters)
        return (one for one in self.metadata.all() if wanted(one))

    def cleanup(self) -> None:
        """Removes what belongs to no snapshot, and waits for what is being removed."""
        done = threading.Event()
        self._removed.put(done.set)
        done.wait()
        try:
            found = [int(name) for name in os.listdir(self._folder) if name.isdecimal()]  # noqa: PTH208
        except OSError as error:
            raise StorageError(f"{self._folder}: {error.strerror}") from error
        for number in sorted(set(found) - self.metadata.ids()):
            self._remove_files(number)

    def files(self, snapshot: Snapshot) -> Path:
        """The folder of a snapshot's files."""
        return self._folder / str(snapshot.id) / FILES

    # How.

    def _create(
        self, kind: Kind, key: str, parent: str, labels: Mapping[str, str]
    ) -> tuple[Snapshot, list[Mount]]:
        snapshot = self.metadata.create(kind, key, parent, labels)
        try:
            chain = self.metadata.chain(key)
            self._make_folder(snapshot, chain[1:2])
            return snapshot, self._mounts(chain)
        except BaseException:
            with suppress(SociError):
                self.remove(key)
            raise

    def _make_folder(self, snapshot: Snapshot, parent: Sequence[Snapshot]) -> None:
        """Makes a snapshot's folder; its root belongs to whom its `parent`'s, if it has one, does."""
        folder = self._folder / str(snapshot.id)
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            files = folder / FILES
            if not files.exists():
                files.mkdir(mode=0o755)
                files.chmod(0o755)  # whatever the umask says
                for one in parent:
                    os.chown(files, *self._owner(one))
            if snapshot.kind is Kind.ACTIVE:
                work = folder / WORK
                work.mkdir(mode=0o711, exist_ok=True)
                work.chmod(0o711)
        except OSError as error:
            raise StorageError(f"{error.filename}: {error.strerror}") from error

    def _owner(self, snapshot: Snapshot) -> tuple[int, int]:
        if snapshot.layer:
            return self._layers.owner(snapshot)
        status = self.files(snapshot).stat()
        return status.st_uid, status.st_gid

    def _mounts(self, chain: Sequence[Snapshot]) -> list[Mount]:
        """What to mount for an active snapshot or a view, the first of `chain`."""
        snapshot, *below = chain
        self._layers.check(below, self.files)
        writable = snapshot.kind is Kind.ACTIVE
        own = str(self.files(snapshot))
        lowers = [str(self.files(one)) for one in below]
        if not lowers or (len(lowers) == 1 and not writable):
            mode = "rw" if writable else "ro"
            return [Mount("bind", lowers[0] if lowers else own, (mode, "rbind"))]
        upper: tuple[str, ...] = ()
        if writable:
            work = str(self._folder / str(snapshot.id) / WORK)
            upper = (f"workdir={work}", f"upperdir={own}")
        lower = f"lowerdir={':'.join(lowers)}"
        return [Mount("overlay", "overlay", (*upper, lower, *self._own_options))]

    def _commit_layer(self, snapshot: Snapshot, target: str, provided: Provided) -> None:
        labels = {**snapshot.labels, **provided.labels}
        try:
            self.metadata.commit(
                snapshot.name, target, labels, provided.usage, layer=provided.layer
            )
        except AlreadyExistsError:
            self.remove(snapshot.name)
            if self.metadata.get(target).parent != snapshot.parent:
                raise
        except NotFoundError:
            # Removed meanwhile: whoever pulled has given up.
            self._removed.put(snapshot)
            raise

    def _mend(self) -> None:
        """Makes the folders whose making was interrupted."""
        for snapshot in self.metadata.all():
            if snapshot.kind is not Kind.COMMITTED:
                self._make_folder(snapshot, self.metadata.chain(snapshot.name)[1:2])

    def _remove_all(self) -> None:
        while (one := self._removed.get()) is not None:
            if not isinstance(one, Snapshot):
                one()
                continue
            self._remove_files(one.id)
            if one.layer:
                self._layers.forget(one, self.metadata.all())

    def _remove_files(self, number: int) -> None:
        folder = self._folder / str(number)
        with self._removing:
            self._layers.release(folder / FILES)
            remove_tree(folder)
        if folder.is_dir():
            self._log(f"{folder} cannot be removed whole")


def disk_usage(folder: Path) -> Usage:
    """The blocks of a folder and of all in it, each file counted once; what vanishes meanwhile is not."""
    seen: set[tuple[int, int]] = set()
    size, waiting = 0, [os.fspath(folder)]
    with suppress(OSError):
        status = os.lstat(folder)
        seen.add((status.st_dev, status.st_ino))
        size += status.st_blocks * _BLOCK
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if (status.st_dev, status.st_ino) in seen:
                        continue
                    seen.add((status.st_dev, status.st_ino))
                    size += status.st_blocks * _BLOCK
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return Usage(size, len(seen))


def _is_here(target: str) -> AlreadyExistsError:
    return AlreadyExistsError(f"target snapshot {brief(target)} already exists")
