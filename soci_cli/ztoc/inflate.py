"""Inflating, through the C functions of zlib-ng or of the system's zlib.

Python's own zlib module can't stop at the boundaries of DEFLATE blocks, which is where checkpoints
lie. ctypes can call `inflate` with Z_BLOCK, and releases the GIL while it runs. The wheel of the
package zlib-ng holds zlib-ng's C functions in its extension module, about twice as fast as zlib; where
they can't be found the system's libz serves, with the same results byte for byte.

The environment variable SOCI_ZLIB chooses: "zlib-ng", "zlib", or empty for the first that works.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from soci_cli.errors import InvalidDataError, SociError
from soci_cli.ztoc.model import WINDOW_SIZE

_LOG = logging.getLogger("soci_cli.ztoc")

Z_NO_FLUSH = 0
Z_BLOCK = 5

_Z_OK = 0
_Z_STREAM_END = 1
_Z_NEED_DICT = 2
_Z_BUF_ERROR = -5

# What zlib says of the frame around the data, in words that say what it means.
_CLEARER = {
    "incorrect header check": "no gzip header begins there",
    "incorrect data check": "its checksum (CRC-32) is wrong",
    "incorrect length check": "its size does not agree with the one in its trailer",
}

GZIP = 31
"""Window bits for a gzip member (zlib manual, inflateInit2)."""
RAW = -15
"""Window bits for a bare DEFLATE stream."""


def _stream_fields(counter: type, checksum: type) -> list[tuple[str, type]]:
    return [
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", counter),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", counter),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", checksum),
        ("reserved", ctypes.c_ulong),
    ]


class _ZlibStream(ctypes.Structure):
    # z_stream of zlib.h.
    _fields_ = _stream_fields(ctypes.c_ulong, ctypes.c_ulong)


class _ZlibNgStream(ctypes.Structure):
    # zng_stream of zlib-ng.h.
    _fields_ = _stream_fields(ctypes.c_size_t, ctypes.c_uint32)


_Stream = type[_ZlibStream] | type[_ZlibNgStream]


@dataclass(frozen=True)
class ZlibBackend:
    """One library's inflate functions. `name` is "zlib-ng" or "zlib", with its version."""

    name: str
    stream: _Stream
    init: Callable[[object, int], int]
    inflate: Callable[[int, int], int]
    reset: Callable[[object, int], int]
    prime: Callable[[object, int, int], int]
    set_dictionary: Callable[[object, bytes, int], int]
    end: Callable[[object], int]


def _zlib_ng() -> ZlibBackend:
    spec = importlib.util.find_spec("zlib_ng.zlib_ng")
    if spec is None or not spec.origin:
        raise OSError("the package zlib-ng is not installed")
    library = ctypes.CDLL(spec.origin)
    version = library.zlibng_version
    version.restype = ctypes.c_char_p
    found = _bind(
        library, "zng_", f"zlib-ng {version().decode()}", _ZlibNgStream, library.zng_inflateInit2
    )
    _check(found)
    return found


def _zlib() -> ZlibBackend:
    path = ctypes.util.find_library("z") or "libz.so.1"
    library = ctypes.CDLL(path)
    version = library.zlibVersion
    version.restype = ctypes.c_char_p
    text = version()
    size = ctypes.sizeof(_ZlibStream)
    raw_init = library.inflateInit2_
    raw_init.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]

    def init(stream: object, window_bits: int) -> int:
        return int(raw_init(stream, window_bits, text, size))

    return _bind(library, "", f"zlib {text.decode()}", _ZlibStream, init)


def _bind(
    library: ctypes.CDLL,
    prefix: str,
    name: str,
    stream: _Stream,
    init: Callable[[object, int], int],
) -> ZlibBackend:
    inflate = library[f"{prefix}inflate"]
    inflate.argtypes = [ctypes.c_void_p, ctypes.c_int]
    prime = library[f"{prefix}inflatePrime"]
    prime.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    dictionary = library[f"{prefix}inflateSetDictionary"]
    dictionary.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint]
    reset = library[f"{prefix}inflateReset2"]
    reset.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return ZlibBackend(
        name, stream, init, inflate, reset, prime, dictionary, library[f"{prefix}inflateEnd"]
    )


_KNOWN_DATA = b"soci " * 40 + bytes(range(100))
_KNOWN = bytes.fromhex(
    "1f8b08000000000000032ace4fce54281efa04000000ffff6360646266616563e7e0e4e2e6e1e5e31710141216111513"
    "97909492969195935750545256515553d7d0d4d2d6d1d5d33730343236313533b7b0b4b2b6b1b5b3777074727671757"
    "3f7f0f4f2f6f1f5f30f080c0a0e090d0b8f888c8a8e898d8b4f484c4a060022a41e5e2c010000"
)
_KNOWN_STOPS = ((10, 0, 128), (20, 200, 131), (24, 200, 128), (126, 300, 198), (134, 300, 64))
"""After each stop: bytes read, bytes written, and `data_type` (zlib manual, inflate, Z_BLOCK)."""


