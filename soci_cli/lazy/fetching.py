"""What the layers of one image share while they are read."""

from __future__ import annotations

from soci_cli.closing import Closing
from soci_cli.lazy.cache import Cache
from soci_cli.lazy.fetcher import Fetcher
from soci_cli.lazy.span_queue import ImageRequests
from soci_cli.lazy.stats import Stats

DEFAULT_REQUESTS = 3
"""Requests for one layer under way at once."""
DEFAULT_DEADLINE = 30.0
"""Seconds after the last byte that came for a reader until it gets an error."""


class Fetching(Closing):
    """The cache, the counts, how an image is fetched, and the threads that do it.

    `requests` are under way for a layer at once, and for all layers what `image` allows. `readahead`
    uncompressed bytes are fetched ahead of a reader that goes through a layer in order; 0 fetches what is
    asked for. A reader waits at most `deadline` seconds for the next byte. Images of one process should
    share a `fetcher`; one that is given stays open.
    """

    def __init__(
        self,
        cache: Cache,
        requests: int = DEFAULT_REQUESTS,
        readahead: int = 0,
        deadline: float = DEFAULT_DEADLINE,
        fetcher: Fetcher | None = None,
        image: ImageRequests | None = None,
    ) -> None:
        self.cache = cache
        self.requests = max(1, requests)
        # What is fetched ahead must still be here when its reader comes to it.
        self.readahead = min(readahead, cache.limit // 4)
        self.deadline = deadline
        self.image = image or ImageRequests()
        self.fetcher = fetcher or Fetcher()
        self.stats = Stats()
        self._is_own = fetcher is None

    def close(self) -> None:
        """Ends the threads, unless others use them; see `Fetcher.close`."""
        if self._is_own:
            self.fetcher.close()
