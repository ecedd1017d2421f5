"""What a fault does to a request. Each action is called with the exchange, in place of passing it on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import Protocol

from tests.support.servers.exchange import PIECE, Answer, Body, Exchange, Headers


class Action(Protocol):
    """Serves the request of an exchange in some way."""

    def __call__(self, exchange: Exchange) -> None: ...


@dataclass(frozen=True)
class Reply:
    """Answers without asking the upstream, after the whole request was read."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    def __call__(self, exchange: Exchange) -> None:
        exchange.drain()
        exchange.answer(*self.parts())

    def parts(self) -> tuple[int, Headers, list[bytes]]:
        headers = [("Content-Length", str(len(self.body))), *self.headers.items()]
        return self.status, headers, [self.body]


@dataclass(frozen=True)
class ReplyEarly:
    """Answers before the body of the request was read, then closes the connection."""

    reply: Reply

    def __call__(self, exchange: Exchange) -> None:
        status, headers, body = self.reply.parts()
        exchange.answer(status, [*headers, ("Connection", "close")], body)
        exchange.refuse_body()


def error_reply(status: int, code: str, message: str = "", **headers: str) -> Reply:
    """A reply as registries write errors. Header names are written with `_` for `-`."""
    body = {"errors": [{"code": code, "message": message or code.lower(), "detail": None}]}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"Content-Type": "application/json", **named}, json.dumps(body).encode())


def html_reply(status: int) -> Reply:
    """A reply of something that is no registry: a page."""
    page = b"<!DOCTYPE html><html><body><h1>Welcome to nginx!</h1></body></html>\n"
    return Reply(status, {"Content-Type": "text/html; charset=utf-8"}, page)


@dataclass(frozen=True)
class Redirect:
    """Redirects to a URL; `{path}` in it becomes path and query, so `{path}` alone goes in circles."""

    url: str
    status: int = 307

    def __call__(self, exchange: Exchange) -> None:
        Reply(self.status, {"Location": self.url.replace("{path}", exchange.path)})(exchange)


@dataclass(frozen=True)
class Reset:
    """Reads the request and resets the connection instead of answering."""

    def __call__(self, exchange: Exchange) -> None:
        exchange.drain()
        exchange.reset()


@dataclass(frozen=True)
class ResetUpload:
    """Resets after so many bytes of the request's body; the upstream gets these, and no more."""

    after: int

    def __call__(self, exchange: Exchange) -> None:
        def body() -> Iterator[bytes]:
            yield from exchange.body().first(self.after)
            exchange.reset()

        exchange.ask(body=body())
        exchange.reset()  # the upstream wanted no body


@dataclass(frozen=True)
class ResetAnswer:
    """Resets after so many bytes of the answer's body."""

    after: int

    def __call__(self, exchange: Exchange) -> None:
        def body(answer: Answer) -> Iterator[bytes]:
            yield from answer.body.first(self.after)
            exchange.wait(0.05)  # a reset drops what is still on its way
            exchange.reset()

        answer = exchange.ask()
        exchange.answer(answer.status, answer.headers, body(answer))


@dataclass(frozen=True)
class CutAnswer:
    """Closes cleanly after so many bytes of the body; Content-Length still promises all of it."""

    after: int

    def __call__(self, exchange: Exchange) -> None:
        def body(answer: Answer) -> Iterator[bytes]:
            yield from answer.body.first(self.after)
            exchange.hang_up()

        answer = exchange.ask()
        exchange.answer(answer.status, answer.headers, body(answer))


@dataclass(frozen=True)
class ShortenAnswer:
    """Answers the first so many bytes of the body, with a Content-Length that says so."""

    to: int

    def __call__(self, exchange: Exchange) -> None:
        answer = exchange.ask()
        body = b"".join(answer.body.first(self.to))
        headers = [("Content-Length", str(len(body))), *_without(answer.headers, "content-length")]
        exchange.answer(answer.status, headers, [body])


