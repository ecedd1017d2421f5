"""Uploads that have begun: temporary files that grow, hashed while they arrive."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from soci_cli.new_file import unlink_quietly
from soci_cli.oci.digest import algorithm_of
from soci_cli.targets._disk import disk_errors
from soci_cli.targets._folder import LayoutFolder, write_all
from soci_cli.trial_registry._body import BadBody, Body
from soci_cli.trial_registry._http import Refused

_PIECE = 1 << 20
_BUSY_SECONDS = 5.0
_IDLE_SECONDS = 60 * 60.0
"""Seconds after which an upload that nobody goes on with is given up."""


class Upload:
    """One blob on its way. Only who holds it (`Uploads.held`) may change it."""

    def __init__(self, folder: LayoutFolder, repository: str, algorithm: str) -> None:
        self.id = str(uuid.uuid4())
        self.repository = repository
        self.size = 0
        self.used = time.monotonic()
        self.lock = threading.Lock()
        self._folder = folder
        self._algorithm = algorithm
        self._hash = hashlib.new(algorithm)
        self._path: Path | None = None

    def append(self, body: Body, length: int | None) -> None:
        """Add a body to what is there, and check that it has `length` bytes, if that is known.

        When the client goes away (ClientGone) what arrived stays. Refused and BadBody
        leave what was there before, StorageError as much as could be written.
        """
        if body.ended and not length:
            return
        size, content = self.size, self._hash.copy()
        buffer = memoryview(bytearray(_PIECE if body.length is None else min(_PIECE, body.length)))
        fd = self._open()
        try:
            while count := body.readinto(buffer):
                if length is not None and self.size + count > size + length:
                    raise Refused(400, "SIZE_INVALID", "the chunk is longer than it says")
                with disk_errors("write", self._folder.root):
                    write_all(fd, buffer[:count])
                self._hash.update(buffer[:count])
                self.size += count
            if length is not None and self.size < size + length:
                raise Refused(400, "SIZE_INVALID", "the chunk is shorter than it says")
        except (Refused, BadBody):
            self.size, self._hash = size, content
            raise
        finally:
            with suppress(OSError):
                os.ftruncate(fd, self.size)
            os.close(fd)

    def digest(self, algorithm: str) -> str:
        """The digest of all that arrived.

        Only when the client changes its mind about the algorithm is the file read again.
        """
        if algorithm != self._algorithm:
            self._algorithm, self._hash = algorithm, hashlib.new(algorithm)
            if self._path is not None:
                with disk_errors("read", self._path), self._path.open("rb") as file:
                    while piece := file.read(_PIECE):
                        self._hash.update(piece)
        return f"{algorithm}:{self._hash.hexdigest()}"

    def file(self) -> Path:
        """The file with all that arrived."""
        if self._path is None:
            os.close(self._open())
        assert self._path is not None
        return self._path

    def discard(self) -> None:
        """Remove the file, unless it was given its final name."""
        if self._path is not None:
            unlink_quietly(self._path)

    def _open(self) -> int:
        if self._path is None:
            fd, self._path = self._folder.new_file()
            return fd
        with disk_errors("write", self._path):
            return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)


class Uploads:
    """The uploads that have begun and not ended. May be used from several threads."""

    def __init__(self, folder: LayoutFolder) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._uploads: dict[str, Upload] = {}

    def start(self, repository: str, algorithm: str) -> Upload:
        """Begin an upload."""
        upload = Upload(self._folder, repository, algorithm)
        with self._lock:
            self._uploads[upload.id] = upload
        return upload

    def find(self, repository: str, id_: str) -> Upload:
        """The upload with this id. Refused when there is none in this repository."""
        with self._lock:
            upload = self._uploads.get(id_)
        if upload is None or upload.repository != repository:
            raise Refused(404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload")
        return upload

    @contextmanager
    def held(self, repository: str, id_: str) -> Iterator[Upload]:
        """The upload, for one request at a time. Refused when another one goes on for long."""
        upload = self.find(repository, id_)
        if not upload.lock.acquire(timeout=_BUSY_SECONDS):
            raise Refused(409, "BLOB_UPLOAD_INVALID", "another request is at work on this upload")
        try:
            self.find(repository, id_)
            upload.used = time.monotonic()
            yield upload
            upload.used = time.monotonic()
        finally:
            upload.lock.release()

    def end(self, upload: Upload) -> None:
        """Forget an upload, with what it left."""
        with self._lock:
            self._uploads.pop(upload.id, None)
        upload.discard()

    def end_forgotten(self, idle_seconds: float = _IDLE_SECONDS) -> None:
        """End the uploads that nobody went on with for so long."""
        oldest = time.monotonic() - idle_seconds
        with self._lock:
            forgotten = [upload for upload in self._uploads.values() if upload.used < oldest]
        for upload in forgotten:
            if upload.lock.acquire(blocking=False):
                self.end(upload)
                upload.lock.release()

    def close(self) -> None:
        """End all uploads."""
        with self._lock:
            uploads = list(self._uploads.values())
        for upload in uploads:
            self.end(upload)


def check_algorithm(name: str) -> str:
    """The name of a digest algorithm that is kept here. Refused for others."""
    if name not in ("sha256", "sha512"):
        raise Refused(400, "DIGEST_INVALID", "the digest algorithm must be sha256 or sha512")
    return name


def check_upload(upload: Upload, digest: str) -> None:
    """Refused unless what arrived has this digest."""
    found = upload.digest(algorithm_of(digest))
    if found != digest:
        raise Refused(400, "DIGEST_INVALID", f"the content has the digest {found}, not {digest}")
