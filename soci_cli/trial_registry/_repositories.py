"""The repositories of the registry, kept in one OCI image layout.

Which blobs and manifests a repository has is known in memory. It is found again at the start by
following index.json, where every tag has an entry `REPO:TAG`, and every manifest that no tag leads
to an entry `REPO@DIGEST`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from soci_cli.errors import InvalidDataError
from soci_cli.new_file import unlink_quietly
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import encoded_of, new_hash
from soci_cli.targets._disk import disk_errors
from soci_cli.targets._folder import LayoutFolder
from soci_cli.targets._index_json import CONTAINERD_NAME, REF_NAME, IndexJson, encode_document
from soci_cli.trial_registry._http import Refused
from soci_cli.trial_registry._manifests import MANIFEST_LIMIT, ManifestFacts, read_facts
from soci_cli.trial_registry._names import (
    REPOSITORY,
    entry_annotations,
    place_of_entry,
    repository_of_folder,
)

_Key = tuple[str, str]
"""Repository, and tag or digest: what an entry of index.json is for."""


@dataclass
class _Repository:
    blobs: set[str] = field(default_factory=set)
    manifests: dict[str, ManifestFacts] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


class Repositories:
    """All repositories of a layout. All methods may be called from several threads."""

    def __init__(self, folder: LayoutFolder) -> None:
        """Reads what is in the layout, or starts a new one. Raises StorageError and InvalidDataError.

        What is damaged in the layout is not served, and stays as it is.
        """
        self._folder = folder
        self._lock = threading.Lock()
        self._repositories: dict[str, _Repository] = {}
        self._default = repository_of_folder(folder.root)
        folder.check_usable()
        folder.make_folders()
        folder.clean_leftovers()
        index = folder.read_index_or_empty()
        if not (folder.root / "index.json").exists():
            with folder.locked():
                folder.write_index(encode_document(index, []))
        for entry in index.entries:
            name, reference = place_of_entry(entry, self._default)
            repository = self._repositories.setdefault(name, _Repository())
            if self._read_graph(repository, entry) and reference != entry.digest:
                repository.tags.setdefault(reference, entry.digest)

    def names(self) -> list[str]:
        """All repositories that hold something, in order."""
        with self._lock:
            return sorted(
                name
                for name, repository in self._repositories.items()
                if repository.blobs or repository.manifests
            )

    def tags(self, name: str) -> list[str] | None:
        """The tags of a repository, in order; None when there is no such repository."""
        with self._lock:
            repository = self._repositories.get(name)
            return None if repository is None else sorted(repository.tags)

    def has_blob(self, name: str, digest: str) -> bool:
        """Whether the repository was given this blob."""
        with self._lock:
            repository = self._repositories.get(name)
            return repository is not None and digest in repository.blobs

    def manifest(self, name: str, reference: str) -> ManifestFacts | None:
        """The manifest with this tag or digest."""
        with self._lock:
            repository = self._repositories.get(name)
            if repository is None:
                return None
            return repository.manifests.get(repository.tags.get(reference, reference))

    def referrers(self, name: str, subject: str) -> list[ManifestFacts]:
        """The manifests whose subject is this digest, in the order of their digests."""
        with self._lock:
            repository = self._repositories.get(name, _Repository())
            found = [facts for facts in repository.manifests.values() if facts.subject == subject]
        return sorted(found, key=lambda facts: facts.digest)

    def open_file(self, digest: str) -> tuple[int, int] | None:
        """An open file descriptor and the size of a blob or manifest; None when it is not there."""
        try:
            opened = self._folder.open_blob(digest)
        except InvalidDataError:
            return None
        return None if opened is None else (opened[0], opened[1].st_size)

    def add_blob(self, name: str, digest: str, aside: Path) -> None:
        """Give a repository a blob: a finished file, whose digest was checked."""
        with self._lock:
            self._place(aside, digest)
            self._repositories.setdefault(name, _Repository()).blobs.add(digest)

    def mount_blob(self, name: str, digest: str, origin: str) -> bool:
        """Give a repository a blob that another one has; whether that has it."""
        with self._lock:
            source = self._repositories.get(origin)
            if source is None or digest not in source.blobs:
                return False
            self._repositories.setdefault(name, _Repository()).blobs.add(digest)
            return True

    def remove_blob(self, name: str, digest: str) -> bool:
        """Take a blob from a repository; whether it had it."""
        with self._lock:
            repository = self._repositories.get(name)
            if repository is None or digest not in repository.blobs:
                return False
            repository.blobs.discard(digest)
            self._drop_file(digest)
            return True

    def put_manifest(
        self,
        name: str,
        tag: str | None,
        facts: ManifestFacts,
        aside: Path,
        allows: Callable[[str | None], bool],
    ) -> None:
        """Give a repository a manifest, and a tag to it, when `allows` the digest it has so far.

        Refused when that does not allow it, or when something is missing that the manifest needs.
        """
        with self._lock:
            repository = self._repositories.get(name, _Repository())
            new = facts.digest not in repository.manifests
            before = None if new else facts.digest
            if tag is not None:
                before = repository.tags.get(tag)
            if not allows(before):
                raise Refused(
                    412, "DENIED", f"{tag or facts.digest} is {before or 'not there'} by now"
                )
            _check_complete(repository, facts)
            self._place(aside, facts.digest)
            try:
                with self._changing(name) as changed:
                    changed.manifests[facts.digest] = facts
                    if tag is not None:
                        changed.tags[tag] = facts.digest
            except BaseException:
                if new:
                    self._drop_file(facts.digest)
                raise

    def remove_tag(self, name: str, tag: str) -> bool:
        """Take a tag away, not its manifest; whether it was there."""
        with self._lock:
            if tag not in self._repositories.get(name, _Repository()).tags:
                return False
            with self._changing(name) as changed:
                del changed.tags[tag]
            return True

    def remove_manifest(self, name: str, digest: str) -> bool:
        """Take a manifest away with all its tags; whether it was there."""
        with self._lock:
            if digest not in self._repositories.get(name, _Repository()).manifests:
                return False
            with self._changing(name) as changed:
                del changed.manifests[digest]
                changed.tags = {tag: to for tag, to in changed.tags.items() if to != digest}
            self._drop_file(digest)
            return True

    @contextmanager
    def _changing(self, name: str) -> Iterator[_Repository]:
        """A copy of a repository to change; it counts when index.json says the same."""
        old = self._repositories.get(name, _Repository())
        new = _Repository(set(old.blobs), dict(old.manifests), dict(old.tags))
        yield new
        before, after = _entries(old), _entries(new)
        changes: dict[_Key, Descriptor | None] = {
            (name, reference): after.get(reference)
            for reference in before.keys() | after.keys()
            if before.get(reference) != after.get(reference)
        }
        for digest in old.manifests.keys() - new.manifests.keys():
            changes[name, digest] = None
        if changes:
            with self._folder.locked():
                index = self._folder.read_index_or_empty()
                self._folder.write_index(_edited(index, changes, self._default))
        self._repositories[name] = new

    def _place(self, aside: Path, digest: str) -> None:
        path = self._folder.blob_path(digest)
        self._folder.make_folders(digest)
        with disk_errors("write", path):
            self._folder.place_blob(aside, digest)

    def _drop_file(self, digest: str) -> None:
        """Remove the file of a blob or manifest that no repository has."""
        if not any(
            digest in repository.blobs or digest in repository.manifests
            for repository in self._repositories.values()
        ):
            unlink_quietly(self._folder.blob_path(digest))

    def _read_graph(self, repository: _Repository, root: Descriptor) -> bool:
        """Take in a manifest of the layout with all that it names; whether it can be read."""
        todo = [(root.digest, root.media_type)]
        while todo:
            digest, media_type = todo.pop()
            if digest in repository.manifests:
                continue
            facts = self._read_manifest(digest, media_type)
            if facts is None:
                if digest != root.digest and self._has_file(digest):
                    repository.blobs.add(digest)
                continue
            repository.manifests[digest] = facts
            repository.blobs |= {blob for blob in facts.blobs if self._has_file(blob)}
            todo += [(child, "") for child in facts.children]
        return root.digest in repository.manifests

    def _has_file(self, digest: str) -> bool:
        opened = self.open_file(digest)
        if opened is None:
            return False
        os.close(opened[0])
        return True

    def _read_manifest(self, digest: str, media_type: str) -> ManifestFacts | None:
        """The facts of a manifest in the layout; None for anything else."""
        opened = self.open_file(digest)
        if opened is None:
            return None
        with os.fdopen(opened[0], "rb") as file, disk_errors("read", self._folder.root):
            data = file.read(MANIFEST_LIMIT + 1)
        content = new_hash(digest)
        content.update(data)
        if content.hexdigest() != encoded_of(digest):
            return None
        try:
            return read_facts(data, digest, media_type)
        except InvalidDataError:
            return None


def _check_complete(repository: _Repository, facts: ManifestFacts) -> None:
    """Refused with MANIFEST_BLOB_UNKNOWN unless all that the manifest names is there."""
    missing = facts.blobs - repository.blobs
    missing |= facts.children - repository.manifests.keys() - repository.blobs
    if missing:
        raise Refused(
            404,
            "MANIFEST_BLOB_UNKNOWN",
            f"the repository lacks {len(missing)} that the manifest names, such as {min(missing)}",
        )


def _entries(repository: _Repository) -> dict[str, Descriptor]:
    """What index.json must say of a repository, by tag or digest.

    A manifest has an entry by digest when no tag means it and no index holds it, or when it has a
    subject: layouts are searched for referrers in index.json alone.
    """
    manifests = repository.manifests
    tagged = set(repository.tags.values())
    held = {child for facts in manifests.values() for child in facts.children}
    found = {tag: manifests[digest].descriptor for tag, digest in repository.tags.items()}
    for digest, facts in manifests.items():
        if digest not in tagged and (digest not in held or facts.subject is not None):
            found[digest] = facts.descriptor
    return found


def _edited(index: IndexJson, changes: dict[_Key, Descriptor | None], default: str) -> bytes:
    """index.json with these entries changed, or removed for None; all others stay as they are.

    An entry that is replaced keeps its position and its names.
    """
    left = dict(changes)
    manifests = []
    for entry, kept in zip(index.entries, index.document.get("manifests") or (), strict=True):
        key = place_of_entry(entry, default)
        if key not in changes:
            manifests.append(kept)
            continue
        descriptor = left.pop(key, None)
        if descriptor is not None:
            names = {
                name: text
                for name, text in entry.annotations.items()
                if name in (REF_NAME, CONTAINERD_NAME, REPOSITORY)
            }
            manifests.append(_named(descriptor, names))
    for key, descriptor in left.items():
        if descriptor is not None:
            manifests.append(_named(descriptor, entry_annotations(*key)))
    return encode_document(index, manifests)


def _named(descriptor: Descriptor, names: dict[str, str]) -> dict[str, object]:
    return replace(descriptor, annotations=names).to_json()
