"""Having the EROFS image of layers: from the cache, or made now, here or in a process of its own."""

from __future__ import annotations

import json
import mmap
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from soci_cli.errors import InvalidDataError, StorageError
from soci_cli.lazy.cache import Cache, metadata_key
from soci_cli.lazy.entries import Entry
from soci_cli.lazy.erofs.image import ErofsImage, decode, encode, key_of
from soci_cli.lazy.erofs.tree import Tree, layer_tree, merged_tree
from soci_cli.lazy.lazy_layer import LazyLayer
from soci_cli.lazy.merged import LazyImage
from soci_cli.processes.spawn import spawn
from soci_cli.ztoc import Ztoc, decode_ztoc

_SCRIPT = Path(__file__).with_name("__main__.py")
_NICE = 5
_MAX_MESSAGE = 64 << 10


class Images:
    """The images of merged layers that are in a cache."""

    kind = "merged"

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def tree(self, layers: Sequence[LazyLayer]) -> Tree:
        """What such an image shows. Opens the layers."""
        return merged_tree([layer.files.ztoc for layer in layers], _tags(layers))

    def find(self, layers: Sequence[LazyLayer]) -> tuple[Entry, ErofsImage] | None:
        """The image of these layers, open; None where there is none."""
        key = self._key(layers)
        file = self._cache.open(key)
        if file is None:
            return None
        try:
            return file, decode(file.fileno())
        except (InvalidDataError, OSError):
            self._cache.remove(key)
            return None

    def digest(self, layers: Sequence[LazyLayer]) -> str:
        """By which digest the cache lists it."""
        return f"sha256:{self._name(layers)}"

    def make(self, layers: Sequence[LazyLayer]) -> None:
        """Makes it, which takes some 5 µs for each file. Opens the layers.

        Raises what that raises, InvalidDataError for a zTOC that is not valid, UnsupportedLayerError for
        what EROFS cannot show, and StorageError where the cache cannot be written.
        """
        parts = encode(self.tree(layers))
        claim = self._cache.claim(self._key(layers))
        if claim is None:
            return  # somebody else makes the same
        with claim:
            if not claim.is_real:
                raise StorageError(f"the cache {self._cache.root} cannot be written")
            try:
                for part in parts:
                    claim.write(part)
                claim.commit()
            except OSError as error:
                raise StorageError(f"the cache {self._cache.root}: {error.strerror}") from error

    def make_apart(self, layers: Sequence[LazyLayer]) -> None:
        """As `make`, in a process of its own, so that this one goes on undisturbed; waits for its end.

        What goes wrong there is a StorageError.
        """
        ztocs = [layer.files.ztoc for layer in layers]
        claim = self._cache.claim(self._key(layers))
        if claim is None:
            return
        with claim, ExitStack() as stack:
            if not claim.is_real:
                return
            starts = [len(ztoc.files.buffer) - ztoc.size for ztoc in ztocs]
            fds = [_in_memory(ztoc, stack) for ztoc in ztocs]
            tags = [tag.decode("ascii") for tag in _tags(layers)]
            text = json.dumps({"starts": starts, "tags": tags})
            process, connection = spawn(_SCRIPT, layers=text)
            with process, connection:
                # What it says when it dies is in its stderr.
                for fd in [*fds, claim.fileno()]:
                    socket.send_fds(connection, [b"f"], [fd])
                said = connection.recv(_MAX_MESSAGE).decode(errors="replace")
                if process.stderr is not None and not said:
                    said = process.stderr.read().decode(errors="replace")[-1000:]
            if said != "made":
                raise StorageError(
                    f"the metadata for EROFS could not be made: {said or 'it ended'}"
                )
            claim.commit_written()

    def _key(self, layers: Sequence[LazyLayer]) -> str:
        return metadata_key(self._name(layers))

    def _name(self, layers: Sequence[LazyLayer]) -> str:
        names = [f"{layer.descriptor.digest} {layer.ztoc_digest}" for layer in layers]
        return key_of(self.kind, names)


class LayerImages(Images):
    """The images of single layers, for overlayfs to join: of the last of `layers`, over the others."""

    kind = "layer"

    def tree(self, layers: Sequence[LazyLayer]) -> Tree:
        """See `Images.tree`. The layers below are opened where something depends on them."""
        *below, layer = layers
        return layer_tree(layer.files.ztoc, _tags([layer])[0], LazyImage("", below))

    def make_apart(self, layers: Sequence[LazyLayer]) -> None:
        """See `Images.make_apart`. It is made here all the same."""
        self.make(layers)


def answer(text: str, connection: socket.socket) -> None:
    """In the process that `make_apart` starts: makes one image of what the text and the connection say."""
    os.nice(_NICE)
    layers = json.loads(text)
    fds = [socket.recv_fds(connection, 1, 1)[1][0] for _ in range(len(layers["starts"]) + 1)]
    ztocs = [
        decode_ztoc(mmap.mmap(fd, 0, access=mmap.ACCESS_READ), start)
        for fd, start in zip(fds, layers["starts"], strict=False)
    ]
    try:
        for part in encode(merged_tree(ztocs, [tag.encode("ascii") for tag in layers["tags"]])):
            view = memoryview(part)
            while view:
                view = view[os.write(fds[-1], view) :]
        connection.sendall(b"made")
    except (InvalidDataError, OSError) as error:
        connection.sendall(str(error).encode()[:_MAX_MESSAGE])


def _in_memory(ztoc: Ztoc, stack: ExitStack) -> int:
    """A zTOC in a file that has no name."""
    fd = os.memfd_create("soci-ztoc", os.MFD_CLOEXEC)
    stack.callback(os.close, fd)
    view = memoryview(ztoc.files.buffer)
    while view:
        view = view[os.write(fd, view) :]
    return fd


def _tags(layers: Sequence[LazyLayer]) -> list[bytes]:
    return [layer.descriptor.digest.encode("ascii") for layer in layers]
