"""An image in a registry as a place: `docker://HOST/REPO[:TAG|@DIGEST]`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from soci_cli.errors import (
    IntegrityError,
    InvalidDataError,
    NotFoundError,
    RegistryError,
    SociError,
    UsageError,
    errors_at,
)
from soci_cli.oci.canonical import loads
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import algorithm_of, digest_of, encoded_of, new_hash
from soci_cli.oci.manifest import parse_index, parse_manifest
from soci_cli.oci.media_types import (
    DOCKER_MANIFEST,
    DOCKER_MANIFEST_LIST,
    DOCKER_MANIFEST_SCHEMA1,
    DOCKER_MANIFEST_SCHEMA1_SIGNED,
    OCI_INDEX,
    OCI_MANIFEST,
    is_index,
    is_manifest,
)
from soci_cli.oci.references import Reference
from soci_cli.parallel import no_check
from soci_cli.targets._disk import MemoryReader
from soci_cli.targets._index_json import CONTAINERD_NAME, REF_NAME
from soci_cli.targets.blobs import BlobReader, BytesLike, ContentCheck, Writer, check_range
from soci_cli.targets.protocol import Source, Target, media_type_of
from soci_cli.targets.registry.client import Client
from soci_cli.targets.registry.download import BlobStream
from soci_cli.targets.registry.messages import redacted
from soci_cli.targets.registry.referrers import LIMIT, add_to_fallback, list_referrers
from soci_cli.targets.registry.registries import Registries as Registries
from soci_cli.targets.registry.repository import Repository
from soci_cli.targets.registry.request import Answer
from soci_cli.targets.registry.retry import Attempts
from soci_cli.targets.registry.upload import BlobUpload, OpenedUpload, opened_upload
from soci_cli.text import brief

_ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_MANIFEST_LIST, DOCKER_MANIFEST))
_SCHEMA1 = (DOCKER_MANIFEST_SCHEMA1, DOCKER_MANIFEST_SCHEMA1_SIGNED)
_KEPT = 64 << 20
_BLOB_UNKNOWN = frozenset({"BLOB_UNKNOWN", "MANIFEST_BLOB_UNKNOWN"})


class RegistrySource(Source):
    """An image in a registry that is read.

    What the tag means is asked once, so that one command works on one image even when the tag moves.
    """

    repository: Repository
    _written = False

    def __init__(self, client: Client, reference: Reference, name: str) -> None:
        super().__init__(name)
        self._client = client
        self._reference = reference
        self.repository = Repository(client, reference, self._written)
        self._resolved: Descriptor | None = None
        self._manifests: dict[str, tuple[str, bytes]] = {}
        self._mutex = threading.RLock()

    @property
    def reference(self) -> Reference:
        """The image's full reference."""
        return self._reference

    def resolve(self) -> Descriptor:
        """See `Source.resolve`. A reference with a digest means that, whatever its tag says."""
        with self._mutex:
            if self._resolved is None:
                wanted = self._reference.digest or self._reference.tag or "latest"
                self._resolved = self._get_manifest(wanted)
            return self._resolved

    def find(self, digest: str) -> Descriptor:
        """See `Source.find`: any manifest of the repository."""
        known = self._manifests.get(digest)
        if known is not None:
            return Descriptor(known[0], digest, len(known[1]))
        return self._get_manifest(digest)

    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> BlobReader:
        """See `Source.fetch`. Manifests are read whole, verified, and kept."""
        return self.fetch_while(no_check, descriptor, offset, length)

    def fetch_while(
        self,
        check: Callable[[], None],
        descriptor: Descriptor,
        offset: int = 0,
        length: int | None = None,
    ) -> BlobReader:
        """See `Source.fetch_while`."""
        count = check_range(descriptor, offset, length)
        if self._is_manifest(descriptor):
            data = self._manifest(descriptor)
            return MemoryReader(data[offset : offset + count])
        return BlobStream(self.repository, descriptor, offset, count, check)

    def exists(self, descriptor: Descriptor) -> bool:
        """See `Source.exists`."""
        if not self._is_manifest(descriptor):
            return self.repository.has_blob(descriptor)
        if descriptor.digest in self._manifests:
            return True
        try:
            accept = f"{descriptor.media_type}, {_ACCEPT}"
            answer = self._client.call(
                self.repository.reading(
                    "resolve", "manifests", descriptor.digest, method="HEAD", accept=accept
                )
            )
        except NotFoundError:
            return False
        answer.finish()
        return True

    def names(self) -> dict[str, str]:
        """See `Source.names`: the tag, and the whole name as containerd's tools keep it."""
        if not self._reference.tag:
            return {}
        named = Reference(self._reference.domain, self._reference.repository, self._reference.tag)
        return {REF_NAME: self._reference.tag, CONTAINERD_NAME: str(named)}

    def referrers(self, subject: Descriptor, artifact_type: str) -> tuple[Descriptor, ...]:
        """See `Source.referrers`."""
        with errors_at(place=self.name):
            return list_referrers(
                self.repository, subject.digest, artifact_type, self._artifact_type
            )

    def _artifact_type(self, descriptor: Descriptor) -> str:
        """The artifact type of a manifest; empty for one that cannot be read."""
        with suppress(SociError):
            manifest = parse_manifest(self._manifest(descriptor), "", descriptor.media_type)
            return manifest.artifact_type or manifest.config.media_type
        return ""

    def _is_manifest(self, descriptor: Descriptor) -> bool:
        kind = descriptor.media_type
        return is_index(kind) or is_manifest(kind) or descriptor.digest in self._manifests

    def _manifest(self, descriptor: Descriptor) -> bytes:
        known = self._manifests.get(descriptor.digest)
        if known is None:
            self._get_manifest(descriptor.digest)
            known = self._manifests[descriptor.digest]
        if len(known[1]) != descriptor.size:
            raise IntegrityError(
                f"manifest {descriptor.digest} in {self._name} has {len(known[1])} bytes, not the "
                f"{descriptor.size} of its descriptor",
                place=self._name,
            )
        return known[1]

    def _get_manifest(self, wanted: str) -> Descriptor:
        """Gets a manifest by tag or digest, and keeps it. A mirror with a wrong one is passed over."""

        def use(data: bytes, answer: Answer) -> Descriptor:
            descriptor = self._checked(wanted, data, answer)
            self._keep(descriptor.digest, descriptor.media_type, data)
            return descriptor

        request = self.repository.reading("resolve", "manifests", wanted, accept=_ACCEPT)
        with errors_at(place=self.name):
            return self._client.document(request, LIMIT, "the manifest", use)

    def _checked(self, wanted: str, data: bytes, answer: Answer) -> Descriptor:
        """What a manifest that was asked for by tag or digest is, as far as it can be checked."""
        what = f"the manifest from {redacted(answer.url)}"
        media_type = _media_type(data, answer.headers.get("Content-Type", ""), what)
        told = answer.headers.get("Docker-Content-Digest", "")
        by_digest = ":" in wanted
        digest = wanted if by_digest else digest_of(data)
        if not by_digest and told.startswith("sha512:"):
            digest = told
        if _digest_like(digest, data) != digest:
            raise IntegrityError(f"{what} does not have the digest {digest}; it was changed")
        comparable = media_type not in _SCHEMA1 and told.startswith(algorithm_of(digest))
        if comparable and told != digest:
            raise IntegrityError(
                f"{what} does not have the digest that the registry gives it: {brief(told)}"
            )
        return Descriptor(media_type, digest, len(data))

    def _keep(self, digest: str, media_type: str, data: bytes) -> None:
        with self._mutex:
            self._manifests[digest] = media_type, data
            if sum(len(kept) for _, kept in self._manifests.values()) > _KEPT:
                raise InvalidDataError(
                    f"the manifests of the image in {self._name} take more than {_KEPT} bytes",
                    place=self._name,
                )


