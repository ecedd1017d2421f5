"""The local store's SQLite file: what was derived from a blob, where blobs can be had, and artifacts.

All of it can be found again. A file of an older version is brought up to date; one that is no database,
or of a newer version, is moved aside and begun anew. Each call opens the file for itself, so any thread
or process may call.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TypeVar

from soci_cli.errors import InvalidDataError, StorageError
from soci_cli.oci.canonical import loads
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import parse_digest
from soci_cli.targets._disk import disk_errors
from soci_cli.targets._folder import LayoutFolder
from soci_cli.text import brief

DATABASE_NAME = "soci.db"
LOCAL_CONTENT = "soci"
"""The content store that is the local store itself, by the name that users give it."""

_VERSION = 2  # 1 had no artifacts
_BUSY_SECONDS = 30.0
_TABLES = (
    "CREATE TABLE IF NOT EXISTS derived (kind TEXT NOT NULL, source_digest TEXT NOT NULL, "
    "key TEXT NOT NULL, media_type TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL, "
    "annotations TEXT NOT NULL, artifact_type TEXT NOT NULL, "
    "PRIMARY KEY (kind, source_digest, key))",
    "CREATE TABLE IF NOT EXISTS locations (digest TEXT NOT NULL, place TEXT NOT NULL, "
    "PRIMARY KEY (digest, place))",
    "CREATE TABLE IF NOT EXISTS artifacts (digest TEXT NOT NULL, kind TEXT NOT NULL, "
    "size INTEGER NOT NULL, media_type TEXT NOT NULL, artifact_type TEXT NOT NULL, "
    "original_digest TEXT NOT NULL, image_digest TEXT NOT NULL, platform TEXT NOT NULL, "
    "span_size INTEGER NOT NULL, content_store TEXT NOT NULL, namespace TEXT NOT NULL, "
    "created TEXT NOT NULL, pinned INTEGER NOT NULL, "
    "PRIMARY KEY (digest, original_digest, content_store, namespace))",
)

_T = TypeVar("_T")


@dataclass(frozen=True)
class StoredArtifact:
    """Something that was made for an image and is kept in a content store.

    `original_digest` is what it was made from, a manifest or a layer, `image_digest` the image as a
    whole. `content_store` is LOCAL_CONTENT or another, of which `namespace` is a part. `span_size` is in
    bytes, `created` in UTC. What is `pinned` the local store keeps for its own sake, without an image.
    """

    digest: str
    kind: str
    size: int
    media_type: str
    artifact_type: str
    original_digest: str
    image_digest: str
    platform: str
    span_size: int
    content_store: str
    namespace: str
    created: datetime
    pinned: bool = False

    @property
    def descriptor(self) -> Descriptor:
        """The blob itself."""
        return Descriptor(self.media_type, self.digest, self.size, artifact_type=self.artifact_type)


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

    def put_artifacts(self, artifacts: Iterable[StoredArtifact]) -> None:
        """Remember artifacts; replaces what was known of them."""
        rows = [_artifact_row(one) for one in artifacts]
        marks = ", ".join("?" * 13)
        self._run(lambda db: db.executemany(f"REPLACE INTO artifacts VALUES ({marks})", rows))

    def artifacts(self) -> list[StoredArtifact]:
        """All artifacts, the newest first."""
        if not self._path.exists():
            return []
        rows = self._run(
            lambda db: db.execute(
                "SELECT * FROM artifacts ORDER BY created DESC, rowid DESC"
            ).fetchall()
        )
        return [one for one in map(_artifact, rows) if one is not None]

    def remove_artifacts(self, artifacts: Iterable[StoredArtifact]) -> None:
        """Forget artifacts."""
        keys = [
            (one.digest, one.original_digest, one.content_store, one.namespace) for one in artifacts
        ]
        self._run(
            lambda db: db.executemany(
                "DELETE FROM artifacts WHERE digest = ? AND original_digest = ? "
                "AND content_store = ? AND namespace = ?",
                keys,
            )
        )

    def keep_only(self, digests: Collection[str]) -> None:
        """Forget everything that leads to other blobs of the local store than these."""
        if not self._path.exists():
            return

        def prune(db: sqlite3.Connection) -> None:
            db.execute("CREATE TEMP TABLE kept (digest TEXT PRIMARY KEY)")
            db.executemany("INSERT OR IGNORE INTO kept VALUES (?)", ((one,) for one in digests))
            db.execute("DELETE FROM derived WHERE digest NOT IN (SELECT digest FROM kept)")
            db.execute("DELETE FROM locations WHERE digest NOT IN (SELECT digest FROM kept)")
            db.execute(
                "DELETE FROM artifacts WHERE content_store = ? "
                "AND digest NOT IN (SELECT digest FROM kept)",
                (LOCAL_CONTENT,),
            )

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
                f"{brief(str(self._path))} is no usable database; remove that file"
            ) from error

    def _attempt(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        try:
            with closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as db:
                _check_version(db, self._writable())
                with db:
                    return work(db)
        except sqlite3.Error as error:
            # "not a database" and "malformed" come as DatabaseError itself, all that a lock or a
            # full disk causes as one of its subclasses.
            if type(error) is sqlite3.DatabaseError:
                raise _NotOurs(str(error)) from error
            raise StorageError(
                f"cannot use {brief(str(self._path))}: {error}; try again when no other soci "
                "command runs, and check the free space"
            ) from error

    def _writable(self) -> bool:
        return os.access(self._path, os.W_OK) and os.access(self._path.parent, os.W_OK)

    def _move_aside(self) -> None:
        with self._folder.locked(), disk_errors("move aside", self._path):
            try:
                self._attempt(lambda db: db.execute("SELECT count(*) FROM sqlite_master"))
            except _NotOurs:
                self._path.replace(self._path.with_name(f"{DATABASE_NAME}.unusable"))
                # Its journal would be applied to the new file.
                self._path.with_name(f"{DATABASE_NAME}-journal").unlink(missing_ok=True)


class _NotOurs(Exception):
    """The file is damaged, no database, or of a newer version."""


def _check_version(db: sqlite3.Connection, writable: bool) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version == _VERSION:
        return
    if not 0 <= version < _VERSION:
        raise _NotOurs(f"schema version {version}")
    if version and not writable:
        return  # a store that cannot be written is read as it is
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


def _artifact_row(artifact: StoredArtifact) -> tuple[object, ...]:
    return (
        artifact.digest,
        artifact.kind,
        artifact.size,
        artifact.media_type,
        artifact.artifact_type,
        artifact.original_digest,
        artifact.image_digest,
        artifact.platform,
        artifact.span_size,
        artifact.content_store,
        artifact.namespace,
        artifact.created.astimezone(timezone.utc).isoformat(timespec="microseconds"),
        int(artifact.pinned),
    )


def _artifact(row: tuple[object, ...]) -> StoredArtifact | None:
    """The artifact of a row; None when the row does not hold one, as after a crash."""
    digest, kind, size, media_type, artifact_type, original, image, platform = row[:8]
    span_size, content_store, namespace, created, pinned = row[8:]
    try:
        parse_digest(str(digest))
        time = datetime.fromisoformat(str(created))
    except (InvalidDataError, ValueError):
        return None
    if not isinstance(size, int) or not isinstance(span_size, int) or time.tzinfo is None:
        return None
    return StoredArtifact(
        digest=str(digest),
        kind=str(kind),
        size=size,
        media_type=str(media_type),
        artifact_type=str(artifact_type),
        original_digest=str(original),
        image_digest=str(image),
        platform=str(platform),
        span_size=span_size,
        content_store=str(content_store),
        namespace=str(namespace),
        created=time,
        pinned=bool(pinned),
    )
