"""What a place said of an image, kept so that another process can open the same image without asking again.

A tag may lead elsewhere by then, and the registry may be away: layers that are in the cache are read all
the same.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from soci_cli.oci import Descriptor, encoded_of
from soci_cli.oci.digest import new_hash
from soci_cli.targets import BlobReader, Source

_MAX_DOCUMENT = 16 << 20


@dataclass(frozen=True)
class Answers:
    """What was asked while an image was opened, as JSON: descriptors, by what they were asked by.

    `root` is what the reference means, `found` are manifests by digest, `referrers` those of a manifest by
    its digest and their type, `documents` the texts of manifests and configs by digest.
    """

    root: str = ""
    found: Mapping[str, str] = field(default_factory=dict)
    referrers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    documents: Mapping[str, str] = field(default_factory=dict)


class RememberingSource(Source):
    """A place, and what it said. What is not known is asked of it; it is not closed with this."""

    def __init__(
        self,
        source: Source,
        known: Answers | None = None,
        files: Mapping[str, Callable[[], BlobReader]] | None = None,
    ) -> None:
        """`known` are the answers to begin with, `files` open blobs that are here, by digest."""
        super().__init__(source.name)
        known = known or Answers()
        self.folder = source.folder
        self.repository = source.repository
        self.store = source.store
        self._source = source
        self._root = known.root
        self._found = dict(known.found)
        self._referrers = dict(known.referrers)
        self._documents = dict(known.documents)
        self._files = dict(files or {})

    @property
    def answers(self) -> Answers:
        """What is known by now."""
        return Answers(self._root, dict(self._found), dict(self._referrers), dict(self._documents))

    def resolve(self) -> Descriptor:
        """See `Source.resolve`."""
        if not self._root:
            self._root = _text(self._source.resolve())
        return _descriptor(self._root)

    def find(self, digest: str) -> Descriptor:
        """See `Source.find`."""
        if digest not in self._found:
            self._found[digest] = _text(self._source.find(digest))
        return _descriptor(self._found[digest])

    def referrers(self, subject: Descriptor, artifact_type: str) -> tuple[Descriptor, ...]:
        """See `Source.referrers`."""
        key = f"{subject.digest} {artifact_type}"
        if key not in self._referrers:
            found = self._source.referrers(subject, artifact_type)
            self._referrers[key] = tuple(map(_text, found))
        return tuple(map(_descriptor, self._referrers[key]))

    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> BlobReader:
        """See `Source.fetch`."""
        is_whole = not offset and length is None
        if is_whole and descriptor.digest in self._files:
            return self._files[descriptor.digest]()
        if not is_whole or not _is_document(descriptor):
            return self._source.fetch(descriptor, offset, length)
        text = self._documents.get(descriptor.digest)
        if text is not None:
            return Bytes(text.encode("latin-1"))
        data = bytearray()
        with self._source.fetch(descriptor) as stream:
            while len(data) <= descriptor.size and (piece := stream.read(1 << 16)):
                data += piece
        digest = new_hash(descriptor.digest)
        digest.update(data)
        if digest.hexdigest() == encoded_of(descriptor.digest):
            self._documents[descriptor.digest] = data.decode("latin-1")
        return Bytes(data)

    def fetch_while(
        self,
        check: Callable[[], None],
        descriptor: Descriptor,
        offset: int = 0,
        length: int | None = None,
    ) -> BlobReader:
        """See `Source.fetch_while`."""
        return self._source.fetch_while(check, descriptor, offset, length)

    def exists(self, descriptor: Descriptor) -> bool:
        """See `Source.exists`."""
        return self._source.exists(descriptor)

    def pin(self, *manifests: Descriptor) -> None:
        """See `Source.pin`."""
        self._source.pin(*manifests)

    def names(self) -> dict[str, str]:
        """See `Source.names`."""
        return self._source.names()

    def origins(self, descriptor: Descriptor) -> Sequence[Source]:
        """See `Source.origins`."""
        return self._source.origins(descriptor)


class Bytes(io.BytesIO):
    """Bytes in memory as a stream. Implements `BlobReader`."""

    skipped = 0

    def __enter__(self) -> Bytes:
        return self


def _is_document(descriptor: Descriptor) -> bool:
    return "json" in descriptor.media_type and descriptor.size <= _MAX_DOCUMENT


def _text(descriptor: Descriptor) -> str:
    return json.dumps(descriptor.to_json())


def _descriptor(text: str) -> Descriptor:
    return Descriptor.from_json(json.loads(text), "a descriptor")