class RegistryTarget(RegistrySource, Target):
    """An image in a registry that is written, and read back.

    Blobs and manifests appear under their digests as they are pushed; the tag moves at the end. What a
    command that fails has pushed is left to the registry's garbage collection.
    """

    _written = True

    def __init__(self, client: Client, reference: Reference, name: str) -> None:
        super().__init__(client, reference, name)
        self._there: set[str] = set()
        self._opened: dict[str, OpenedUpload] = {}
        self._uploads: set[BlobUpload] = set()

    def exists(self, descriptor: Descriptor) -> bool:
        """See `Source.exists`; what was found or written once is not asked for again."""
        if descriptor.digest in self._there or super().exists(descriptor):
            self._there.add(descriptor.digest)
            return True
        return False

    def open_writer(self, descriptor: Descriptor) -> Writer:
        """See `Target.open_writer`."""
        self._check_open()
        if is_index(descriptor.media_type) or is_manifest(descriptor.media_type):
            return _ManifestWriter(self, descriptor)
        opened = self._opened.pop(descriptor.digest, None)
        upload = BlobUpload(self.repository, descriptor, self._name, opened)
        with self._mutex:
            self._uploads = {one for one in self._uploads if not one.ended} | {upload}
        return upload

    def push(self, descriptor: Descriptor, data: bytes) -> None:
        """See `Target.push`. A manifest with a subject is listed among the referrers of that."""
        if not (is_index(descriptor.media_type) or is_manifest(descriptor.media_type)):
            super().push(descriptor, data)
            return
        subject = _subject(descriptor, data)
        if subject is None and self.exists(descriptor):
            self._keep(descriptor.digest, descriptor.media_type, data)
            return
        processed = self._put_manifest(descriptor, data, descriptor.digest)
        self._there.add(descriptor.digest)
        if subject is not None and processed != subject.digest:
            add_to_fallback(self.repository, subject.digest, _as_referrer(descriptor, data))

    def refer(self, referrer: Descriptor) -> bool:
        """See `Target.refer`: `push` has done it."""
        return True

    def keep(self, manifest: Descriptor) -> None:
        """See `Target.keep`: a tag that is made of its digest."""
        name = f"{algorithm_of(manifest.digest)}-{encoded_of(manifest.digest)}.soci"
        if not self._means(name, manifest.digest):
            self._put_manifest(manifest, self._manifest(manifest), name)

    def mount(self, descriptor: Descriptor, source: Source) -> bool:
        """See `Target.mount`: a blob of another repository of this registry."""
        places = (source, *source.origins(descriptor))
        other = next(filter(None, map(self._neighbour, places)), None)
        if other is None:
            return False
        try:
            answer = self._client.call(
                self.repository.writing(
                    "POST",
                    self.repository.path("blobs", "uploads/"),
                    ok=(201, 202),
                    query=[("mount", descriptor.digest), ("from", other)],
                    more_scope=f"repository:{other}:pull",
                )
            )
        except NotFoundError:
            return False
        except RegistryError as error:
            if error.status is None:
                raise
            return False  # some refuse what they cannot mount; sending it may work
        answer.finish()
        if answer.status == 201:
            self._there.add(descriptor.digest)
            return True
        # An ordinary upload was opened instead: the blob can be sent there.
        if opened := opened_upload(answer):
            self._opened[descriptor.digest] = opened
        return False

    def _neighbour(self, place: Source) -> str | None:
        """The repository of a place when it is another one of this registry."""
        other = place.repository
        if other is None or other.client is not self._client or other.name == self.repository.name:
            return None
        return other.name

    def before(self) -> Source | None:
        """See `Target.before`: what the tag means now."""
        return _Before(self._client, self._reference, self._name)

    def tag(self, descriptor: Descriptor) -> None:
        """See `Target.tag`. UsageError when the reference has another digest than the image."""
        if self._reference.digest not in (None, descriptor.digest):
            raise UsageError(
                f"{self._name} cannot name {descriptor.digest}; choose a name with a tag",
                place=self._name,
            )
        if self._reference.tag and not self._means(self._reference.tag, descriptor.digest):
            data = self._manifest(descriptor)
            self._put_manifest(descriptor, data, self._reference.tag)
        with self._mutex:
            self._resolved = descriptor

    def _means(self, tag: str, digest: str) -> bool:
        """Whether a tag has a digest already: one that must not change takes no second writing either."""
        request = self.repository.reading(
            "resolve", "manifests", tag, method="HEAD", accept=_ACCEPT
        )
        try:
            answer = self._client.call(request)
        except RegistryError as error:
            if error.status is None:
                raise
            return False
        answer.finish()
        return answer.headers.get("Docker-Content-Digest") == digest

    def close(self) -> None:
        """End the uploads that are still open."""
        super().close()
        with self._mutex:
            uploads = list(self._uploads)
            self._uploads.clear()
        for upload in uploads:
            upload.abort()

    def _put_manifest(self, descriptor: Descriptor, data: bytes, name: str) -> str | None:
        """Sends a manifest's very bytes; the subject that the registry took notice of, if any."""
        request = self.repository.writing(
            "PUT",
            self.repository.path("manifests", name),
            ok=(201, 200, 202),
            headers={"Content-Type": descriptor.media_type},
            body=data,
        )

        def attempt() -> Answer:
            try:
                return self._client.call(request, attempts=1)
            except RegistryError as error:
                # While another client pushes the same blob, registries may not see it for a moment.
                error.transient |= not _BLOB_UNKNOWN.isdisjoint(error.codes)
                error.media_types = _types_in(data)
                raise

        with errors_at(place=self.name):
            answer = Attempts(self._client.options.retries).run(attempt)
        answer.finish()
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise RegistryError(
                f"PUT {redacted(answer.url)}: the answer is an HTML page; is this a registry?"
            )
        told = answer.headers.get("Docker-Content-Digest")
        if told and told.startswith(algorithm_of(descriptor.digest)) and told != descriptor.digest:
            raise RegistryError(
                f"PUT {redacted(answer.url)}: the registry stored {brief(told)} instead of "
                f"{descriptor.digest}"
            )
        self._keep(descriptor.digest, descriptor.media_type, data)
        return answer.headers.get("OCI-Subject")


