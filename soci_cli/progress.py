"""How library code reports progress: it calls an observer that it is given.

The library never prints. The command line draws what an observer hears (`commands/output.py`); a caller
that does not care passes nothing.
"""

from __future__ import annotations

from typing import Protocol

from soci_cli.closing import Closing


class Task(Protocol):
    """One running piece of work with a known or unknown total, such as a layer being indexed."""

    def advance(self, amount: int) -> None:
        """Add `amount` bytes of finished work."""

    def finish(self, outcome: str) -> None:
        """The work ended; `outcome` is a few words such as "12 spans" or "copied"."""


class Observer(Protocol):
    """Receives what happens during a long operation. Methods may be called from several threads."""

    def start(self, name: str, total: int | None) -> Task:
        """A piece of work begins: its short name and its size in bytes, if that is known."""

    def note(self, message: str, kind: str = "") -> None:
        """One line that the user should see, such as a layer that was skipped and why.

        There may be as many as an image has parts. `kind` is what those say that may be summed up.
        """


class _SilentTask:
    def advance(self, amount: int) -> None:
        pass

    def finish(self, outcome: str) -> None:
        pass


class SilentObserver:
    """The observer that ignores everything."""

    def start(self, name: str, total: int | None) -> Task:
        return _SilentTask()

    def note(self, message: str, kind: str = "") -> None:
        pass


class Work(Closing):
    """A task that ends with its `with`: as "failed", unless `outcome` was set. Implements `Task`."""

    def __init__(self, observer: Observer, name: str, total: int | None) -> None:
        self.outcome = "failed"
        self._task = observer.start(name, total)
        self.advance = self._task.advance
        self.finish = self._task.finish

    def close(self) -> None:
        """Tell how it ended."""
        self.finish(self.outcome)
