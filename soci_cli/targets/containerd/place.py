"""An image of containerd as a place: `containerd:IMAGE`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from soci_cli.errors import IntegrityError, InvalidDataError, NotFoundError, UsageError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.digest import parse_digest
from soci_cli.oci.manifest import parse_index, parse_manifest
from soci_cli.oci.media_types import is_index, is_manifest
from soci_cli.oci.references import parse_reference
from soci_cli.targets._index_json import CONTAINERD_NAME, REF_NAME, without_names
from soci_cli.targets.blobs import BlobReader, check_range
from soci_cli.targets.containerd.client import Containerd, ContainerdImage, Lease
from soci_cli.targets.containerd.streams import ContentStream, ContentWriter
from soci_cli.targets.copy import children_of, read_blob
from soci_cli.targets.protocol import Source, Target, describe_manifest, media_type_of

GC_REF = "containerd.io/gc.ref.content"
SOCI_INDEX_LABEL = f"{GC_REF}.soci-index"
"""On an image: the SOCI index v1 that belongs to it, so that both go together.

Labels that begin with this and a dot name the indexes of further platforms.
"""


class ContainerdSource(Source):
    """An image of containerd that is read."""

    def __init__(self, client: Containerd, reference: str, name: str) -> None:
        """`reference` is the image's name, short or full. Nothing is asked yet."""
        super().__init__(name)
        self._client = client
        self._given = reference
        self._image: ContainerdImage | None = None
        self._labelled: list[tuple[Descriptor, str]] | None = None
        self._mutex = threading.RLock()

    @property
    def image_name(self) -> str:
        """The image's full name in containerd."""
        return str(parse_reference(self._given))

    def image(self) -> ContainerdImage:
        """The image as containerd has it: by the very name, else by the full one. NotFoundError."""
        with self._mutex:
            if self._image is None:
                self._image = self._find_image()
            return self._image

    def resolve(self) -> Descriptor:
        """See `Source.resolve`."""
        return without_names(self.image().target)

    def find(self, digest: str) -> Descriptor:
        """See `Source.find`: any blob of the namespace that is a manifest."""
        return describe_manifest(self, digest, self._client.info(parse_digest(digest)).size)

    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> BlobReader:
        """See `Source.fetch`."""
        count = check_range(descriptor, offset, length)
        try:
            info = self._client.info(descriptor.digest)
        except NotFoundError:
            raise NotFoundError(
                f"containerd's namespace {self._client.namespace} has no blob "
                f"{descriptor.digest}; pull the image with all that is needed of it first",
                place=self._name,
            ) from None
        if info.size != descriptor.size:
            raise IntegrityError(
                f"blob {descriptor.digest} in containerd has {info.size} bytes, not the "
                f"{descriptor.size} of its descriptor"
            )
        return ContentStream(self._client, descriptor.digest, offset, count)

    def exists(self, descriptor: Descriptor) -> bool:
        """See `Source.exists`."""
        try:
            return self._client.info(descriptor.digest).size == descriptor.size
        except NotFoundError:
            return False

    def names(self) -> dict[str, str]:
        """See `Source.names`."""
        name = self.image().name
        names = {CONTAINERD_NAME: name}
        last = name.rpartition("/")[2].partition("@")[0]
        if ":" in last:
            names[REF_NAME] = last.rpartition(":")[2]
        return names

    def referrers(self, subject: Descriptor, artifact_type: str) -> tuple[Descriptor, ...]:
        """See `Source.referrers`: those that labels of the image name, as `SOCI_INDEX_LABEL` says."""
        with self._mutex:
            if self._labelled is None:
                self._labelled = self._read_labelled()
            return tuple(
                found
                for found, of in self._labelled
                if of == subject.digest and found.artifact_type == artifact_type
            )

    def _read_labelled(self) -> list[tuple[Descriptor, str]]:
        """The manifests that labels of the image name, each with the digest that it refers to."""
        named = {
            digest: None
            for key, digest in sorted(self.image().labels.items())
            if key == SOCI_INDEX_LABEL or key.startswith(f"{SOCI_INDEX_LABEL}.")
        }
        found = []
        for digest in named:
            # A label that leads to something else is no reason to fail over the image.
            with suppress(NotFoundError, InvalidDataError):
                untyped = Descriptor("", digest, self._client.info(parse_digest(digest)).size)
                data, what = read_blob(self, untyped), f"manifest {digest}"
                manifest = parse_manifest(data, what)
                kind = manifest.artifact_type or manifest.config.media_type
                typed = replace(untyped, media_type=media_type_of(data, what), artifact_type=kind)
                if manifest.subject is not None:
                    found.append((typed, manifest.subject.digest))
        return found

    def _find_image(self) -> ContainerdImage:
        # Names of others may be such as no user writes, so the full form is made when it is needed.
        with suppress(NotFoundError):
            return self._client.image(self._given)
        if self._given != self.image_name:
            with suppress(NotFoundError):
                return self._client.image(self.image_name)
        raise NotFoundError(
            f"there is no image {self.image_name} in containerd's namespace "
            f"{self._client.namespace}; pull it first, or choose another --namespace",
            place=self._name,
        )


