"""What `docker save` writes: `docker-archive:FILE[:NAME]`, and manifest.json, by which `docker load` reads.

manifest.json is a list of images, each with the paths of its config and layers in the tar file (moby,
image/tarexport). Since Docker 25 the file is an OCI archive besides; before, layers are plain tar files
in folders of their own. There is no manifest in it, so one is made of what there is.
"""

from __future__ import annotations

import json
import os
import posixpath
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from soci_cli.errors import InvalidDataError, NotFoundError, SociError
from soci_cli.oci import platforms
from soci_cli.oci.canonical import loads
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import algorithm_of, digest_of, encoded_of, new_hash
from soci_cli.oci.manifest import (
    Manifest,
    encode,
    parse_config_diff_ids,
    parse_index,
    parse_manifest,
)
from soci_cli.oci.media_types import (
    DOCKER_CONFIG,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    is_index,
)
from soci_cli.oci.references import Reference, parse_reference
from soci_cli.oci.values import as_object, text_field, texts_field
from soci_cli.targets._disk import MemoryReader, RegionReader, disk_errors
from soci_cli.targets._index_json import CONTAINERD_NAME, REF_NAME
from soci_cli.targets._tar import MEMBER_LIMIT, Region, open_regular, scan
from soci_cli.targets.blobs import BlobReader, check_range
from soci_cli.targets.protocol import Source, read_blob
from soci_cli.text import brief

_DOCUMENT_LIMIT = 16 << 20
_IMAGES = 1000
_LINKS = 8
_CHUNK = 1 << 20
_PACKED = {b"\x1f\x8b": OCI_LAYER_GZIP, b"\x28\xb5": OCI_LAYER_ZSTD}


@dataclass(frozen=True)
class _Saved:
    """One image of manifest.json: paths in the archive, and its names."""

    config: str
    layers: tuple[str, ...]
    names: tuple[str, ...]


