"""Remarks on stderr: those of one kind are summed up, and all of them together fit into a pipe.

Who starts `soci` may read its stdout to the end before it looks at stderr, as nerdctl does. A pipe holds
64 KiB: a command that has more to say waits for a reader who waits for the command.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

_SHOWN_OF_A_KIND = 3
_LIMIT = 24 << 10  # bytes
_ERROR_LIMIT = 1500  # characters, each of up to four bytes


class Remarks:
    """Writes remarks, each a line, by `write`, which may be replaced. Several threads may use it.

    Of each kind the first three are written, and a number when that kind is summed up. A remark that was
    written already is not written again. While `is_limited`, they end at 24 KiB; that some are missing is
    said.
    """

    def __init__(self, write: Callable[[str], None], is_limited: Callable[[], bool]) -> None:
        self.write = write
        self._is_limited = is_limited
        self._mutex = threading.Lock()
        self._kinds: Counter[str] = Counter()
        self._seen: set[int] = set()
        self._size = 0
        self._left_out = 0

    def add(self, text: str, kind: str = "") -> None:
        """One remark; what has no kind is always written."""
        with self._mutex:
            if hash(text) in self._seen:
                return
            self._seen.add(hash(text))
            if kind:
                self._kinds[kind] += 1
            if self._kinds[kind] <= _SHOWN_OF_A_KIND:
                self._write(text)

    def sum_up(self) -> None:
        """Writes how many remarks of each kind there were besides."""
        with self._mutex:
            for kind, count in self._kinds.items():
                if count > _SHOWN_OF_A_KIND:
                    self._write(f"{count - _SHOWN_OF_A_KIND} more of this kind: {kind}")
            self._kinds.clear()

    def close(self) -> None:
        """Says how many remarks were left out, if any were."""
        self.sum_up()
        if self._left_out:
            self.write(f"{self._left_out} more remarks are left out; --debug shows them all")
            self._left_out = 0

    def error(self, text: str) -> None:
        """What ended the command; where there is a limit, a very long line loses its end."""
        cut = len(text) > _ERROR_LIMIT and self._is_limited()
        self.write(text[:_ERROR_LIMIT] + "…" if cut else text)

    def _write(self, text: str) -> None:
        self._size += len(text.encode(errors="replace")) + 1
        if self._size > _LIMIT and self._is_limited():
            self._left_out += 1
        else:
            self.write(text)
