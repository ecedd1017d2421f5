"""Images in a folder as skopeo's `dir:` has them: `dir:DIR`, read only.

A file manifest.json, and each blob as a file with the digits of its digest for name; of an index that was
copied whole, manifests are DIGITS.manifest.json (containers/image, directory/directory_transport.go).
"""

from __future__ import annotations

import os
from pathlib import Path

from soci_cli.errors import IntegrityError, InvalidDataError, NotFoundError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import algorithm_of, digest_of, encoded_of
from soci_cli.targets._disk import RegionReader, disk_errors
from soci_cli.targets._tar import open_regular
from soci_cli.targets.blobs import BlobReader, check_range
from soci_cli.targets.protocol import MANIFEST_LIMIT, Source, media_type_of
from soci_cli.text import brief

_MANIFEST = "manifest.json"


class DirectoryImage(Source):
    """An image in a folder of files."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        """NotFoundError when there is no such folder, InvalidDataError when it holds no image."""
        super().__init__(name or f"dir:{path}")
        self._path = path
        if not path.is_dir():
            raise NotFoundError(f"there is no folder {brief(str(path))}", place=self._name)
        fd = open_regular(path / _MANIFEST, self._name)
        with RegionReader(fd, 0, os.fstat(fd).st_size, f"{_MANIFEST} of {self._name}") as file:
            data = file.read(MANIFEST_LIMIT + 1)
        if len(data) > MANIFEST_LIMIT:
            raise InvalidDataError(f"{_MANIFEST} is larger than {MANIFEST_LIMIT} bytes")
        kind = media_type_of(data, f"{_MANIFEST} of {self._name}")
        self._root = Descriptor(kind, digest_of(data), len(data))

    def resolve(self) -> Descriptor:
        """See `Source.resolve`."""
        return self._root

    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> BlobReader:
        """See `Source.fetch`."""
        count = check_range(descriptor, offset, length)
        for name in self._names_of(descriptor.digest):
            try:
                fd = open_regular(self._path / name, self._name)
            except NotFoundError:
                continue
            size = os.fstat(fd).st_size
            reader = RegionReader(fd, offset, count, f"blob {descriptor.digest} in {self._name}")
            if size != descriptor.size:
                reader.close()
                raise IntegrityError(
                    f"blob {descriptor.digest} in {self._name} has {size} bytes, not the "
                    f"{descriptor.size} of its descriptor",
                    place=self._name,
                )
            return reader
        raise NotFoundError(f"{self._name} has no blob {descriptor.digest}", place=self._name)

    def exists(self, descriptor: Descriptor) -> bool:
        """See `Source.exists`."""
        with disk_errors("read", self._path):
            return any(
                path.is_file() and path.stat().st_size == descriptor.size
                for path in map(self._path.joinpath, self._names_of(descriptor.digest))
            )

    def _names_of(self, digest: str) -> tuple[str, ...]:
        """The files that may hold a blob."""
        if digest == self._root.digest:
            return (_MANIFEST,)
        algorithm, digits = algorithm_of(digest), encoded_of(digest)
        name = digits if algorithm == "sha256" else f"{algorithm}-{digits}"
        return name, f"{digits}.manifest.json"
