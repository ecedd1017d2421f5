"""What is known of snapshots, in one SQLite file: names, parents, labels, and what a layer is served from.

Each method is one transaction, and none does anything else meanwhile. What is answered once outlives a
crash of the machine.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from soci_cli.closing import Closing
from soci_cli.errors import (
    AlreadyExistsError,
    NotFoundError,
    StateError,
    StorageError,
    UsageError,
)
from soci_cli.text import brief

_VERSION = 1
_PATIENCE = 10.0
_TABLE = """
CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    parent INTEGER REFERENCES snapshots (id),
    kind INTEGER NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    labels TEXT NOT NULL,
    size INTEGER NOT NULL DEFAULT 0,
    inodes INTEGER NOT NULL DEFAULT 0,
    layer TEXT NOT NULL DEFAULT ''
)
"""
_SELECT = """
SELECT one.id, one.name, coalesce(above.name, ''), one.kind, one.created, one.updated, one.labels,
       one.size, one.inodes, one.layer
FROM snapshots AS one LEFT JOIN snapshots AS above ON one.parent = above.id
"""
_CHAIN = """
WITH RECURSIVE chain (id, parent, depth) AS (
    SELECT id, parent, 0 FROM snapshots WHERE name = ?
    UNION ALL SELECT s.id, s.parent, depth + 1 FROM snapshots AS s JOIN chain ON s.id = chain.parent
)
"""


class Kind(IntEnum):
    """What a snapshot is, by containerd's numbers."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True)
class Usage:
    """What a snapshot has of its own: bytes on this disk, and files."""

    size: int = 0
    inodes: int = 0


@dataclass(frozen=True)
class Snapshot:
    """A snapshot.

    `parent` is a name, "" for none; times are nanoseconds since 1970. `layer` is what a lazy layer is
    served from (`layers.LayerRecord` as JSON), "" where its files are on the disk.
    """

    id: int
    name: str
    parent: str
    kind: Kind
    created: int
    updated: int
    labels: Mapping[str, str] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    layer: str = ""