def keep_indexes(client: Containerd, reference: str, indexes: Mapping[str, str]) -> None:
    """Labels an image, so that containerd keeps SOCI indexes v1 as long as the image. NotFoundError.

    `indexes` are digests by platform, such as linux/amd64. The first label is the reference's, of which
    there is one; so the platforms have their own as well.
    """
    labels = {}
    for platform, digest in indexes.items():
        labels[SOCI_INDEX_LABEL] = digest
        labels[f"{SOCI_INDEX_LABEL}.{platform.replace('/', '-')}"] = digest
    if labels:
        image = ContainerdSource(client, reference, f"containerd:{reference}").image()
        client.label_image(image.name, labels)


class ContainerdTarget(ContainerdSource, Target):
    """An image of containerd that is written, and read back.

    A lease keeps what is written from garbage collection until the image has its name; labels keep it
    from then on: an index keeps its manifests, a manifest its config and layers.
    """

    def __init__(self, client: Containerd, reference: str, name: str) -> None:
        """`reference` is the image's name, of which the full form is written and read."""
        super().__init__(client, str(parse_reference(reference)), name)
        self._lease = Lease(client)

    def open_writer(self, descriptor: Descriptor) -> ContentWriter:
        """See `Target.open_writer`."""
        return self._writer(descriptor, {})

    def exists(self, descriptor: Descriptor) -> bool:
        """See `Source.exists`. What is there stays till `close`."""
        if not super().exists(descriptor):
            return False
        self._lease.keep(descriptor.digest)
        # Before it was kept it may have been collected.
        return super().exists(descriptor)

    def push(self, descriptor: Descriptor, data: bytes) -> None:
        """See `Target.push`. Manifests get the labels by which containerd keeps what they name."""
        labels = gc_labels(descriptor, data)
        if not self.exists(descriptor):
            writer = self._writer(descriptor, labels)
            try:
                writer.write(data)
                writer.commit()
            finally:
                writer.abort()
        # Others may have written it, without labels.
        self._client.label_content(descriptor.digest, labels)

    def refer(self, referrer: Descriptor) -> bool:
        """See `Target.refer`: `keep_indexes` lists it, once the image has its name."""
        return True

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """What goes along with a call whose results are to be kept till `close`."""
        return self._lease.metadata

    def before(self) -> Source | None:
        """See `Target.before`."""
        return ContainerdSource(self._client, self._given, self._name)

    def tag(self, descriptor: Descriptor) -> None:
        """See `Target.tag`. UsageError when the name has another digest than the image."""
        reference = parse_reference(self._given)
        if reference.digest not in (None, descriptor.digest):
            raise UsageError(
                f"{self._name} cannot name {descriptor.digest}; choose a name with a tag",
                place=self._name,
            )
        if not self.exists(descriptor):
            raise NotFoundError(
                f"{self._name} cannot be tagged: containerd has no blob {descriptor.digest}",
                place=self._name,
            )
        self._bind(descriptor)
        self._client.put_image(self.image_name, descriptor)
        with self._mutex:
            self._image = self._labelled = None

    def close(self) -> None:
        """Give the lease back."""
        super().close()
        self._lease.close()

    def _writer(self, descriptor: Descriptor, labels: Mapping[str, str]) -> ContentWriter:
        self._check_open()
        return ContentWriter(self._client, self._lease, descriptor, self._name, labels)

    def _bind(self, root: Descriptor) -> None:
        """Labels all manifests of an image that are here.

        Those that were here before may lack labels: a pull of one platform gives an index labels for that
        platform only.
        """
        seen: set[str] = set()
        pending = [root]
        while pending:
            descriptor = pending.pop()
            kind = descriptor.media_type
            known = descriptor.digest in seen
            if known or not (is_index(kind) or is_manifest(kind)):
                continue
            seen.add(descriptor.digest)
            try:
                data = read_blob(self, descriptor)
            except NotFoundError:
                continue
            self._client.label_content(descriptor.digest, gc_labels(descriptor, data))
            if is_index(kind):
                pending += children_of(descriptor, data, f"manifest {descriptor.digest}")


def gc_labels(descriptor: Descriptor, data: bytes) -> dict[str, str]:
    """The labels by which containerd's garbage collection keeps what a manifest names.

    The names are those that containerd itself gives ("Content Flow" of its documentation).
    """
    what = f"manifest {descriptor.digest}"
    if is_index(descriptor.media_type):
        manifests = parse_index(data, what, descriptor.media_type).manifests
        return {f"{GC_REF}.m.{i}": one.digest for i, one in enumerate(manifests)}
    if is_manifest(descriptor.media_type):
        manifest = parse_manifest(data, what, descriptor.media_type)
        layers = {f"{GC_REF}.l.{i}": layer.digest for i, layer in enumerate(manifest.layers)}
        return {f"{GC_REF}.config": manifest.config.digest, **layers}
    return {}
