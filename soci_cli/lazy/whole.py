"""Layers without a zTOC: read whole once, and unpacked into the cache as a complete device.

While the archive is written, a zTOC of it as a plain tar is built, so that from then on such a layer is
read like all others: files by their zTOC, all bytes checked before their first use.
"""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from typing import Any, cast

import zstandard
from zlib_ng import gzip_ng, zlib_ng

from soci_cli.errors import (
    IntegrityError,
    InvalidDataError,
    StorageError,
    errors_at,
)
from soci_cli.index.layers import CountingReader, short
from soci_cli.index.packing import Peeked, is_plain_type, packing_of_bytes, unpack_zstd
from soci_cli.lazy.blobs import contents
from soci_cli.lazy.cache import Claim, device_key
from soci_cli.lazy.devices.complete import Device, open_device
from soci_cli.lazy.devices.growing import StreamedDevice, TooLargeError
from soci_cli.lazy.eviction import ZTOC_SUFFIX
from soci_cli.lazy.fetching import Fetching
from soci_cli.lazy.layer_bytes import LayerBytes, Name, errors_of, no_name
from soci_cli.lazy.stats import Presence
from soci_cli.oci import Descriptor, VerifyingReader, encoded_of, media_types
from soci_cli.oci.digest import new_hash
from soci_cli.parallel import Stop, StoppableTask
from soci_cli.progress import Observer, Task, Work
from soci_cli.targets import Source
from soci_cli.ztoc import Compression, Ztoc, build_ztoc, decode_ztoc

_PAUSE = 0.05
_ZLIB_ERROR = cast(type[Exception], zlib_ng.error)


