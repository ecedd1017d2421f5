"""Files of one layer by path, for who has only its zTOC."""

from __future__ import annotations

from soci_cli.errors import NotFoundError
from soci_cli.ztoc.codec import Ztoc
from soci_cli.ztoc.folders import IMPLIED, SYMLINK
from soci_cli.ztoc.layer import LayerFiles
from soci_cli.ztoc.model import FileMetadata
from soci_cli.ztoc.paths import clean_path, show, walk


class FileTree:
    """Finds files of a layer by path, as a mount of the layer alone would show them."""

    def __init__(self, ztoc: Ztoc) -> None:
        """Raises InvalidDataError, as `find`, where the zTOC is not valid."""
        self._files = LayerFiles(ztoc)
        self._root = b"", self._files.root

    def find(self, path: bytes) -> FileMetadata:
        """The entry of the file at `path`, links followed inside the layer.

        Raises NotFoundError where the layer has no such file, or does not name the folder that is there, or
        a link leads out of it.
        """
        _, entry = walk(self, self._root, clean_path(path), "the layer")
        if entry < 0:
            raise NotFoundError(f"the layer has no entry for the folder {show(path)}")
        return self._files.ztoc.files[entry]

    # For `walk`: a file is its path, which only folders need, and its entry.

    def look(self, folder: tuple[bytes, int], name: bytes) -> tuple[bytes, int] | None:
        """See `Walker.look`."""
        if not self.is_folder(folder):
            return None
        path = folder[0]
        found = self._files.look(path, name)
        if found is None:
            target = self._files.lost_link(path, name)
            if target is None:
                return None
            link = show(path + b"/" + name)
            raise NotFoundError(
                f"{link} is a hard link to {show(target)}, which the layer does not have"
            )
        return (path + b"/" + name if path else name), found[0]

    def is_folder(self, file: tuple[bytes, int]) -> bool:
        """See `Walker.is_folder`."""
        return self._files.is_directory(file[1])

    def link_of(self, file: tuple[bytes, int]) -> bytes | None:
        """See `Walker.link_of`."""
        entry = file[1]
        is_link = entry != IMPLIED and entry >= 0 and self._files.type_of(entry) == SYMLINK
        return self._files.linkname(entry) if is_link else None
