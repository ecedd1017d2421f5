"""Names of repositories and tags, and where an entry of index.json belongs."""

from __future__ import annotations

import re
from pathlib import Path

from soci_cli.errors import UsageError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.references import Reference, parse_reference
from soci_cli.targets._index_json import CONTAINERD_NAME, REF_NAME

REPOSITORY = "dev.soci.registry.repository"
"""The annotation that says the repository where the entry's name alone would be read otherwise."""

_HOST = "localhost/"
_NO_NAME = "images"


def is_repository(name: str) -> bool:
    """Whether it is a repository name of the distribution spec ("Pulling manifests")."""
    return _parse(f"{_HOST}{name}") == Reference("localhost", name, "latest")


def is_tag(tag: str) -> bool:
    """Whether it is a tag of the distribution spec ("Pulling manifests")."""
    return _parse(f"{_HOST}x:{tag}") == Reference("localhost", "x", tag)


def repository_of_folder(root: Path) -> str:
    """The repository of images that have a tag and no name, after the name of the folder."""
    name = re.sub(r"[^a-z0-9]+", "-", root.resolve().name.lower()).strip("-")
    return name if is_repository(name) else _NO_NAME


def entry_name(repository: str, reference: str) -> str:
    """How an entry is called: REPO:TAG, or REPO@DIGEST for a manifest without a tag."""
    return f"{repository}{'@' if ':' in reference else ':'}{reference}"


def entry_annotations(repository: str, reference: str) -> dict[str, str]:
    """The annotations of a new entry, from which `place_of_entry` tells where it belongs."""
    name = entry_name(repository, reference)
    tag = None if ":" in reference else reference
    if _place(name, "") == (repository, tag):
        return {REF_NAME: name}
    return {REF_NAME: name, REPOSITORY: repository}


def place_of_entry(entry: Descriptor, default: str) -> tuple[str, str]:
    """Repository, and tag or digest, of an entry of index.json.

    A tag alone belongs to the repository `default`; of a full image name the registry is dropped.
    """
    name = entry.annotations.get(REF_NAME, "")
    said = entry.annotations.get(REPOSITORY, "")
    if is_repository(said) and name.startswith(said):
        tag = name[len(said) + 1 :] if name[len(said) :].startswith(":") else ""
        return said, tag if is_tag(tag) else entry.digest
    full = _place(entry.annotations.get(CONTAINERD_NAME, ""), "")
    repository, found = full if full and full[0] else _place(name, default) or (default, None)
    return repository, found or entry.digest


def _place(name: str, default: str) -> tuple[str, str | None] | None:
    """Repository and tag of a name of any kind; None for what is no name."""
    if is_tag(name):
        return default, name
    first, slash, _ = name.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        reference = _parse(name)
        return (reference.repository, reference.tag) if reference else None
    bare, _, digest = name.partition("@")
    repository, _, tag = bare.partition(":")
    if not is_repository(repository) or (tag and not is_tag(tag)):
        return None
    return repository, tag or (None if digest else "latest")


def _parse(text: str) -> Reference | None:
    try:
        return parse_reference(text)
    except UsageError:
        return None
