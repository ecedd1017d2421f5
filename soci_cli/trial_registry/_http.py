"""Requests, responses and the small header grammars (RFC 9110), without any socket."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from urllib.parse import parse_qsl, unquote

from soci_cli.errors import SociError
from soci_cli.trial_registry._body import Body

_MAX_PARAMETERS = 100
_ORIGIN = re.compile(r"https?://[^/?]*", re.IGNORECASE)
_RANGE = re.compile(r"bytes=[ \t]*([0-9]*)[ \t]*-[ \t]*([0-9]*)", re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")
_ENTITY_TAG = re.compile(r'(W/)?"([^"]*)"')
_MAX_DIGITS = 18


class Refused(SociError):
    """A request that is answered with an error; `code` is one of the distribution spec."""

    def __init__(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers or {}


@dataclass(frozen=True)
class Request:
    """One request. `path` is without percent escapes; of a repeated parameter the last counts."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Message
    body: Body


@dataclass(frozen=True)
class FileRegion:
    """Bytes of an open file, which whoever sends the response closes."""

    fd: int
    start: int
    length: int


@dataclass(frozen=True)
class Response:
    """An answer. Content-Length is added where it is sent."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | FileRegion = b""


def json_response(status: int, value: object, headers: Mapping[str, str] | None = None) -> Response:
    """An answer with a JSON document."""
    data = json.dumps(value, separators=(",", ":")).encode()
    return Response(status, {"Content-Type": "application/json", **(headers or {})}, data)


def error_response(refused: Refused) -> Response:
    """The error as the distribution spec has it ("Error Codes")."""
    error = {"code": refused.code, "message": str(refused)}
    return json_response(refused.status, {"errors": [error]}, refused.headers)


def split_target(target: str) -> tuple[str, dict[str, str]]:
    """Path and query parameters of a request line. Refused when there are too many parameters."""
    path, _, query = _ORIGIN.sub("", target, count=1).partition("?")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
    except ValueError as error:
        raise Refused(400, "UNSUPPORTED", f"the query cannot be read: {error}") from error
    return unquote(path), dict(pairs)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Start and length that a Range header asks of `size` bytes; None for all of them.

    Several ranges and what is no range are ignored, as RFC 9110 (section 14.2) allows. Refused with
    416 when no byte can be meant.
    """
    match = _RANGE.fullmatch((header or "").strip())
    if match is None or not (match[1] or match[2]):
        return None
    first, last = (int(text or 0) if len(text) <= _MAX_DIGITS else size for text in match.groups())
    if match[1]:
        start, end = first, min(last, size - 1) if match[2] else size - 1
    elif size == 0 and last:
        return None
    else:
        start, end = max(0, size - last), size - 1
    if start > end:
        content_range = {"Content-Range": f"bytes */{size}"}
        raise Refused(416, "SIZE_INVALID", f"{size} bytes have no such range", content_range)
    return start, end - start + 1


def parse_content_range(header: str | None) -> tuple[int, int] | None:
    """First byte and length of an uploaded chunk, `FIRST-LAST`. Refused for anything else."""
    if header is None:
        return None
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None or int(match[2]) < int(match[1]):
        raise Refused(400, "BLOB_UPLOAD_INVALID", "Content-Range is not FIRST-LAST")
    return int(match[1]), int(match[2]) - int(match[1]) + 1


def entity_tag(digest: str) -> str:
    """The strong entity tag of content: its digest in quotes."""
    return f'"{digest}"'


def precondition(headers: Message) -> Callable[[str | None], bool]:
    """Whether If-Match and If-None-Match allow a change of what has this digest, or None, now."""
    wanted, unwanted = (
        ", ".join(lines) if (lines := headers.get_all(name)) else None
        for name in ("If-Match", "If-None-Match")
    )

    def names(header: str, digest: str | None) -> bool:
        """Whether a list of entity tags, or `*`, names what is there (RFC 9110, section 13.1)."""
        if digest is None or header.strip() == "*":
            return digest is not None
        return any(tag == digest and not weak for weak, tag in _ENTITY_TAG.findall(header))

    def allows(digest: str | None) -> bool:
        if wanted is not None and not names(wanted, digest):
            return False
        return unwanted is None or not names(unwanted, digest)

    return allows
