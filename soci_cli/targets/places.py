"""Places as users write them: a registry, containerd, an OCI layout or archive, or an image's name.

`docker://HOST/REPO[:TAG|@DIGEST]`, `containerd:IMAGE`, `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`; anything
else is the name of an image in the local store or, where the caller says so, in containerd.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal

from soci_cli.errors import InvalidDataError, UsageError
from soci_cli.oci.digest import parse_digest
from soci_cli.oci.references import Reference, parse_reference
from soci_cli.targets.archive import Archive, ArchiveTarget
from soci_cli.targets.layout import Layout, WritableLayout
from soci_cli.targets.protocol import Source, Target
from soci_cli.targets.store import Store
from soci_cli.text import brief

if TYPE_CHECKING:
    from soci_cli.targets.containerd.client import Containerd
    from soci_cli.targets.registry.registries import Registries

DOCKER = "docker://"
CONTAINERD = "containerd:"
_HELP = (
    "use docker://IMAGE, containerd:IMAGE, oci:DIR[:TAG], oci-archive:FILE[:TAG] or an image's name"
)
_OTHER_TRANSPORTS = re.compile(
    r"(?:[A-Za-z][A-Za-z0-9+.-]*://"
    r"|(?:containers-storage|dir|docker-archive|docker-daemon|oci-dir|oci-layout|ostree|sif|tarball):)"
)
_DIGEST_AT_END = re.compile(r"(?P<path>.*)@(?P<digest>sha(?:256|512):.*)", re.DOTALL)
# More than the image specification's grammar for ref.name, which tools do not keep to.
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+/-]{0,1023}")


@dataclass(frozen=True)
class Place:
    """Where an image is, read from `text`.

    `path` and `tag` (None, a name, or `@DIGEST`) belong to "oci" and "oci-archive", `reference` to
    "docker", "containerd" and "store".
    """

    kind: Literal["docker", "containerd", "oci", "oci-archive", "store"]
    path: Path | None
    tag: str | None
    reference: Reference | None
    text: str


def parse_place(text: str, names: Literal["store", "containerd"] = "store") -> Place:
    """Read a place. The path of a layout or archive ends at its first colon, as for skopeo.

    `oci:DIR@sha256:HEX` chooses an image by digest. Everything without a transport is the name of
    an image, in the local store or where `names` says. Raises UsageError.
    """
    transport, colon, rest = text.partition(":")
    if colon and transport == "oci":
        return _on_disk("oci", rest, text)
    if colon and transport == "oci-archive":
        return _on_disk("oci-archive", rest, text)
    if text.startswith(DOCKER):
        return Place("docker", None, None, parse_reference(text.removeprefix(DOCKER)), text)
    if text.startswith(CONTAINERD):
        return Place("containerd", None, None, parse_reference(text.removeprefix(CONTAINERD)), text)
    if _OTHER_TRANSPORTS.match(text):
        raise UsageError(f"{brief(text)} is no place that soci knows; {_HELP}")
    if not text:
        raise UsageError(f"a place is missing; {_HELP}")
    return Place(names, None, None, parse_reference(text), text)


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
    if place.reference is not None:
        if place.kind == "docker":
            return (registries or _default_registries()).source(place.reference, place.text)
        if place.kind == "containerd":
            name = place.text.removeprefix(CONTAINERD)
            source: Source = _containerd().ContainerdSource(
                containerd or connect(), name, place.text
            )
            return source
        return local_store(store_root, registries).open(place.reference, place.text)
    path = _path(place)
    if place.kind == "oci":
        return Layout(path, place.tag, place.text)
    return Archive(path, place.tag, place.text)


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
    if place.reference is not None:
        if place.kind == "docker":
            return (registries or _default_registries()).target(place.reference, place.text)
        if place.kind == "containerd":
            name = place.text.removeprefix(CONTAINERD)
            target: Target = _containerd().ContainerdTarget(
                containerd or connect(), name, place.text
            )
            return target
        return local_store(store_root, registries).open(place.reference, place.text)
    path = _path(place)
    if place.kind == "oci":
        unnamed = names if place.tag is None else None
        return WritableLayout(path, place.tag, place.text, names=unnamed)
    return ArchiveTarget(path, place.tag, place.text, names=names)


def local_store(root: Path, registries: Registries | None = None) -> Store:
    """The local store, which reads layers that it left in a registry from there."""

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


def _default_registries() -> Registries:
    from soci_cli.targets.registry.options import RegistryOptions
    from soci_cli.targets.registry.registries import Registries

    return Registries(RegistryOptions(), os.environ)


def _on_disk(kind: Literal["oci", "oci-archive"], rest: str, text: str) -> Place:
    by_digest = _DIGEST_AT_END.fullmatch(rest)
    tag: str | None
    if by_digest and ":" not in by_digest["path"]:
        path = by_digest["path"]
        tag = "@" + _digest(by_digest["digest"], text)
    else:
        path, colon, name = rest.partition(":")
        tag = name if colon else None
        if tag is not None and not _TAG.fullmatch(tag):
            raise UsageError(f"{brief(text)}: {brief(repr(tag), 100)} is no tag; {_HELP}")
    if not path or "\0" in path:
        raise UsageError(f"{brief(text)} has no path; {_HELP}")
    return Place(kind, Path(path), tag, None, text)


def _digest(digest: str, text: str) -> str:
    try:
        return parse_digest(digest)
    except InvalidDataError as error:
        raise UsageError(f"{brief(text)}: {error}") from error


def _path(place: Place) -> Path:
    if place.path is None:
        raise UsageError(f"{brief(place.text)} has no path; {_HELP}")
    return place.path
