"""What every object that holds a file or a connection does: it is closed when its `with` ends."""

from __future__ import annotations

from types import TracebackType
from typing import TypeVar

_Self = TypeVar("_Self", bound="Closing")


class Closing:
    """Base of context managers that are closed at the end, with or without an error."""

    def close(self) -> None:
        """Let go of what is held; may be called twice."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
