"""One request, asked of the servers that may answer it: which of them, and again where that helps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from soci_cli.errors import RegistryError, SociError
from soci_cli.parallel import no_check
from soci_cli.targets.registry.hosts import Endpoint
from soci_cli.targets.registry.request import Answer, Request
from soci_cli.targets.registry.retry import Attempts

if TYPE_CHECKING:
    from soci_cli.targets.registry.client import Client

_T = TypeVar("_T")


class Asking:
    """One request, asked of the servers that may answer it until one does.

    Mirrors are asked in turn, each once, because they are a help and not a must; then the registry itself,
    again where that makes sense. What is read of an answer belongs to the attempt.
    """

    def __init__(
        self,
        client: Client,
        request: Request,
        servers: Sequence[Endpoint],
        most: int | None,
        check: Callable[[], None] = no_check,
    ) -> None:
        """`servers` has the registry itself last; `most` is the number of attempts there.

        `check` is called before each attempt but the first; what it raises ends asking.
        """
        self._check = check
        self._client = client
        self.request = request
        self._mirrors = deque(servers[:-1])
        self._asked: Endpoint | None = None  # the mirror that was asked last, if it was one
        self._last = servers[-1]
        self._attempts = Attempts(client.options.retries, most)

    @property
    def has_mirrors(self) -> bool:
        """Whether a mirror may answer."""
        return bool(self._mirrors)

    def run(self, use: Callable[[Answer], _T]) -> _T:
        """What `use` makes of an answer, which it reads and checks, or gives back to be read.

        An error of `use` counts like one of the request.
        """
        while True:
            try:
                mirror = self._asked = self._mirror()
                number = self._attempts.number
                answer = self._client.attempt(self.request, mirror or self._last, number)
                try:
                    return use(replace(answer, mirror=mirror.url if mirror else ""))
                except BaseException:
                    answer.close()
                    raise
            except SociError as error:
                self.failed(error)

    def failed(self, error: SociError, *, progressed: bool = False) -> None:
        """Takes note of an error. Raises it where nobody is left to be asked.

        `progressed`: some of the answer arrived before, so that the same server may be asked again.
        """
        self._check()
        if self.request.keeps_redirect:
            self._client.redirects.forget(((self._asked or self._last).url, self.request.path))
        if self._asked is not None:
            self._client.mirror_failed(self._asked.url, error)
            if not progressed:
                self._mirrors.remove(self._asked)
            return
        if not isinstance(error, RegistryError):
            raise error
        if progressed:
            self._attempts.progressed()
        self._attempts.failed(error)
        self._check()

    def _mirror(self) -> Endpoint | None:
        while self._mirrors and self._client.has_struck_out(self._mirrors[0]):
            self._mirrors.popleft()
        return self._mirrors[0] if self._mirrors else None