class DockerArchive(Source):
    """A tar file of `docker save` that is read. Blobs are read where they lie."""

    def __init__(self, path: Path, tag: str | None = None, name: str | None = None) -> None:
        """`tag` chooses the image: a name of it, `@DIGEST`, or None for the only one.

        NotFoundError when there is no such file, InvalidDataError when it is no such archive.
        """
        super().__init__(name or f"docker-archive:{path}" + (f":{tag}" if tag else ""))
        self._tag = tag
        self._fd = open_regular(path, self._name)
        self._links: dict[str, str] = {}
        self._blobs: dict[str, Region | bytes] = {}
        self._made: dict[_Saved, Descriptor] = {}
        try:
            self._regions = scan(self._fd, self._name, self._links)
            self._images = self._read_list()
        except BaseException:
            self.close()
            raise

    def entries(self) -> tuple[Descriptor, ...]:
        """All images, one entry a name, with the annotations that name them."""
        return tuple(
            replace(self._manifest(image), annotations=_naming(text))
            for image in self._images
            for text in image.names or ("",)
        )

    def resolve(self) -> Descriptor:
        """See `Source.resolve`: a manifest that is made of what manifest.json says."""
        return self._manifest(self._chosen())

    def names(self) -> dict[str, str]:
        """See `Source.names`."""
        image = self._chosen()
        given = self._tag if self._tag and not self._tag.startswith("@") else None
        return _naming(given or next(iter(image.names), ""))

    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> BlobReader:
        """See `Source.fetch`."""
        count = check_range(descriptor, offset, length)
        found = self._blobs.get(descriptor.digest)
        if found is None or _size(found) != descriptor.size:
            raise NotFoundError(f"{self._name} has no blob {descriptor.digest}", place=self._name)
        if isinstance(found, bytes):
            return MemoryReader(found[offset : offset + count])
        what = f"blob {descriptor.digest} in {self._name}"
        with disk_errors("read", self._name):
            return RegionReader(os.dup(self._fd), found.offset + offset, count, what)

    def exists(self, descriptor: Descriptor) -> bool:
        """See `Source.exists`."""
        found = self._blobs.get(descriptor.digest)
        return found is not None and _size(found) == descriptor.size

    def close(self) -> None:
        """Close the file; readers that are still open stay usable."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _read_list(self) -> list[_Saved]:
        what = f"manifest.json of {self._name}"
        document = loads(self._read("manifest.json"), what, _DOCUMENT_LIMIT)
        if not isinstance(document, list) or not 0 < len(document) <= _IMAGES:
            raise InvalidDataError(f"{what} is no list of images")
        images = []
        for value in document:
            image = as_object(value, what)
            layers = texts_field(image, "Layers", what, MEMBER_LIMIT)
            names = texts_field(image, "RepoTags", what, _IMAGES)
            images.append(_Saved(text_field(image, "Config", what), layers, names))
        return images

    def _chosen(self) -> _Saved:
        tag = self._tag
        found = self._images
        if tag and tag.startswith("@"):
            found = [image for image in found if self._manifest(image).digest == tag[1:]]
        elif tag:
            wanted = parse_reference(tag)
            found = [one for one in found if wanted in map(_reference, one.names)]
        if len(found) == 1:
            return found[0]
        there = ", ".join(brief(text, 100) for image in self._images for text in image.names[:3])
        raise NotFoundError(
            f"{self._name} holds {'several images, so add a name' if found else 'no such image'}; "
            f"there are {there or 'images without a name'}",
            place=self._name,
        )

    def _manifest(self, image: _Saved) -> Descriptor:
        """The manifest of an image, whose blobs can be fetched from now on."""
        if image not in self._made:
            config = self._read(image.config)
            what = f"config {image.config} of {self._name}"
            diff_ids = parse_config_diff_ids(config, what)
            if len(diff_ids) != len(image.layers):
                raise InvalidDataError(
                    f"{what} names {len(diff_ids)} layers, and manifest.json {len(image.layers)}"
                )
            layers = tuple(map(self._layer, image.layers, diff_ids))
            described = self._keep(config, OCI_CONFIG)
            manifest = Manifest(2, OCI_MANIFEST, "", described, layers)
            self._made[image] = self._keep(encode(manifest), OCI_MANIFEST)
        return self._made[image]

    def _keep(self, data: bytes, media_type: str) -> Descriptor:
        descriptor = Descriptor(media_type, digest_of(data), len(data))
        self._blobs[descriptor.digest] = data
        return descriptor

    def _layer(self, path: str, diff_id: str) -> Descriptor:
        """A layer; a plain one has its diff ID for digest, which who reads it checks."""
        region = self._region(path)
        with disk_errors("read", self._name):
            kind = _PACKED.get(os.pread(self._fd, 2, region.offset))
            digest = diff_id
            if kind is not None:
                digest = self._digest_of(region)
        self._blobs[digest] = region
        return Descriptor(kind or OCI_LAYER, digest, region.size)

    def _digest_of(self, region: Region) -> str:
        found = new_hash("sha256:" + "0" * 64)
        for start in range(0, region.size, _CHUNK):
            count = min(_CHUNK, region.size - start)
            found.update(os.pread(self._fd, count, region.offset + start))
        return f"sha256:{found.hexdigest()}"

    def _read(self, path: str) -> bytes:
        region = self._region(path)
        if region.size > _DOCUMENT_LIMIT:
            raise InvalidDataError(f"{brief(path)} of {self._name} has {region.size} bytes")
        with disk_errors("read", self._name):
            return os.pread(self._fd, region.size, region.offset)

    def _region(self, path: str) -> Region:
        """A member by its path; layers that images share are links in old archives."""
        where = posixpath.normpath(path)
        for _ in range(_LINKS):
            if where in self._regions:
                return self._regions[where]
            if where not in self._links:
                break
            where = self._links[where]
        raise InvalidDataError(
            f"{self._name} is no whole Docker archive: it has no {brief(path)}", place=self._name
        )


def is_docker_archive(path: Path, name: str) -> bool:
    """Whether a tar file is one of `docker save` and no OCI archive; `name` is for messages."""
    fd = open_regular(path, name)
    try:
        members = scan(fd, name)
    finally:
        os.close(fd)
    return "manifest.json" in members and "index.json" not in members


def docker_manifest(place: Source, root: Descriptor, name: str) -> bytes | None:
    """manifest.json for the image of this machine's platform, or the only one, in an OCI archive.

    `name` is the image's full name, if it has one. None where `docker load` could do nothing with it.
    """
    with suppress(SociError):
        found = _for_docker(place, root)
        manifest = parse_manifest(read_blob(place, found), f"manifest {found.digest}")
        blobs = (manifest.config, *manifest.layers)
        if manifest.config.media_type in (OCI_CONFIG, DOCKER_CONFIG) and all(
            map(place.exists, blobs)
        ):
            config, *layers = (_path_of(blob.digest) for blob in blobs)
            names = [_familiar(parse_reference(name))] if name else None
            return json.dumps([{"Config": config, "RepoTags": names, "Layers": layers}]).encode()
    return None


def _for_docker(place: Source, root: Descriptor) -> Descriptor:
    """The manifest of this machine's platform, or the first that the place has."""
    here = platforms.host_platform()

    def foreign(entry: Descriptor) -> bool:
        return not (entry.platform and platforms.matches(here, entry.platform))

    pending = [root]
    while pending:
        one = pending.pop(0)
        if not is_index(one.media_type):
            return one
        listed = parse_index(read_blob(place, one), f"index {one.digest}").manifests
        there = [entry for entry in listed if not entry.artifact_type and place.exists(entry)]
        pending = sorted(there, key=foreign) + pending
    raise NotFoundError("no image is there")


def _familiar(reference: Reference) -> str:
    """A name as Docker shows it: without docker.io/ and library/."""
    text = f"{reference.domain}/{reference.repository}:{reference.tag or 'latest'}"
    return text.removeprefix("docker.io/").removeprefix("library/")


def _path_of(digest: str) -> str:
    return f"blobs/{algorithm_of(digest)}/{encoded_of(digest)}"


def _naming(text: str) -> dict[str, str]:
    """The annotations that name an entry."""
    reference = _reference(text)
    if reference is None:
        return {}
    return {CONTAINERD_NAME: str(reference), REF_NAME: reference.tag or "latest"}


def _reference(text: str) -> Reference | None:
    with suppress(SociError):
        return parse_reference(text)
    return None


def _size(found: Region | bytes) -> int:
    return len(found) if isinstance(found, bytes) else found.size