class _Before(RegistrySource):
    """What is in the registry that is written; a mirror may not know it yet."""

    _written = True


class _ManifestWriter:
    """A manifest that is written in pieces. Implements `Writer`."""

    def __init__(self, target: RegistryTarget, descriptor: Descriptor) -> None:
        self._target = target
        self._descriptor = descriptor
        self._check = ContentCheck(descriptor, target.name)
        self._data = bytearray()
        if descriptor.size > LIMIT:
            raise InvalidDataError(f"manifest {descriptor.digest} is larger than {LIMIT} bytes")

    def write(self, data: BytesLike, /) -> int:
        view = memoryview(data).cast("B")
        self._check.add(view)
        self._data += view
        return view.nbytes

    def commit(self) -> None:
        self._check.verify()
        self._target.push(self._descriptor, bytes(self._data))

    def abort(self) -> None:
        self._data.clear()


def _media_type(data: bytes, header: str, what: str) -> str:
    """The type of a manifest: what the registry says or, where it says little, the document."""
    kind = header.partition(";")[0].strip()
    if is_index(kind) or is_manifest(kind) or kind in _SCHEMA1:
        return kind
    if kind == "text/html" or data.lstrip()[:1] == b"<":
        raise RegistryError(f"{what} is an HTML page, not a manifest; is this a registry?")
    return media_type_of(data, what)


