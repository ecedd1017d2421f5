"""Uploads that have begun: temporary files that grow."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from soci_cli.new_file import unlink_quietly
from soci_cli.oci.digest import new_hash
from soci_cli.targets._disk import disk_errors
from soci_cli.targets._folder import INGEST_PREFIX, LayoutFolder, write_all
from soci_cli.trial_registry._body import BadBody, Body
from soci_cli.trial_registry._http import Refused

_PIECE = 1 << 20
_BUSY_SECONDS = 5.0
_OPEN = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Upload:
    """One blob on its way. Only who holds it (`Uploads.held`) may change it."""

    def __init__(self, folder: LayoutFolder, repository: str) -> None:
        self.id = str(uuid.uuid4())
        self.repository = repository
        self.size = 0
        self.lock = threading.Lock()
        self.path = folder.root / f"{INGEST_PREFIX}{self.id}"

    def append(self, body: Body, length: int | None) -> None:
        """Add a body to what is there, and check that it has `length` bytes, if that is known.

        When the client goes away (ClientGone) what arrived stays. Refused and BadBody leave what was there
        before, StorageError as much as could be written.
        """
        before = self.size
        buffer = memoryview(bytearray(_PIECE if body.length is None else min(_PIECE, body.length)))
        with disk_errors("write", self.path):
            fd = os.open(self.path, _OPEN, 0o644)
        try:
            os.lseek(fd, before, os.SEEK_SET)
            while count := body.readinto(buffer):
                if length is not None and self.size + count > before + length:
                    raise Refused(400, "SIZE_INVALID", "the chunk is longer than it says")
                with disk_errors("write", self.path):
                    write_all(fd, buffer[:count])
                self.size += count
            if length is not None and self.size < before + length:
                raise Refused(400, "SIZE_INVALID", "the chunk is shorter than it says")
        except (Refused, BadBody):
            self.size = before
            raise
        finally:
            with suppress(OSError):
                os.ftruncate(fd, self.size)
            os.close(fd)

    def check(self, digest: str) -> None:
        """Refused unless all that arrived has this digest."""
        content = new_hash(digest)
        with disk_errors("read", self.path), self.path.open("rb") as file:
            while piece := file.read(_PIECE):
                content.update(piece)
        found = f"{content.name}:{content.hexdigest()}"
        if found != digest:
            raise Refused(
                400, "DIGEST_INVALID", f"the content has the digest {found}, not {digest}"
            )


class Uploads:
    """The uploads that have begun and not ended. May be used from several threads."""

    def __init__(self, folder: LayoutFolder) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._uploads: dict[str, Upload] = {}

    def start(self, repository: str) -> Upload:
        """Begin an upload."""
        upload = Upload(self._folder, repository)
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
            yield self.find(repository, id_)
        finally:
            upload.lock.release()

    def end(self, upload: Upload) -> None:
        """Forget an upload, with what it left."""
        with self._lock:
            self._uploads.pop(upload.id, None)
        unlink_quietly(upload.path)

    def close(self) -> None:
        """End all uploads."""
        for upload in list(self._uploads.values()):
            self.end(upload)
