"""When a request is sent again, and after how long."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timezone
from typing import TypeVar

from soci_cli.errors import RegistryError, UnreachableError

RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})

_SECONDS = re.compile(r"[0-9]{1,300}(\.[0-9]*)?")  # a fraction is no form of the RFC's, but sent
_T = TypeVar("_T")


@dataclass(frozen=True)
class RetryPolicy:
    """How often and after how long. Times are in seconds.

    There are `attempts` in all, fewer where nothing listens: a server that is about to start gets a moment,
    and usually there is none. The pauses grow from `first` to `longest` by doubling, each with up to half
    of it taken off at random, so that many clients do not come back at once. A server that asks for a
    pause is asked again after its end, by up to a quarter of it later at random; one that asks for a longer
    one than `patience` is not waited for.
    """

    attempts: int = 6
    first: float = 0.4
    longest: float = 8.0
    patience: float = 120.0
    refusals: int = 4

    def pause(self, failures: int, asked: float | None = None) -> float:
        """How long to wait after that many failures; `asked` is what Retry-After said."""
        doubled = min(self.longest, self.first * 2.0 ** (failures - 1))
        jittered = doubled * random.uniform(0.5, 1.0)
        if asked is None:
            return jittered
        return max(jittered, asked + random.uniform(0.0, max(doubled, asked / 4)))


class Attempts:
    """The attempts at one thing: their number, the pauses between them, and when it is enough."""

    def __init__(self, policy: RetryPolicy, most: int | None = None) -> None:
        """`most` stands in place of the policy's number of attempts."""
        self._policy = policy
        self._most = policy.attempts if most is None else most
        self._failures = 0

    @property
    def number(self) -> int:
        """The number of the attempt that is under way, from 1."""
        return self._failures + 1

    def run(self, work: Callable[[], _T]) -> _T:
        """What `work` gives, which is called again after each RegistryError that is transient."""
        while True:
            try:
                return work()
            except RegistryError as error:
                self.failed(error)

    def failed(self, error: RegistryError, *, again: bool | None = None) -> None:
        """Waits before the next attempt. Raises the error when there is to be none.

        `again` says, in place of `error.transient`, whether another attempt may help.
        """
        self._failures += 1
        most = self._most
        if isinstance(error, UnreachableError):
            error.attempts = self._failures
            most = min(most, self._policy.refusals) if error.refused else most
        asked = error.retry_after
        patient = asked is None or asked <= self._policy.patience
        final = not (error.transient if again is None else again)
        if final or not patient or self._failures >= most:
            raise error
        time.sleep(self._policy.pause(self._failures, asked))

    def progressed(self) -> None:
        """What failed before does not count any more."""
        self._failures = 0


def retry_after(value: str | None, date: str | None = None) -> float | None:
    """The seconds that a Retry-After header asks for (RFC 9110, section 10.2.3); None for nonsense.

    `date` is the answer's Date, by the same clock; without one it is this machine's that counts.
    """
    if value is None:
        return None
    text = value.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    moment = _moment(text)
    if moment is None:
        return None
    now = _moment(date) if date else None
    return max(0.0, moment - (time.time() if now is None else now))


def _moment(text: str) -> float | None:
    """A date of any of HTTP's three forms (RFC 9110, section 5.6.7), in seconds since 1970."""
    from email.utils import parsedate_to_datetime  # which takes a while to import

    try:
        found = parsedate_to_datetime(text.strip())
        # Of HTTP's dates all are in UTC; one of them does not say so.
        return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, TypeError, OverflowError, OSError):
        return None  # OverflowError and OSError: a year that no clock has