class Metadata(Closing):
    """The snapshots of one root. Several threads may use it.

    Raises NotFoundError, AlreadyExistsError, StateError for a snapshot of the wrong kind, UsageError for
    what cannot be meant, and StorageError for a file that cannot be read or written.
    """

    def __init__(self, path: Path, clock: Callable[[], int] = time.time_ns) -> None:
        """Makes the file where there is none. StorageError."""
        self._path = path
        self._clock = clock
        self._mutex = threading.RLock()
        with self._errors():
            path.touch(0o600)
            self._database = sqlite3.connect(
                path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
            )
        try:
            self._prepare()
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Closes the file."""
        with self._mutex:
            self._database.close()

    def create(self, kind: Kind, name: str, parent: str, labels: Mapping[str, str]) -> Snapshot:
        """A new snapshot, active or a view; `parent` must be committed, "" is none."""
        _check_name(name)
        now = self._clock()
        with self._writing():
            above = None
            if parent:
                found = self._get(parent)
                if found.kind is not Kind.COMMITTED:
                    raise UsageError(f"parent {brief(parent)} is not a committed snapshot")
                above = found.id
            try:
                row = self._database.execute(
                    "INSERT INTO snapshots (name, parent, kind, created, updated, labels) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (name, above, int(kind), now, now, json.dumps(dict(labels))),
                )
            except sqlite3.IntegrityError:
                raise AlreadyExistsError(f"snapshot {brief(name)} already exists") from None
            return self._by_id(row.lastrowid or 0)

    def commit(
        self,
        key: str,
        name: str,
        labels: Mapping[str, str],
        usage: Usage,
        parent: str = "",
        layer: str = "",
    ) -> Snapshot:
        """Makes the active snapshot `key` a committed one called `name`, with these labels alone.

        A `parent` that is given must be the one that the snapshot has.
        """
        _check_name(name)
        now = self._clock()
        with self._writing():
            found = self._get(key)
            if found.kind is not Kind.ACTIVE:
                raise StateError(f"snapshot {brief(key)} is not active")
            if parent and parent != found.parent:
                raise UsageError(
                    f"snapshot {brief(key)} has the parent {brief(found.parent) or 'none'}, not "
                    f"{brief(parent)}"
                )
            try:
                self._database.execute(
                    "UPDATE snapshots SET name = ?, kind = ?, created = ?, updated = ?, labels = ?, "
                    "size = ?, inodes = ?, layer = ? WHERE id = ?",
                    (
                        name,
                        int(Kind.COMMITTED),
                        now,
                        now,
                        json.dumps(dict(labels)),
                        usage.size,
                        usage.inodes,
                        layer,
                        found.id,
                    ),
                )
            except sqlite3.IntegrityError:
                raise AlreadyExistsError(f"snapshot {brief(name)} already exists") from None
            return self._by_id(found.id)

    def remove(self, name: str) -> Snapshot:
        """Forgets a snapshot; what it was. StateError where others have it as their parent."""
        with self._writing():
            found = self._get(name)
            children = "SELECT 1 FROM snapshots WHERE parent = ? LIMIT 1"
            if self._database.execute(children, (found.id,)).fetchone():
                # containerd's own words, which its tests look for.
                raise StateError(f"cannot remove snapshot with child: {brief(name)}")
            self._database.execute("DELETE FROM snapshots WHERE id = ?", (found.id,))
            return found

    def update(
        self, name: str, change: Callable[[Mapping[str, str]], Mapping[str, str]]
    ) -> Snapshot:
        """Gives a snapshot the labels that `change` makes of those that it has."""
        with self._writing():
            found = self._get(name)
            now = max(self._clock(), found.updated + 1)
            self._database.execute(
                "UPDATE snapshots SET labels = ?, updated = ? WHERE id = ?",
                (json.dumps(dict(change(found.labels))), now, found.id),
            )
            return self._by_id(found.id)

    def set_usage(self, name: str, usage: Usage) -> None:
        """Writes down what a snapshot has of its own; nothing where it is gone."""
        with self._writing():
            self._database.execute(
                "UPDATE snapshots SET size = ?, inodes = ? WHERE name = ?",
                (usage.size, usage.inodes, name),
            )

    def get(self, name: str) -> Snapshot:
        """The snapshot of a name."""
        with self._reading():
            return self._get(name)

    def all(self) -> list[Snapshot]:
        """All of them, the oldest first."""
        with self._reading():
            return [_snapshot(row) for row in self._database.execute(f"{_SELECT} ORDER BY one.id")]

    def chain(self, name: str) -> list[Snapshot]:
        """A snapshot and all above it: the snapshot itself first, the one without a parent last."""
        with self._reading():
            query = f"{_CHAIN} {_SELECT} JOIN chain ON chain.id = one.id ORDER BY chain.depth"
            found = [_snapshot(row) for row in self._database.execute(query, (name,))]
        if not found:
            raise _missing(name)
        return found

    def ids(self) -> set[int]:
        """The ids of all."""
        with self._reading():
            return {row[0] for row in self._database.execute("SELECT id FROM snapshots")}

    # The file.

    def _prepare(self) -> None:
        with self._errors():
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute("PRAGMA foreign_keys = ON")
        with self._writing():
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._database.execute(_TABLE)
                self._database.execute("CREATE INDEX parents ON snapshots (parent)")
                self._database.execute(f"PRAGMA user_version = {_VERSION}")
            elif version != _VERSION:
                raise StorageError(
                    f"{self._path} is of another version of soci ({version}); use that, or another --root"
                )

    def _get(self, name: str) -> Snapshot:
        row = self._database.execute(f"{_SELECT} WHERE one.name = ?", (name,)).fetchone()
        if row is None:
            raise _missing(name)
        return _snapshot(row)

    def _by_id(self, number: int) -> Snapshot:
        return _snapshot(
            self._database.execute(f"{_SELECT} WHERE one.id = ?", (number,)).fetchone()
        )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._mutex, self._errors():
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with self._mutex, self._errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise StorageError(f"{self._path}: {reason}") from error


def _check_name(name: str) -> None:
    if not name or "\0" in name:
        raise UsageError("a snapshot needs a name")


def _missing(name: str) -> NotFoundError:
    return NotFoundError(f"snapshot {brief(name)} does not exist")


def _snapshot(row: Sequence[object]) -> Snapshot:
    number, name, parent, kind, created, updated, labels, size, inodes, layer = row
    assert isinstance(number, int) and isinstance(created, int) and isinstance(updated, int)
    assert isinstance(kind, int) and isinstance(size, int) and isinstance(inodes, int)
    return Snapshot(
        number,
        str(name),
        str(parent),
        Kind(kind),
        created,
        updated,
        json.loads(str(labels)),
        Usage(size, inodes),
        str(layer),
    )
