"""Where a registry redirected blobs to, which is used for their next ranges as well."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

_MOST = 4096
_REFUSALS = 3

REFUSED = frozenset({400, 401, 403, 404, 410})
"""What a place answers whose signature has ended, or that no longer has the blob."""


@dataclass(frozen=True)
class Redirected:
    """A place that a registry leads to, and the URL that led there last."""

    url: str
    led_by: str


class Redirects:
    """The places of blobs, by what was asked: server and path. May be used by several threads.

    A place is kept till it refuses or fails. Where three in a row refuse at their second use, they are good
    for one range only, and none is kept any more.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._places: OrderedDict[tuple[str, str], Redirected] = OrderedDict()
        self._unused: set[tuple[str, str]] = set()  # those that were not used a second time yet
        self._refusals = 0

    def get(self, key: tuple[str, str]) -> Redirected | None:
        """Where to ask; None when the registry is to be asked."""
        with self._mutex:
            return self._places.get(key)

    def keep(self, key: tuple[str, str], place: Redirected) -> None:
        """Takes note of a place that gave what was asked."""
        with self._mutex:
            if self._refusals >= _REFUSALS:
                return
            self._places[key] = place
            self._unused.add(key)
            if len(self._places) > _MOST:
                oldest, _ = self._places.popitem(last=False)
                self._unused.discard(oldest)

    def used(self, key: tuple[str, str]) -> None:
        """A place gave another range."""
        with self._mutex:
            self._unused.discard(key)
            self._refusals = 0

    def forget(self, key: tuple[str, str], *, refused: bool = False) -> None:
        """The registry is to be asked anew."""
        with self._mutex:
            if refused and key in self._unused:
                self._refusals += 1
            self._unused.discard(key)
            self._places.pop(key, None)


def referer(before: str, url: str) -> str:
    """The Referer of a request for `url` that `before` led to, as Go's client sends it.

    Without user and password, and none from HTTPS to plain HTTP (RFC 9110, section 10.1.3).
    """
    parts = urlsplit(before)
    if parts.scheme == "https" and urlsplit(url).scheme == "http":
        return ""
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))