def _digest_like(digest: str, data: bytes) -> str:
    content = new_hash(digest)
    content.update(data)
    return f"{algorithm_of(digest)}:{content.hexdigest()}"


def _types_in(data: bytes) -> frozenset[str]:
    """The types that a manifest or index names, of itself and of its parts."""
    document: Any = loads(data, "a manifest")
    parts = [document, document.get("config"), *(document.get("layers") or ())]
    parts += document.get("manifests") or ()
    named = (part.get(key) for part in parts if part for key in ("mediaType", "artifactType"))
    return frozenset(filter(None, named))


def _subject(descriptor: Descriptor, data: bytes) -> Descriptor | None:
    what = f"manifest {descriptor.digest}"
    if is_index(descriptor.media_type):
        return parse_index(data, what, descriptor.media_type).subject
    return parse_manifest(data, what, descriptor.media_type).subject


def _as_referrer(descriptor: Descriptor, data: bytes) -> Descriptor:
    """The entry of a manifest in a list of referrers (distribution spec, "Referrers Tag Schema")."""
    what = f"manifest {descriptor.digest}"
    if is_index(descriptor.media_type):
        index = parse_index(data, what)
        kind, annotations = index.artifact_type, index.annotations
    else:
        manifest = parse_manifest(data, what)
        kind = manifest.artifact_type or manifest.config.media_type
        annotations = manifest.annotations
    return Descriptor(
        descriptor.media_type,
        descriptor.digest,
        descriptor.size,
        annotations=annotations,
        artifact_type=kind,
    )
