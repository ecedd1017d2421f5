"""When a request is sent again, and after how long."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class RetryPolicy:
    """How often and after how long. Times are in seconds.

    The pauses grow from `first` to `longest` by doubling, each with up to half of it taken off at
    random, so that many clients do not come back at once. A server that asks for a longer pause than
    `patience` is not waited for.
    """

    attempts: int = 6
    first: float = 0.4
    longest: float = 8.0
    patience: float = 120.0

    def pause(self, failures: int, asked: float | None = None) -> float:
        """How long to wait after that many failures; `asked` is what Retry-After said."""
        doubled = min(self.longest, self.first * 2.0 ** (failures - 1))
        jittered = doubled * random.uniform(0.5, 1.0)
        return jittered if asked is None else max(jittered, asked)


def retry_after(value: str | None) -> float | None:
    """The seconds that a Retry-After header asks for (RFC 9110, section 10.2.3); None for nonsense."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return float(text)
    try:
        moment = parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, OSError):
        return None  # OverflowError and OSError: a year that no clock has
    return max(0.0, moment - time.time())
