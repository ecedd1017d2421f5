"""The tar file around an OCI layout: which members it has, and headers of new ones."""

from __future__ import annotations

import io
import os
import posixpath
import re
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path

from soci_cli.errors import InvalidDataError, NotFoundError
from soci_cli.targets._disk import disk_errors, storage_error
from soci_cli.text import brief

MEMBER_LIMIT = 200_000
_HEADER_LIMIT = 64 * 1024
_WANTED = re.compile(
    r"(?:oci-layout|index\.json|manifest\.json"
    r"|blobs/sha256/[0-9a-f]{64}|blobs/sha512/[0-9a-f]{128})"
)
_PACKED = {b"\x1f\x8b": "gunzip", b"\x28\xb5": "unzstd", b"BZ": "bunzip2", b"\xfd7": "unxz"}


@dataclass(frozen=True)
class Region:
    """Where the data of a member lies in the tar file, in bytes."""

    offset: int
    size: int


class _HeaderFile(io.FileIO):
    """What tarfile reads headers from: never more at once than a header may hold."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _HEADER_LIMIT:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size) or b""

    def seek(self, position: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_SET and not 0 <= position <= os.fstat(self.fileno()).st_size:
            raise tarfile.ReadError("it was cut short")
        return super().seek(position, whence)


def open_regular(path: Path, name: str) -> int:
    try:
        # A FIFO would block the open for ever without O_NONBLOCK.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {brief(str(path))}", place=name) from error
    except OSError as error:
        raise storage_error("read", path, error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidDataError(f"{brief(str(path))} is no regular file", place=name)
    return fd


def scan(fd: int, name: str, links: dict[str, str] | None = None) -> dict[str, Region]:
    """The members that an OCI archive may have; the last one counts where a name is repeated.

    With `links` all regular files of the archive, and there the member that each link leads to.
    """
    with disk_errors("read", name):
        packer = _PACKED.get(os.pread(fd, 2, 0))
        total = os.fstat(fd).st_size
    if packer:
        raise InvalidDataError(f"{name} is compressed; unpack it with {packer} first", place=name)
    regions: dict[str, Region] = {}
    try:
        with _HeaderFile(os.dup(fd), "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            position = -1
            for _ in range(MEMBER_LIMIT):
                member = tar.next()
                if member is None:
                    return regions
                # tarfile keeps all it has seen, and follows negative sizes backwards.
                vars(tar)["members"].clear()
                if member.size < 0 or tar.offset <= position:
                    raise InvalidDataError(
                        f"{name} is no valid tar file: a negative size", place=name
                    )
                position = tar.offset
                member_name = member.name.removeprefix("./")
                if links is not None:
                    member_name = posixpath.normpath(member_name)
                    if member.issym():
                        folder = posixpath.dirname(member_name)
                        links[member_name] = posixpath.normpath(f"{folder}/{member.linkname}")
                    elif member.islnk():
                        links[member_name] = posixpath.normpath(member.linkname)
                    if not member.isreg():
                        continue
                elif not _WANTED.fullmatch(member_name):
                    continue
                if not member.isreg() or member.issparse():
                    raise InvalidDataError(
                        f"its member {member_name} is no regular file", place=name
                    )
                if member.offset_data + member.size > total:
                    raise InvalidDataError(f"{name} was cut short inside {member_name}", place=name)
                regions[member_name] = Region(member.offset_data, member.size)
    except (
        tarfile.TarError,
        ValueError,
        LookupError,
        OverflowError,
        EOFError,
        RecursionError,
    ) as error:
        raise InvalidDataError(
            f"{name} is no valid tar file: {brief(str(error))}", place=name
        ) from error
    except OSError as error:
        raise storage_error("read", name, error) from error
    raise InvalidDataError(f"{name} has more than {MEMBER_LIMIT} members", place=name)


def file_header(name: str, size: int) -> bytes:
    return _header(name, size, 0o644, tarfile.REGTYPE)


def folder_header(name: str) -> bytes:
    return _header(name, 0, 0o755, tarfile.DIRTYPE)


def _header(name: str, size: int, mode: int, kind: bytes) -> bytes:
    """One member's header; owner and time are zero, and say nothing of who wrote it."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.type, info.mtime = size, mode, kind, 0
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")