def _check(library: ZlibBackend) -> None:
    """OSError for a library that does not stop at the blocks of a known stream, or inflates it wrongly.

    The functions are those of an extension module, whose next release may lay out its stream otherwise.
    """
    source, target = Buffer(len(_KNOWN)), Buffer(len(_KNOWN_DATA) + 1)
    source.view[:] = _KNOWN
    stops: list[tuple[int, int, int]] = []
    with Inflater(GZIP, library) as inflater:
        stream = inflater.stream
        stream.next_in, stream.avail_in = source.address, len(_KNOWN)
        stream.next_out, stream.avail_out = target.address, len(target.data)
        try:
            ended = False
            while not ended and len(stops) < len(_KNOWN_STOPS) + 1:
                ended = inflater.run(Z_BLOCK)
                left = len(_KNOWN) - stream.avail_in
                stops.append((left, len(target.data) - stream.avail_out, stream.data_type & 0xFF))
        except InvalidDataError as error:
            raise OSError(f"a known stream is said to be broken: {error}") from error
    if tuple(stops) != _KNOWN_STOPS or target.data[:-1] != _KNOWN_DATA:
        raise OSError("a known stream is not inflated as it must be")


@lru_cache(maxsize=4)
def backend(choice: str | None = None) -> ZlibBackend:
    """The inflate library: `choice`, or SOCI_ZLIB, or the first that works.

    Raises SociError where the chosen one can't be loaded.
    """
    if choice is None:
        choice = os.environ.get("SOCI_ZLIB", "")
    loaders = {"zlib-ng": _zlib_ng, "zlib": _zlib}
    if choice and choice not in loaders:
        raise SociError(f"SOCI_ZLIB={choice} is not known: use zlib-ng or zlib")
    problems = []
    for name in [choice] if choice else list(loaders):
        try:
            return loaders[name]()
        except (OSError, AttributeError, MemoryError) as error:
            problems.append(f"{name}: {error}")
            if not choice:
                _LOG.warning("soci: warning: %s cannot be used, which is slower: %s", name, error)
    raise SociError(f"no library to inflate with: {'; '.join(problems)}")


class Inflater:
    """One inflate stream. Set input and output by address, then call `run`.

    The caller keeps the buffers alive. Used as a context manager, or closed, it frees the C state.
    """

    def __init__(self, window_bits: int, library: ZlibBackend | None = None) -> None:
        self._open = False
        self._library = library or backend()
        self.stream = self._library.stream()
        self._address = ctypes.addressof(self.stream)
        self._window_bits = window_bits
        self._inflate = self._library.inflate
        if self._library.init(ctypes.byref(self.stream), window_bits) != _Z_OK:
            raise MemoryError("inflateInit2")
        self._open = True

    def close(self) -> None:
        """Frees the C state."""
        if self._open:
            self._open = False
            self._library.end(ctypes.byref(self.stream))

    def __enter__(self) -> Inflater:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def run(self, flush: int) -> bool:
        """Inflates until input or output is used up, or a stop that `flush` asks for.

        Returns whether the member or stream ended. Raises InvalidDataError for broken data.
        """
        result = self._inflate(self._address, flush)
        if result in (_Z_OK, _Z_BUF_ERROR):
            return False
        if result == _Z_STREAM_END:
            return True
        if result == -4:
            raise MemoryError("inflate")
        message = self.stream.msg
        reason = message.decode(errors="replace") if message else f"error {result}"
        if result == _Z_NEED_DICT:
            reason = "it needs a dictionary"
        raise InvalidDataError(_CLEARER.get(reason, reason))

    def reset(self, window_bits: int | None = None) -> None:
        """Begins a new member or stream."""
        bits = self._window_bits if window_bits is None else window_bits
        if self._library.reset(ctypes.byref(self.stream), bits) != _Z_OK:
            raise MemoryError("inflateReset2")

    def resume(self, bits: int, previous_byte: int, window: bytes) -> None:
        """Places a RAW stream at a checkpoint: leftover bits of the byte before, and the history."""
        if bits:
            self._library.prime(ctypes.byref(self.stream), bits, previous_byte >> (8 - bits))
        self._library.set_dictionary(ctypes.byref(self.stream), window, len(window))


class Buffer:
    """A fixed block of memory with a known address, for C and for Python."""

    __slots__ = ("_keep", "address", "data", "view")

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.view = memoryview(self.data)
        self._keep = (ctypes.c_char * size).from_buffer(self.data)
        self.address = ctypes.addressof(self._keep)


EMPTY_WINDOW = bytes(WINDOW_SIZE)
