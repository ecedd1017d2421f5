"""Walking through mounts that this process serves itself, with Python 3.10."""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any


class _Entry:
    """An os.DirEntry whose questions to the kernel release the interpreter's lock."""

    def __init__(self, entry: os.DirEntry[Any], descriptor: int | None) -> None:
        self._entry = entry
        self._descriptor = descriptor
        self.name, self.path = entry.name, entry.path
        self.inode, self.is_symlink = entry.inode, entry.is_symlink

    def __fspath__(self) -> Any:
        return self.path

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        if follow_symlinks and self.is_symlink():
            return os.path.isdir(self.path)  # noqa: PTH112 - may be bytes
        return self._entry.is_dir(follow_symlinks=False)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        if follow_symlinks and self.is_symlink():
            return os.path.isfile(self.path)  # noqa: PTH113 - may be bytes
        return self._entry.is_file(follow_symlinks=False)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return os.stat(self.path, dir_fd=self._descriptor, follow_symlinks=follow_symlinks)


class _Scan:
    """What os.scandir returns, with such entries."""

    def __init__(self, path: Any) -> None:
        self._found = _SCANDIR(path)
        self._descriptor = path if isinstance(path, int) else None

    def __iter__(self) -> Iterator[_Entry]:
        return self

    def __next__(self) -> _Entry:
        return _Entry(next(self._found), self._descriptor)

    def __enter__(self) -> _Scan:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._found.close()


_SCANDIR = os.scandir


def release_the_lock_while_scanning() -> None:
    """Has os.walk, shutil and pathlib ask for files without the interpreter's lock.

    os.DirEntry keeps it during its system calls before Python 3.11; where another thread of this process
    is to answer them, both would wait for ever.
    """
    if sys.version_info < (3, 11):
        users: tuple[Any, Any] = os, vars(pathlib)["_NormalAccessor"]
        for one in users:
            one.scandir = staticmethod(_Scan) if isinstance(one, type) else _Scan
