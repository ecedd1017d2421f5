"""Where zTOCs that exist already are found: the local store, and the SOCI indexes of images.

A zTOC is taken only when span size and build tool are the ones wanted; `LayerIndexer` checks besides
that it is valid and fits the layer. The index that an image carries is bound to it by digest, so it is
as trustworthy as the image's layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from soci_cli.index.image import Image
from soci_cli.index.layers import KnownZtoc, ZtocMemory, ZtocSettings
from soci_cli.index.model import BUILD_TOOL, SPAN_SIZE, ztocs_by_layer
from soci_cli.oci import Descriptor
from soci_cli.targets import Source, Store, Target

_KIND = "ztoc"


class _NoMemory:
    def recall(self, layer: str) -> Sequence[KnownZtoc]:
        return ()

    def remember(self, layer: str, ztoc: Descriptor) -> None:
        pass


class _ImageMemory(_NoMemory):
    """Knows the zTOCs that images carry, and others by layer; remembers nothing new."""

    def __init__(
        self,
        images: Iterable[tuple[Source, Image]],
        settings: ZtocSettings,
        others: Mapping[str, Sequence[KnownZtoc]],
    ) -> None:
        self._known: dict[str, list[KnownZtoc]] = {}
        for place, image in images:
            self._learn(place, image, settings)
        self._others = others

    def _learn(self, place: Source, image: Image, settings: ZtocSettings) -> None:
        for entry in image.manifests:
            index = entry.manifest
            if not entry.is_soci_index or index is None:
                continue
            if index.annotations.get(BUILD_TOOL) != settings.build_tool_identifier:
                continue
            for layer, ztoc in ztocs_by_layer(index).items():
                if ztoc.annotations.get(SPAN_SIZE) == str(settings.span_size):
                    self._known.setdefault(layer, []).append(KnownZtoc(ztoc, place))

    def recall(self, layer: str) -> Sequence[KnownZtoc]:
        return [*self._known.get(layer, ()), *self._others.get(layer, ())]


class _StoreMemory:
    """Knows what any command built into the local store, and writes down what is built now."""

    def __init__(
        self, target: Target, store: Store, settings: ZtocSettings, other: ZtocMemory | None
    ) -> None:
        self._target = target
        self._store = store
        self._key = f"{settings.span_size} {settings.build_tool_identifier}"
        self._other = other

    def recall(self, layer: str) -> Sequence[KnownZtoc]:
        if self._other is None:
            return ()
        found = self._store.recall_derived(_KIND, layer, self._key)
        return [KnownZtoc(found, self._target)] if found else self._other.recall(layer)

    def remember(self, layer: str, ztoc: Descriptor) -> None:
        self._store.remember_derived(_KIND, layer, self._key, ztoc)


def known_ztocs(
    images: Iterable[tuple[Source, Image]],
    target: Target,
    settings: ZtocSettings,
    others: Mapping[str, Sequence[KnownZtoc]] = MappingProxyType({}),
    *,
    force: bool,
) -> ZtocMemory:
    """The zTOCs that a conversion need not build. With `force` none, but new ones are remembered.

    `images` are those that may carry some, each with its place: the source, and the target as it was;
    `others` are further zTOCs by the digest of their layer.
    """
    memory: ZtocMemory = _NoMemory()
    if not force:
        memory = _ImageMemory(images, settings, others)
    if target.store is not None:
        return _StoreMemory(target, target.store, settings, None if force else memory)
    return memory