@dataclass(frozen=True)
class FlipByte:
    """Changes the byte at this offset of the answer's body."""

    at: int = 0

    def __call__(self, exchange: Exchange) -> None:
        def body(answer: Answer) -> Iterator[bytes]:
            yield from answer.body.first(self.at)
            piece = next(answer.body, b"")
            yield from (bytes([piece[0] ^ 0xFF]), piece[1:]) if piece else ()
            yield from answer.body

        answer = exchange.ask()
        exchange.answer(answer.status, answer.headers, body(answer))


@dataclass(frozen=True)
class FloodAnswer:
    """Answers this many bytes in place of the body.

    `declared` is what Content-Length says; None leaves it out, the body comes in chunks.
    """

    size: int
    declared: int | None = None
    filler: bytes = b" "

    def __call__(self, exchange: Exchange) -> None:
        answer = exchange.ask()
        headers = _without(answer.headers, "content-length")
        if self.declared is not None:
            headers.append(("Content-Length", str(self.declared)))
        filled = Body(repeat(self.filler * (PIECE // len(self.filler))))
        exchange.answer(answer.status, headers, filled.first(self.size))


@dataclass(frozen=True)
class Pause:
    """Waits before the request is passed on, or at this byte of the answer's body."""

    seconds: float
    at: int | None = None

    def __call__(self, exchange: Exchange) -> None:
        def body(answer: Answer, at: int) -> Iterator[bytes]:
            yield from answer.body.first(at)
            exchange.wait(self.seconds)
            yield from answer.body

        if self.at is None:
            exchange.wait(self.seconds)
        answer = exchange.ask()
        exchange.answer(
            answer.status,
            answer.headers,
            answer.body if self.at is None else body(answer, self.at),
        )


@dataclass(frozen=True)
class Throttle:
    """Sends the answer's body at this many bytes a second, in twenty pieces a second."""

    rate: int

    def __call__(self, exchange: Exchange) -> None:
        def body(answer: Answer) -> Iterator[bytes]:
            for piece in answer.body:
                for start in range(0, len(piece), step):
                    exchange.wait(step / self.rate)
                    yield piece[start : start + step]

        step = max(1, self.rate // 20)
        answer = exchange.ask()
        exchange.answer(answer.status, answer.headers, body(answer))


@dataclass(frozen=True)
class Hang:
    """Reads the request and says nothing until the proxy is closed."""

    def __call__(self, exchange: Exchange) -> None:
        exchange.drain()
        exchange.wait(None)


@dataclass(frozen=True)
class IgnoreRange:
    """Asks the upstream without Range, so that it answers 200 and everything."""

    def __call__(self, exchange: Exchange) -> None:
        pass_on(exchange, exchange.ask(without={"range"}))


@dataclass(frozen=True)
class DropHeaders:
    """Leaves out headers of the answer, whatever their case; without Content-Length it is chunked."""

    names: tuple[str, ...]

    def __call__(self, exchange: Exchange) -> None:
        answer = exchange.ask()
        exchange.answer(answer.status, _without(answer.headers, *self.names), answer.body)


@dataclass(frozen=True)
class SetHeaders:
    """Adds headers to the answer, in place of those of the same name."""

    headers: Mapping[str, str]

    def __call__(self, exchange: Exchange) -> None:
        answer = exchange.ask()
        headers = [*_without(answer.headers, *self.headers), *self.headers.items()]
        exchange.answer(answer.status, headers, answer.body)


@dataclass(frozen=True)
class ForgetUpload:
    """Cancels the upload that the request belongs to, then passes the request on."""

    def __call__(self, exchange: Exchange) -> None:
        cancelled = exchange.ask(
            method="DELETE", without={"content-length", "content-range"}, body=[]
        )
        assert cancelled.status == 204, f"{exchange.path} is not an upload: {cancelled.status}"
        pass_on(exchange, exchange.ask())


def pass_on(exchange: Exchange, answer: Answer) -> None:
    """Answers as the upstream did."""
    exchange.answer(answer.status, answer.headers, answer.body)


def _without(headers: Headers, *names: str) -> Headers:
    dropped = {name.lower() for name in names}
    return [(name, value) for name, value in headers if name.lower() not in dropped]
