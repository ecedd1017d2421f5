"""Finding out that a conversion would change nothing, before anything is written.

A conversion that is run against a `Rehearsal` of its target reads small documents only. The first thing
that the target does not have yet ends it.
"""

from __future__ import annotations

from typing import NoReturn

from soci_cli.errors import SociError
from soci_cli.index.layers import LayerIndexer
from soci_cli.oci import Descriptor
from soci_cli.progress import Task
from soci_cli.targets import BlobReader, Source, Target
from soci_cli.ztoc import BuiltZtoc


class WouldChangeError(SociError):
    """The conversion would write something."""


class RehearsedIndexer(LayerIndexer):
    """Finds zTOCs, but builds none."""

    def build(self, layer: Descriptor, task: Task) -> BuiltZtoc:
        """See `LayerIndexer.build`."""
        raise WouldChangeError(f"the zTOC of {layer.digest} is new")


class Rehearsal(Target):
    """The target as it was, for a conversion that must not write."""

    def __init__(self, before: Source) -> None:
        super().__init__(before.name)
        self._before = before

    def resolve(self) -> Descriptor:
        return self._before.resolve()

    def fetch(
        self, descriptor: Descriptor, offset: int = 0, length: int | None = None
    ) -> BlobReader:
        return self._before.fetch(descriptor, offset, length)

    def exists(self, descriptor: Descriptor) -> bool:
        if not self._before.exists(descriptor):
            self.prepare(descriptor.digest)
        return True

    def names(self) -> dict[str, str]:
        return self._before.names()

    def referrers(self, subject: Descriptor, artifact_type: str) -> tuple[Descriptor, ...]:
        return self._before.referrers(subject, artifact_type)

    def before(self) -> Source | None:
        return self._before

    def prepare(self, what: str) -> NoReturn:
        raise WouldChangeError(f"{what} is new")

    def open_writer(self, descriptor: Descriptor) -> NoReturn:
        self.prepare(descriptor.digest)

    def link(self, descriptor: Descriptor, source: Source) -> bool:
        return self.exists(descriptor)

    def keep(self, manifest: Descriptor) -> NoReturn:
        self.prepare(f"the name of {manifest.digest}")

    def tag(self, descriptor: Descriptor) -> None:
        if self._before.resolve().digest != descriptor.digest:
            self.prepare(descriptor.digest)
