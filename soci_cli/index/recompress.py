"""Turning a zstd layer into a gzip layer, because only gzip and plain tar can be indexed.

The uncompressed archive stays the same, so the diff ID in the image's config stays right, and is checked
(OCI image spec, config.md, "Layer DiffID"). The same input gives the same bytes with the same version of
zlib-ng.
"""

from __future__ import annotations

import hashlib
import tempfile

import zstandard
from zlib_ng import zlib_ng

from soci_cli.errors import IntegrityError, InvalidDataError, StorageError, errors_at
from soci_cli.index.layers import CountingReader
from soci_cli.index.packing import unpack_zstd
from soci_cli.oci import Descriptor, VerifyingReader
from soci_cli.oci.media_types import (
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    OCI_LAYER_GZIP,
    OCI_LAYER_NONDISTRIBUTABLE,
    OCI_LAYER_NONDISTRIBUTABLE_GZIP,
)
from soci_cli.progress import Task
from soci_cli.targets import Source, Target

_CHUNK = 1 << 20
_LEVEL = 6
_GROWTH = 16  # gzip takes about 1.3 times what zstd does, more where zstd finds what is far away
_EXPANSION = 1032  # the most that deflate can do, so that zstd is trusted no further than gzip
_LEAST = 256 << 20


def recompress_layer(
    source: Source, target: Target, layer: Descriptor, diff_id: str | None, task: Task
) -> Descriptor:
    """Writes the gzip form of a zstd layer to the target; returns its descriptor.

    A digest is known only at the end, so the new layer goes through an unnamed file in the folder for
    temporary files (TMPDIR), of at most 16 times the layer's size; 256 MiB are always allowed. Raises
    IntegrityError when the layer or its diff ID is wrong, InvalidDataError when it is no zstd stream, grows
    past that, or unpacks to more than a gzip layer of its size could.
    """
    what = f"layer {layer.digest} in {source.name}"
    compressor = zlib_ng.compressobj(_LEVEL, zlib_ng.DEFLATED, 31)
    plain_hash, new_hash = hashlib.sha256(), hashlib.sha256()
    size = unpacked = 0
    most, most_unpacked = (max(_LEAST, layer.size * times) for times in (_GROWTH, _EXPANSION))
    try:
        with tempfile.TemporaryFile() as spool, source.fetch(layer) as stream:
            checked = VerifyingReader(stream, layer.digest, layer.size, what)
            with (
                errors_at(place=source.name, layer=layer.digest),
                unpack_zstd(CountingReader(checked, task)) as plain,
            ):
                done = False
                while not done:
                    piece = plain.read(_CHUNK)
                    plain_hash.update(piece)
                    unpacked += len(piece)
                    done = not piece
                    packed = compressor.flush() if done else compressor.compress(piece)
                    new_hash.update(packed)
                    size += len(packed)
                    if size > most or unpacked > most_unpacked:
                        raise InvalidDataError(
                            f"{what} has {layer.size} bytes and would become a gzip layer of more than "
                            f"{most} bytes, or unpack to more than {most_unpacked}; this is not done, "
                            "leave it as it is with --zstd-layers skip",
                            place=source.name,
                            layer=layer.digest,
                        )
                    spool.write(packed)
            checked.finish()
            plain_digest = f"sha256:{plain_hash.hexdigest()}"
            if diff_id is not None and plain_digest != diff_id:
                raise IntegrityError(
                    f"it unpacks to {plain_digest}, not to its diff ID",
                    place=source.name,
                    layer=layer.digest,
                )
            new = Descriptor(
                gzip_media_type(layer.media_type), f"sha256:{new_hash.hexdigest()}", size
            )
            if target.exists(new):
                return new
            spool.seek(0)
            writer = target.open_writer(new)
            try:
                while piece := spool.read(_CHUNK):
                    writer.write(piece)
                writer.commit()
            finally:
                writer.abort()
            return new
    except zstandard.ZstdError as error:
        raise InvalidDataError(
            f"its zstd stream is broken: {error}", place=source.name, layer=layer.digest
        ) from error
    except OSError as error:
        raise StorageError(
            f"it cannot be recompressed: {error.strerror or error}",
            place=source.name,
            layer=layer.digest,
        ) from error


def gzip_media_type(media_type: str) -> str:
    """The media type of the gzip form of a layer of the same family."""
    if media_type.startswith(DOCKER_LAYER):
        return DOCKER_LAYER_GZIP
    if media_type.startswith(OCI_LAYER_NONDISTRIBUTABLE):
        return OCI_LAYER_NONDISTRIBUTABLE_GZIP
    return OCI_LAYER_GZIP
