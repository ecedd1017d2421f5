"""Places as users write them: a registry, containerd, an OCI layout or archive, or an image's name.

`docker://HOST/REPO[:TAG|@DIGEST]`, `containerd:IMAGE`, `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`; to read
also `docker-archive:FILE[:NAME]` and `dir:DIR`. Anything else is the name of an image in the local store
or, where the caller says so, in containerd. A row of the table `_KINDS` is all that a further kind needs
here. Each kind's module is imported when it is opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, TypeAlias

from soci_cli.errors import UsageError, explaining
from soci_cli.oci.digest import parse_digest
from soci_cli.oci.references import Reference, parse_reference
from soci_cli.text import brief

if TYPE_CHECKING:
    from soci_cli.targets.containerd.client import Containerd
    from soci_cli.targets.protocol import Source, Target
    from soci_cli.targets.registry.registries import Registries
    from soci_cli.targets.store import Store

DOCKER = "docker://"
CONTAINERD = "containerd:"
_OTHER_TRANSPORTS = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9+.-]*://"
    r"|(?:containers-storage|docker-daemon|oci-dir|oci-layout|ostree|sif|tarball):)"
)
_DIGEST_AT_END = re.compile(r"(?P<path>.*)@(?P<digest>sha(?:256|512):.*)", re.DOTALL)
# More than the image specification's grammar for ref.name, which tools do not keep to.
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+/-]{0,1023}")


_Name: TypeAlias = Literal[
    "docker", "containerd", "oci", "oci-archive", "docker-archive", "dir", "store"
]


@dataclass(frozen=True)
class Place:
    """Where an image is, read from `text`.

    `path` and `tag` (None, a name, or `@DIGEST`) belong to "oci" and the archives, `path` to "dir",
    `reference` to "docker", "containerd" and "store".
    """

    kind: _Name
    path: Path | None
    tag: str | None
    reference: Reference | None
    text: str


def parse_place(text: str, names: Literal["store", "containerd"] = "store") -> Place:
    """Read a place. The path of a layout or archive ends at its first colon, as for skopeo.

    `oci:DIR@sha256:HEX` chooses an image by digest. Everything without a transport is the name of
    an image, in the local store or where `names` says. Raises UsageError.
    """
    for name, kind in _KINDS.items():
        if kind.prefix and text.startswith(kind.prefix):
            return kind.read(name, text.removeprefix(kind.prefix), text)
    if _OTHER_TRANSPORTS.match(text):
        raise UsageError(f"{brief(text)} is no place that soci knows; {_help()}")
    if not text:
        raise UsageError(f"a place is missing; {_help()}")
    return _named(names, text, text)


def open_source(
    place: Place,
    store_root: Path,
    registries: Registries | None = None,
    containerd: Containerd | None = None,
) -> Source:
    """The place for reading; use it as a context manager. NotFoundError, InvalidDataError.

    `registries` say how registries are talked to, by default with Docker's credentials; `containerd` is
    the connection to take, by default one to the usual socket and namespace.
    """
    return _KINDS[place.kind].source(place, _Access(store_root, registries, containerd))


def open_target(
    place: Place,
    store_root: Path,
    names: Mapping[str, str] | None = None,
    registries: Registries | None = None,
    containerd: Containerd | None = None,
) -> Target:
    """The place for writing; use it as a context manager. UsageError, StorageError.

    `names` are the annotations that name the image where the place itself gives no tag, as
    `Source.names` tells them. `registries` and `containerd` as for `open_source`; mounting a blob of a
    neighbour needs both places opened with the same.
    """
    return _KINDS[place.kind].target(place, _Access(store_root, registries, containerd, names))


def local_store(root: Path, registries: Registries | None = None) -> Store:
    """The local store, which reads layers that it left in a registry from there."""
    from soci_cli.targets.store import Store

    def open_place(text: str) -> Source:
        return open_source(parse_place(text), root, registries)

    return Store(root, open_place)


def connect(
    address: str | None = None, namespace: str | None = None, timeout: float | None = None
) -> Containerd:
    """A connection to containerd, by default what CONTAINERD_ADDRESS and CONTAINERD_NAMESPACE say.

    UsageError when the packages for it are not installed.
    """
    from_environment = os.environ.get
    client: Containerd = _containerd().Containerd(
        address or from_environment("CONTAINERD_ADDRESS") or "/run/containerd/containerd.sock",
        namespace or from_environment("CONTAINERD_NAMESPACE") or "default",
        timeout,
    )
    return client


def _containerd() -> ModuleType:
    # grpc is an extra, and takes a while to import.
    try:
        from soci_cli.targets.containerd import place
    except ImportError as error:
        raise UsageError(
            f"containerd needs packages that are not installed ({error.name}); install them with: "
            "pip install 'soci-cli[containerd]'"
        ) from error
    return place


@dataclass(frozen=True)
class _Access:
    """What opening a place may need; see `open_target`."""

    root: Path
    registries: Registries | None
    containerd: Containerd | None
    names: Mapping[str, str] | None = None

    def get_registries(self) -> Registries:
        if self.registries is not None:
            return self.registries
        from soci_cli.targets.registry.options import RegistryOptions
        from soci_cli.targets.registry.registries import Registries

        return Registries(RegistryOptions(), os.environ)


@dataclass(frozen=True)
class _Kind:
    """One kind of place: how it is written, read and opened.

    `read` is given the name of the kind, the text after `prefix`, and all of it.
    """

    prefix: str
    form: str
    read: Callable[[_Name, str, str], Place]
    source: Callable[[Place, _Access], Source]
    target: Callable[[Place, _Access], Target]


def _help() -> str:
    *forms, last = (kind.form for kind in _KINDS.values())
    return f"use {', '.join(forms)} or {last}"


def _docker_source(place: Place, access: _Access) -> Source:
    return access.get_registries().source(_reference(place), place.text)


def _docker_target(place: Place, access: _Access) -> Target:
    return access.get_registries().target(_reference(place), place.text)


def _containerd_source(place: Place, access: _Access) -> Source:
    name = place.text.removeprefix(CONTAINERD)
    client = access.containerd or connect()
    source: Source = _containerd().ContainerdSource(client, name, place.text)
    return source


def _containerd_target(place: Place, access: _Access) -> Target:
    name = place.text.removeprefix(CONTAINERD)
    client = access.containerd or connect()
    target: Target = _containerd().ContainerdTarget(client, name, place.text)
    return target


def _layout_source(place: Place, access: _Access) -> Source:
    from soci_cli.targets.layout import Layout

    return Layout(_path(place), place.tag, place.text)


def _layout_target(place: Place, access: _Access) -> Target:
    from soci_cli.targets.layout import WritableLayout

    names = access.names if place.tag is None else None
    return WritableLayout(_path(place), place.tag, place.text, names=names)


def _archive_source(place: Place, access: _Access) -> Source:
    from soci_cli.targets.archive import Archive

    return Archive(_path(place), place.tag, place.text)


def _archive_target(place: Place, access: _Access) -> Target:
    from soci_cli.targets.archive import ArchiveTarget

    return ArchiveTarget(_path(place), place.tag, place.text, names=access.names)


def _docker_archive_source(place: Place, access: _Access) -> Source:
    from soci_cli.targets.docker_archive import DockerArchive

    return DockerArchive(_path(place), place.tag, place.text)


def _directory_source(place: Place, access: _Access) -> Source:
    from soci_cli.targets.directory import DirectoryImage

    return DirectoryImage(_path(place), place.text)


def _read_only(place: Place, access: _Access) -> Target:
    raise UsageError(
        f"{brief(place.text)} can be read only; write oci-archive:FILE, which `docker load` takes too, or "
        "oci:DIR"
    )


def _folder(kind: _Name, rest: str, text: str) -> Place:
    if not rest or "\0" in rest:
        raise UsageError(f"{brief(text)} has no path; {_help()}")
    return Place(kind, Path(rest), None, None, text)


def _store_target(place: Place, access: _Access) -> Target:
    return local_store(access.root, access.registries).open(_reference(place), place.text)


def _named(kind: _Name, rest: str, text: str) -> Place:
    return Place(kind, None, None, parse_reference(rest), text)


def _on_disk(kind: _Name, rest: str, text: str) -> Place:
    return Place(kind, *_path_and_tag(rest, text), None, text)


_KINDS: dict[_Name, _Kind] = {
    "docker": _Kind(DOCKER, "docker://IMAGE", _named, _docker_source, _docker_target),
    "containerd": _Kind(
        CONTAINERD, "containerd:IMAGE", _named, _containerd_source, _containerd_target
    ),
    "oci": _Kind("oci:", "oci:DIR[:TAG]", _on_disk, _layout_source, _layout_target),
    "oci-archive": _Kind(
        "oci-archive:", "oci-archive:FILE[:TAG]", _on_disk, _archive_source, _archive_target
    ),
    "docker-archive": _Kind(
        "docker-archive:",
        "docker-archive:FILE[:NAME] (to read)",
        _on_disk,
        _docker_archive_source,
        _read_only,
    ),
    "dir": _Kind("dir:", "dir:DIR (to read)", _folder, _directory_source, _read_only),
    "store": _Kind("", "an image's name", _named, _store_target, _store_target),
}


def _path_and_tag(rest: str, text: str) -> tuple[Path, str | None]:
    by_digest = _DIGEST_AT_END.fullmatch(rest)
    tag: str | None
    if by_digest and ":" not in by_digest["path"]:
        path = by_digest["path"]
        with explaining(brief(text)):
            tag = "@" + parse_digest(by_digest["digest"], UsageError)
    else:
        path, colon, name = rest.partition(":")
        tag = name if colon else None
        if tag is not None and not _TAG.fullmatch(tag):
            raise UsageError(f"{brief(text)}: {brief(repr(tag), 100)} is no tag; {_help()}")
    if not path or "\0" in path:
        raise UsageError(f"{brief(text)} has no path; {_help()}")
    return Path(path), tag


def _path(place: Place) -> Path:
    if place.path is None:
        raise UsageError(f"{brief(place.text)} has no path; {_help()}")
    return place.path


def _reference(place: Place) -> Reference:
    if place.reference is None:
        raise UsageError(f"{brief(place.text)} names no image; {_help()}")
    return place.reference


def place_of_file(path: Path, tag: str | None, text: str) -> Place:
    """A file or folder, whose kind is looked up: of OCI, or what docker or skopeo wrote."""
    if path.is_dir():
        is_layout = (path / "oci-layout").exists() or not (path / "manifest.json").exists()
        return Place("oci" if is_layout else "dir", path, tag, None, text)
    from soci_cli.targets.docker_archive import is_docker_archive

    kind: _Name = "docker-archive" if is_docker_archive(path, text) else "oci-archive"
    return Place(kind, path, tag, None, text)
