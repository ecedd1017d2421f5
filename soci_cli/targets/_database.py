"""The local store's SQLite file: what was derived from a blob, and where blobs can be had.

It is a cache. A file that is no database of this version is moved aside and begun anew. Each call
opens the file for itself, so any thread or process may call.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection
from contextlib import closing
from typing import TypeVar

from soci_cli.errors import InvalidDataError, StorageError
from soci_cli.oci.canonical import loads
from soci_cli.oci.descriptor import Descriptor
from soci_cli.targets._disk import disk_errors, shown
from soci_cli.targets._folder import LayoutFolder

DATABASE_NAME = "soci.db"
_VERSION = 1
_BUSY_SECONDS = 30.0
_TABLES = (
    "CREATE TABLE IF NOT EXISTS derived (kind TEXT NOT NULL, source_digest TEXT NOT NULL, "
    "key TEXT NOT NULL, media_type TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL, "
    "annotations TEXT NOT NULL, artifact_type TEXT NOT NULL, "
    "PRIMARY KEY (kind, source_digest, key))",
    "CREATE TABLE IF NOT EXISTS locations (digest TEXT NOT NULL, place TEXT NOT NULL, "
    "PRIMARY KEY (digest, place))",
)

_T = TypeVar("_T")


class StoreDatabase:
    """The file `soci.db` in the store's folder. Every method raises StorageError."""

    def __init__(self, folder: LayoutFolder) -> None:
        self._folder = folder
        self._path = folder.root / DATABASE_NAME

    def put_derived(self, kind: str, source_digest: str, key: str, made: Descriptor) -> None:
        """Remember what was made from a blob; replaces what was known."""
        row = (
            kind,
            source_digest,
            key,
            made.media_type,
            made.digest,
            made.size,
            json.dumps(dict(made.annotations), ensure_ascii=False),
            made.artifact_type,
        )
        self._run(
            lambda db: db.execute("REPLACE INTO derived VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        )

    def get_derived(self, kind: str, source_digest: str, key: str) -> Descriptor | None:
        """What was remembered, if anything."""
        if not self._path.exists():
            return None
        row = self._run(
            lambda db: db.execute(
                "SELECT media_type, digest, size, annotations, artifact_type FROM derived "
                "WHERE kind = ? AND source_digest = ? AND key = ?",
                (kind, source_digest, key),
            ).fetchone()
        )
        return None if row is None else _descriptor(row)

    def derived_from(self, kind: str, source_digest: str) -> list[Descriptor]:
        """All of a kind that was remembered of a blob, the newest first."""
        if not self._path.exists():
            return []
        rows = self._run(
            lambda db: db.execute(
                "SELECT media_type, digest, size, annotations, artifact_type FROM derived "
                "WHERE kind = ? AND source_digest = ? ORDER BY rowid DESC",
                (kind, source_digest),
            ).fetchall()
        )
        return [made for made in map(_descriptor, rows) if made is not None]

    def all_derived(self) -> list[tuple[str, Descriptor]]:
        """Every source digest with what was made from it."""
        if not self._path.exists():
            return []
        rows = self._run(
            lambda db: db.execute(
                "SELECT media_type, digest, size, annotations, artifact_type, source_digest "
                "FROM derived"
            ).fetchall()
        )
        pairs = [(str(row[5]), _descriptor(row[:5])) for row in rows]
        return [(source, made) for source, made in pairs if made is not None]

    def put_location(self, digest: str, place: str) -> None:
        """Remember that `place` has a blob."""
        self._run(lambda db: db.execute("REPLACE INTO locations VALUES (?, ?)", (digest, place)))

    def get_locations(self, digest: str) -> list[str]:
        """The places that have a blob, sorted."""
        if not self._path.exists():
            return []
        rows = self._run(
            lambda db: db.execute(
                "SELECT place FROM locations WHERE digest = ? ORDER BY place", (digest,)
            ).fetchall()
        )
        return [str(row[0]) for row in rows]

    def keep_only(self, digests: Collection[str]) -> None:
        """Forget everything that leads to other blobs than these."""
        if not self._path.exists():
            return

        def prune(db: sqlite3.Connection) -> None:
            db.execute("CREATE TEMP TABLE kept (digest TEXT PRIMARY KEY)")
            db.executemany("INSERT OR IGNORE INTO kept VALUES (?)", ((one,) for one in digests))
            db.execute("DELETE FROM derived WHERE digest NOT IN (SELECT digest FROM kept)")
            db.execute("DELETE FROM locations WHERE digest NOT IN (SELECT digest FROM kept)")

        self._run(prune)

    def _run(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            return self._attempt(work)
        except _NotOurs:
            self._move_aside()
        try:
            return self._attempt(work)
        except _NotOurs as error:
            raise StorageError(
                f"{shown(str(self._path))} is no usable database; remove that file"
            ) from error

    def _attempt(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            with closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as db:
                _check_version(db)
                with db:
                    return work(db)
        except sqlite3.Error as error:
            # "not a database" and "malformed" come as DatabaseError itself, all that a lock or a
            # full disk causes as one of its subclasses.
            if type(error) is sqlite3.DatabaseError:
                raise _NotOurs(str(error)) from error
            raise StorageError(
                f"cannot use {shown(str(self._path))}: {error}; try again when no other soci "
                "command runs, and check the free space"
            ) from error

    def _move_aside(self) -> None:
        with self._folder.locked(), disk_errors("move aside", self._path):
            try:
                self._attempt(lambda db: db.execute("SELECT count(*) FROM sqlite_master"))
            except _NotOurs:
                self._path.replace(self._path.with_name(f"{DATABASE_NAME}.unusable"))
                # Its journal would be applied to the new file.
                self._path.with_name(f"{DATABASE_NAME}-journal").unlink(missing_ok=True)


class _NotOurs(Exception):
    """The file is damaged, no database, or of another version."""


def _check_version(db: sqlite3.Connection) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version == _VERSION:
        return
    if version != 0:
        raise _NotOurs(f"schema version {version}")
    with db:
        db.execute("BEGIN IMMEDIATE")
        for table in _TABLES:
            db.execute(table)
        db.execute(f"PRAGMA user_version = {_VERSION}")


def _descriptor(row: tuple[object, ...]) -> Descriptor | None:
    """The descriptor of a row; None when the row does not hold one, as after a crash."""
    media_type, digest, size, annotations, artifact_type = row
    what = DATABASE_NAME
    try:
        return Descriptor.from_json(
            {
                "mediaType": media_type,
                "digest": digest,
                "size": size,
                "annotations": loads(str(annotations).encode(), what),
                "artifactType": artifact_type,
            },
            what,
        )
    except InvalidDataError:
        return None
