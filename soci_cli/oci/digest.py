"""Content digests, and a reader that checks one (OCI image spec, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Protocol

from soci_cli.errors import IntegrityError, InvalidDataError, SociError
from soci_cli.text import quote

if TYPE_CHECKING:
    from hashlib import _Hash as Hash
else:
    Hash = object

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_READ_ALL_CHUNK = 1 << 20


def parse_digest(text: str, kind: type[SociError] = InvalidDataError) -> str:
    """`text` itself when it is `sha256:` with 64 or `sha512:` with 128 lower-case hex digits.

    Raises `kind` for anything else, other algorithms of the OCI spec included.
    """
    if not _DIGEST.fullmatch(text):
        raise kind(f"not a digest: {quote(text)}; expected sha256:HEX or sha512:HEX in lower case")
    return text


def is_digest(text: str) -> bool:
    """Whether `parse_digest` takes it."""
    return _DIGEST.fullmatch(text) is not None


def digest_of(data: bytes | bytearray | memoryview) -> str:
    """The sha256 digest of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def algorithm_of(digest: str) -> str:
    """`sha256` or `sha512`. Raises InvalidDataError where `parse_digest` does."""
    return parse_digest(digest).partition(":")[0]


def encoded_of(digest: str) -> str:
    """The hex digits. Raises InvalidDataError where `parse_digest` does."""
    return parse_digest(digest).partition(":")[2]


def new_hash(digest: str) -> Hash:
    """A fresh hashlib object for the algorithm of `digest`."""
    return hashlib.new(algorithm_of(digest))


class Readable(Protocol):
    """What the readers of this package need of a stream: `read(n)`, b"" at the end."""

    def read(self, n: int, /) -> bytes: ...


class VerifyingReader:
    """A byte stream that ends well only if it has the size and the digest that were promised.

    The last byte is handed out after the digest was checked, so who has read `size` bytes has
    verified bytes. A byte too many is found by the read that meets it: who must know reads to the
    end, or calls `finish`. Every failure is an IntegrityError that starts with `what`, such as
    "layer sha256:... of docker.io/library/alpine:latest", and every later read repeats it.
    """

    def __init__(self, stream: Readable, digest: str, size: int, what: str) -> None:
        """`digest` and `size` (bytes) are the promise. A bad digest is an InvalidDataError."""
        self._stream = stream
        self._digest = digest
        self._hash = new_hash(digest)
        self._size = size
        self._left = size
        self._what = what
        self._verified = False
        self._error: str | None = None
        self._readinto = getattr(stream, "readinto", None)

    @property
    def verified(self) -> bool:
        """Whether all promised bytes have arrived and have the promised digest."""
        return self._verified

    def readable(self) -> bool:
        """True, for the wrappers of the io module."""
        return True

    def read(self, n: int | None = -1) -> bytes:
        """Up to `n` bytes, or all that are left when `n` is None or negative; b"" at the end."""
        if n is None or n < 0:
            parts = []
            while part := self.read(_READ_ALL_CHUNK):
                parts.append(part)
            return b"".join(parts)
        if n == 0:
            return b""
        self._before_read()
        # One byte past the promise tells a stream that is too long, whatever n asks for.
        data = self._stream.read(min(n, self._left + 1))
        self._arrived(data, len(data))
        return data

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill `buffer`, as `io.RawIOBase.readinto` does. Returns the number of bytes."""
        view = memoryview(buffer).cast("B")
        if not view:
            return 0
        if self._readinto is None:
            data = self.read(len(view))
            view[: len(data)] = data
            return len(data)
        self._before_read()
        window = view[: self._left + 1]
        count: int = self._readinto(window)
        self._arrived(window[:count], count)
        return count

    def finish(self) -> None:
        """Read what is left and drop it, so that everything is checked."""
        while self.read(_READ_ALL_CHUNK):
            pass

    def _before_read(self) -> None:
        if self._error is not None:
            raise IntegrityError(self._error)
        if self._left == 0:
            self._check_digest()

    def _arrived(self, data: bytes | memoryview, count: int) -> None:
        if count > self._left:
            self._fail(f"more than the promised {self._size} bytes arrived")
        if count == 0 and self._left > 0:
            got = self._size - self._left
            self._fail(f"ends after {got} of {self._size} bytes")
        self._hash.update(data)
        self._left -= count
        if self._left == 0:
            self._check_digest()

    def _check_digest(self) -> None:
        if self._verified:
            return
        got = f"{algorithm_of(self._digest)}:{self._hash.hexdigest()}"
        if got != self._digest:
            self._fail(f"the content has digest {got}, expected {self._digest}")
        self._verified = True

    def _fail(self, reason: str) -> None:
        self._verified = False
        self._error = f"{self._what}: {reason}; the copy is damaged, fetch it again"
        raise IntegrityError(self._error)