class WholeLayer(LayerBytes):
    """A layer's archive as a complete device of the cache."""

    def __init__(
        self,
        fetching: Fetching,
        source: Source,
        layer: Descriptor,
        diff_id: str | None,
        observer: Observer,
        stop: Stop,
        *,
        must_match: bool = False,
    ) -> None:
        """Unpacks the layer, unless it is in the cache; setting `stop` ends that.

        `diff_id` is the digest of its archive, if known; with `must_match` another archive is refused,
        whatever the layer's own digest says. Raises IntegrityError when the layer is not what
        its digest says, InvalidDataError for what is no archive, is cut off or is too large, StorageError
        when the cache cannot be written, and what fetching raises.
        """
        self._fetcher = fetching.fetcher
        self._cache = fetching.cache
        self._source = source
        self._layer = layer
        self._diff_id = diff_id
        self._must_match = must_match
        self._is_matched = diff_id is None
        self._observer = observer
        self._mutex = threading.Lock()
        self._stop = stop
        with self._located():
            self._device, self.ztoc = self._open()
            if must_match and not self._is_matched:
                self._match()
        self._stop = Stop()

    def close(self) -> None:
        """Ends unpacking once more, where the file was damaged, and tells the cache of the use."""
        self._stop.set()
        self._device.note_use()

    def read_now(self, offset: int, buffer: memoryview, name: Name = no_name) -> bool:
        """See `LayerBytes.read_now`."""
        self._check(offset, buffer.nbytes)
        return self._device.read_now(offset, buffer) == buffer.nbytes

    def submit(self, offset: int, length: int, name: Name = no_name) -> Future[bytes]:
        """See `LayerBytes.submit`."""
        future: Future[bytes] = Future()

        def read() -> None:
            with errors_of(future), self._located():
                try:
                    future.set_result(self._read(offset, length))
                except _DamagedError:
                    # Making it again may take minutes: too long for the threads that all layers share.
                    threading.Thread(target=make_again, name="soci-unpack", daemon=True).start()

        def make_again() -> None:
            with errors_of(future):
                future.set_result(self.read(offset, length))

        self._fetcher.run(read)
        return future

    def read(self, offset: int, length: int, name: Name = no_name) -> bytes:
        """See `LayerBytes.read`. A file that was damaged is made once more."""
        with self._located():
            try:
                return self._read(offset, length)
            except _DamagedError as error:
                self._make_again(error.device)
            try:
                return self._read(offset, length)
            except _DamagedError:
                raise IntegrityError(
                    f"its file in the cache was damaged again; is the disk of {self._cache.root} in "
                    "order?"
                ) from None

    def _located(self) -> AbstractContextManager[None]:
        return errors_at(place=self._source.name, layer=self._layer.digest)

    def presence(self) -> Presence:
        """See `LayerBytes.presence`: all of it, and it has no spans."""
        size = self._device.size
        return Presence(0, 0, size, size)

    def ahead(
        self, ranges: Iterable[tuple[int, int]], name: Name = no_name
    ) -> Callable[[int], None]:
        """See `LayerBytes.ahead`: everything is here already."""
        return lambda offset: None

    def _check(self, offset: int, length: int) -> None:
        if length > 0 and not 0 <= offset <= self._device.size - length:
            raise InvalidDataError(f"there are no bytes {offset} to {offset + length}")

    def _read(self, offset: int, length: int) -> bytes:
        device = self._device
        self._check(offset, length)
        data = device.read(offset, length)
        if len(data) < length:
            raise _DamagedError(device)
        return data

    def _make_again(self, damaged: Device) -> None:
        with self._mutex:
            if self._device is damaged:  # not when another thread was quicker
                self._cache.remove(device_key(self._layer.digest, ""))
                # Other threads may be reading the old file, which stays open for them.
                self._device, _ = self._open()

    def _open(self) -> tuple[Device, Ztoc]:
        """The device, made now if need be, and its zTOC."""
        key = device_key(self._layer.digest, "")
        while True:
            found = self._find(key)
            if found is not None:
                return found
            claim = self._cache.claim(key)
            if claim is None:
                self._stop.check()
                time.sleep(_PAUSE)  # another process is at it
                continue
            with claim:
                if not claim.is_real:
                    raise StorageError(
                        "it has no zTOC, so it must be unpacked into the cache, but "
                        f"{self._cache.root} cannot be written; set SOCI_CACHE to another folder"
                    )
                found = self._find(key)
                if found is not None:
                    return found
                data, growing = self._unpack(claim)
                self._cache.put(key + ZTOC_SUFFIX, data)
                try:
                    device = growing.commit()
                except OSError as error:
                    raise _disk_error(error) from error
                return self._find(key) or (device, decode_ztoc(data))

    def _match(self) -> None:
        """Compares what somebody else has put into the cache with the diff ID. InvalidDataError."""
        assert self._diff_id is not None
        digest = new_hash(self._diff_id)
        for piece in self._device.stream():
            digest.update(piece)
        if digest.hexdigest() != encoded_of(self._diff_id):
            raise InvalidDataError(f"it is not the archive of its diff ID {self._diff_id}")

    def _find(self, key: str) -> tuple[Device, Ztoc] | None:
        table = self._cache.find(key + ZTOC_SUFFIX)
        device = open_device(self._cache, key) if table is not None else None
        if table is None or device is None:
            return None
        with suppress(InvalidDataError):
            ztoc = decode_ztoc(*contents(table))
            if device.size == ztoc.uncompressed_archive_size:
                return device, ztoc
        self._cache.remove(key)
        self._cache.remove(key + ZTOC_SUFFIX)
        return None

    def _unpack(self, claim: Claim) -> tuple[bytes, StreamedDevice]:
        """Writes the device; the zTOC of its plain tar. A damaged layer is fetched once more."""
        if not is_plain_type(self._layer):
            kind = media_types.layer_compression(self._layer.media_type)
            raise InvalidDataError(f"it cannot be read: it is {kind}, not gzip, zstd or plain tar")
        with Work(self._observer, short(self._layer.digest), self._layer.size) as work:
            try:
                try:
                    made = self._unpack_once(claim, work)
                except IntegrityError:
                    claim.restart()
                    made = self._unpack_once(claim, work)
            except OSError as error:
                raise _disk_error(error) from error
            work.outcome = "unpacked"
        return made

    def _unpack_once(self, claim: Claim, task: Task) -> tuple[bytes, StreamedDevice]:
        with self._source.fetch(self._layer) as stream:
            digest = self._layer.digest
            checked = VerifyingReader(stream, digest, self._layer.size, f"layer {digest}")
            counted = Peeked(CountingReader(checked, StoppableTask(task, self._stop)))
            compression = packing_of_bytes(counted.start)
            # Of a zstd stream that was made too short the decompressor says nothing. For the others the
            # layer's own digest is enough, and diff IDs that are wrong do occur.
            diff_id = self._diff_id if compression == "zstd" or self._must_match else None
            device = StreamedDevice(claim, self._cache.limit)
            try:
                built = build_ztoc(
                    _plain(counted, compression),
                    compression=Compression.UNCOMPRESSED,
                    expected_digest=diff_id,
                    archive=device,
                )
                checked.finish()
                self._is_matched = diff_id is not None
                return built.data, device
            except TooLargeError:
                raise
            except (
                IntegrityError,
                InvalidDataError,
                gzip.BadGzipFile,
                _ZLIB_ERROR,
                zstandard.ZstdError,
                EOFError,
            ) as error:
                # Was the layer made broken, or did it arrive broken? Its digest tells.
                checked.finish()
                if isinstance(error, InvalidDataError):
                    raise
                if isinstance(error, IntegrityError):
                    # No IntegrityError any more: the layer is what was promised, and its config is wrong.
                    text = f"it is not the archive of its diff ID: {error.message}"
                    raise InvalidDataError(text) from None
                raise InvalidDataError(f"it cannot be unpacked: {error}") from None


class _DamagedError(Exception):
    """A device does not have its bytes any more."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device


def _plain(stream: Peeked, compression: str) -> Any:
    """The uncompressed bytes of a layer as a stream."""
    if compression == "gzip":
        open_gzip: Any = gzip_ng.GzipNGFile  # it has no types
        return open_gzip(fileobj=stream, mode="rb")
    if compression == "zstd":
        return unpack_zstd(stream)
    return stream


def _disk_error(error: OSError) -> StorageError:
    return StorageError(
        f"it cannot be unpacked into the cache: {error.strerror or error}; free some space or set "
        "SOCI_CACHE to another folder"
    )
