"""Where zTOCs that exist already are found: the local store, and the SOCI indexes of images.

A zTOC is taken only when span size and build tool are the ones wanted; `LayerIndexer` checks besides
that it is valid and fits the layer. The index that an image carries is bound to it by digest, so it is
as trustworthy as the image's layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from soci_cli.index.image import Image
from soci_cli.index.model import BUILD_TOOL, SPAN_SIZE, ztocs_by_layer
from soci_cli.oci import Descriptor
from soci_cli.targets import Source, Target

_KIND = "ztoc"


@dataclass(frozen=True)
class KnownZtoc:
    """A zTOC that exists already, and the place that has it."""

    descriptor: Descriptor
    place: Source


@dataclass(frozen=True)
class ZtocSettings:
    """How zTOCs are built: the span size in bytes and the tool that they name."""

    span_size: int
    build_tool_identifier: str


class ZtocMemory:
    """The zTOCs that a command need not build; those that it builds are recorded in the local store."""

    def __init__(
        self,
        images: Iterable[tuple[Source, Image]],
        target: Target,
        settings: ZtocSettings,
        others: Mapping[str, Sequence[KnownZtoc]] = MappingProxyType({}),
        *,
        force: bool,
    ) -> None:
        """`images` may carry some; each comes with its place: the source, and the target as it was.

        `others` are further zTOCs by the digest of their layer. With `force` none is found.
        """
        self._target = target
        self._key = f"{settings.span_size} {settings.build_tool_identifier}"
        self._force = force
        self._others = others
        self._carried: dict[str, list[KnownZtoc]] = {}
        for place, image in images:
            self._add(place, image, settings)

    def recall(self, layer: str) -> Sequence[KnownZtoc]:
        """zTOCs of the layer with this digest, most likely of the span size and tool at hand."""
        if self._force:
            return ()
        store = self._target.store
        if store and (found := store.recall_derived(_KIND, layer, self._key)):
            return [KnownZtoc(found, self._target)]
        return [*self._carried.get(layer, ()), *self._others.get(layer, ())]

    def remember(self, layer: str, ztoc: Descriptor) -> None:
        """A zTOC was built, and is in the target."""
        if self._target.store:
            self._target.store.remember_derived(_KIND, layer, self._key, ztoc)

    def _add(self, place: Source, image: Image, settings: ZtocSettings) -> None:
        for entry in image.manifests:
            index = entry.manifest
            if not entry.is_soci_index or index is None:
                continue
            if index.annotations.get(BUILD_TOOL) != settings.build_tool_identifier:
                continue
            for layer, ztoc in ztocs_by_layer(index).items():
                if ztoc.annotations.get(SPAN_SIZE) == str(settings.span_size):
                    self._carried.setdefault(layer, []).append(KnownZtoc(ztoc, place))
