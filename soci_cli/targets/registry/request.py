"""One request to a registry and its answer, as data."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import requests

from soci_cli.errors import RegistryError, UnreachableError
from soci_cli.targets.registry.bodies import NETWORK_ERRORS, read_pieces
from soci_cli.targets.registry.messages import reason_of, redacted

_REST_BYTES = 64 << 10
_REST_SECONDS = 5.0


class Body(Protocol):
    """A request body of known length that can be sent again from its start."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[memoryview]: ...


@dataclass(frozen=True)
class Request:
    """One request.

    `path` is below `/v2`, such as `/library/app/manifests/latest`, or a whole URL, such as an upload's
    Location. `scope` is of the token specification, such as `repository:library/app:pull,push`.
    `capability` is what a server must be able to do to be asked: "pull", "resolve" or "push". Every status
    that is not in `ok` is an error; `missing` is the advice for a 404. `keeps_redirect`: the place that the
    request is redirected to is used for the next such request as well.
    """

    method: str
    path: str
    scope: str = ""
    capability: str = "pull"
    ok: Container[int] = (200,)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | Body | None = field(default=None, repr=False)
    query: Sequence[tuple[str, str]] = ()
    missing: str = ""
    keeps_redirect: bool = False


@dataclass(frozen=True)
class Answer:
    """An answer, the URL that gave it in the end, and whether that is another one than was asked.

    `led_by` is the URL that led there. `mirror` is the endpoint's URL when a mirror was asked and not the
    registry itself.
    """

    response: requests.Response
    url: str
    redirected: bool = False
    led_by: str = ""
    mirror: str = ""

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        return self.response.headers

    def close(self) -> None:
        self.response.close()

    def read(self, limit: int, what: str, seconds: float) -> bytes:
        """The whole body, decoded.

        RegistryError when it is larger than `limit`, UnreachableError when it breaks off or takes too long.
        """
        with self.response:
            try:
                data = b"".join(read_pieces(self.response, limit + 1, seconds))
            except NETWORK_ERRORS as error:
                raise UnreachableError(
                    f"{what} from {redacted(self.url)}: {reason_of(error)}"
                ) from error
        if len(data) > limit:
            raise RegistryError(
                f"{what} from {redacted(self.url)} is larger than {limit} bytes, which is not accepted"
            )
        return data

    def finish(self) -> None:
        """Drop a short body, so that its connection can be used again."""
        with suppress(*NETWORK_ERRORS), self.response:
            for _ in read_pieces(self.response, _REST_BYTES, _REST_SECONDS):
                pass
