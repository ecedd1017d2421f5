"""The bodies of answers as they arrive."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import cast

import requests
import urllib3

_PIECE = 1 << 20

NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
"""What a connection that fails raises, before and while a body is read."""


def raw_stream(response: requests.Response) -> urllib3.response.BaseHTTPResponse:
    """The body as it arrives."""
    return cast(urllib3.response.BaseHTTPResponse, response.raw)


def read_pieces(response: requests.Response, limit: int, seconds: float) -> Iterator[bytes]:
    """The first `limit` bytes of a body, decoded; TimeoutError when they take longer than `seconds`.

    A timeout of the socket alone lets a peer that sends a byte now and then hold a client for hours.
    """
    deadline = time.monotonic() + seconds
    stream = raw_stream(response)
    while limit and (piece := stream.read1(min(limit, _PIECE), decode_content=True)):
        yield piece
        limit -= len(piece)
        if time.monotonic() > deadline:
            raise TimeoutError
