"""What went wrong with a request, in one line without secrets."""

from __future__ import annotations

import base64
import binascii
import json
import re
import socket
import ssl
from contextlib import suppress
from http.client import responses
from urllib.parse import parse_qs, urlsplit, urlunsplit

import requests
import urllib3

from soci_cli.errors import NotInRegistryError, RegistryError, UnreachableError
from soci_cli.targets.registry.bodies import NETWORK_ERRORS, read_pieces
from soci_cli.targets.registry.retry import retry_after
from soci_cli.text import brief

_BODY_LIMIT = 64 * 1024
_BODY_SECONDS = 5.0
_SHOWN = 200
_ERRORS = 2  # of those in one answer that are shown
_IN_URL = re.compile(r"(?<=://)[^\s/?#@]*@|\?\S+")  # what may be secret in a URL
_SHORTEST_SECRET = 4  # shorter ones are in many words


def redacted(url: str) -> str:
    """A URL without user, password, query and fragment, which may hold secrets."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "a URL that cannot be read"
    query = "?…" if parts.query else ""
    return brief(urlunsplit((parts.scheme, host, parts.path, "", "")) + query)


def refusal(
    method: str,
    url: str,
    response: requests.Response,
    hint: str,
    *,
    transient: bool,
    missing: type[RegistryError] = NotInRegistryError,
) -> RegistryError:
    """The error for an answer that is none of those wanted; `missing` for 404. Closes the response."""
    status = response.status_code
    message, codes = _registry_message(response)
    said = brief(_without_secrets(message, response.request), 2 * _SHOWN)
    text = f"{method} {redacted(url)}: {status} {responses.get(status, '')}".rstrip()
    text += (f": {said}" if said else "") + (f"; {hint}" if hint else "")
    kind = missing if status == 404 else RegistryError
    asked = retry_after(response.headers.get("Retry-After"), response.headers.get("Date"))
    return kind(text, status, asked, codes, transient=transient)


def failure(method: str, url: str, error: Exception) -> UnreachableError:
    """The error for a request that got no answer."""
    return UnreachableError(
        f"{method} {redacted(url)}: {reason_of(error)}",
        transient=not _is_final(error),
        refused=any(isinstance(one, ConnectionRefusedError) for one in causes(error)),
    )


def _is_final(error: Exception) -> bool:
    """Whether trying again cannot help: a certificate, a proxy's settings, a URL that is none."""
    if isinstance(error, _BAD_REQUESTS):
        return True
    found = causes(error)
    if isinstance(error, requests.exceptions.SSLError):
        # A peer that hung up in the middle of a handshake may have been busy.
        return not any(isinstance(one, (ssl.SSLEOFError, ssl.SSLZeroReturnError)) for one in found)
    return any(isinstance(one, socket.gaierror) and one.errno == socket.EAI_NONAME for one in found)


def causes(error: BaseException) -> list[BaseException]:
    """An error and all that it was made of, the outermost first."""
    pending: list[object] = [error]
    seen: set[int] = set()
    found: list[BaseException] = []
    while pending:
        one = pending.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        found.append(one)
        pending += [*one.args, getattr(one, "reason", None), one.__cause__, one.__context__]
    return found


def reason_of(error: BaseException) -> str:
    """The root of a network error in a few words; those of requests nest many others."""
    found = causes(error)
    for one in found:
        if isinstance(one, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted: {one.verify_message}; name its authority with "
                "--tlscacert, or use --skip-verify"
            )
    for one in found:
        if isinstance(one, ssl.SSLError) and one.reason:
            return f"no TLS connection: {one.reason.lower().replace('_', ' ')}"
    for one in found:
        if isinstance(one, socket.gaierror):
            return f"the host cannot be found: {one.strerror}"
    for one in found:
        if isinstance(one, TimeoutError) or not isinstance(one, OSError):
            continue
        if isinstance(one.strerror, str) and one.strerror:
            return brief(one.strerror.lower(), _SHOWN)
    for one in found:
        if isinstance(
            one,
            (
                TimeoutError,
                requests.Timeout,
                urllib3.exceptions.TimeoutError,
            ),
        ):
            return "no answer in time"
    for one in found:
        if isinstance(one, urllib3.exceptions.IncompleteRead):
            return "the connection ended in the middle of the answer"
    for one in found:
        if isinstance(one, (*_BAD_URLS, UnicodeError)):
            return "this URL cannot be used"
    return brief(_IN_URL.sub("…", str(found[-1])) or type(found[-1]).__name__, _SHOWN)


_BAD_URLS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    urllib3.exceptions.LocationValueError,
)


_BAD_REQUESTS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidHeader,
    requests.exceptions.InvalidProxyURL,
)


def _without_secrets(text: str, request: requests.PreparedRequest | None) -> str:
    """What a registry said, without what we told it in confidence."""
    secrets = []
    if request is not None:
        scheme, _, value = request.headers.get("Authorization", "").partition(" ")
        secrets.append(value)
        if scheme == "Basic":
            with suppress(binascii.Error, UnicodeDecodeError):
                secrets.append(base64.b64decode(value).decode().partition(":")[2])
        if isinstance(request.body, bytes):
            secrets += parse_qs(request.body.decode(errors="replace")).get("refresh_token", [])
    for secret in secrets:
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "…")
    return text


def _registry_message(response: requests.Response) -> tuple[str, tuple[str, ...]]:
    """What the registry itself says of an error, and its codes (OCI distribution spec, "Error Codes")."""
    body = b""
    with suppress(*NETWORK_ERRORS), response:
        for piece in read_pieces(response, _BODY_LIMIT, _BODY_SECONDS):
            body += piece
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind == "text/html":
        odd = response.status_code == 404 or response.status_code < 300
        return "an HTML page; is this a registry?" if odd else "", ()
    text = body.decode(errors="replace").strip()
    try:
        document = json.loads(text)
        errors = document.get("errors") if isinstance(document, dict) else None
    except (ValueError, RecursionError):
        return text.partition("\n")[0], ()
    if isinstance(errors, list):
        shown = [one for one in errors[:_ERRORS] if isinstance(one, dict)]
        codes = (one.get("code") for one in shown)
        said = "; ".join(filter(None, map(_one_error, shown)))
        return said, tuple(code for code in codes if isinstance(code, str))
    for key in ("message", "details", "error_description", "error"):
        told = document.get(key) if isinstance(document, dict) else ""
        if isinstance(told, str) and told:
            return told, ()
    return "", ()


def _one_error(error: dict[str, object]) -> str:
    code, message = (str(error.get(key) or "") for key in ("code", "message"))
    detail = error.get("detail")
    if isinstance(detail, dict):
        detail = detail.get("message") or detail.get("reason")
    text = ": ".join(filter(None, (code, message)))
    if isinstance(detail, str) and detail:
        text += f" ({detail})"
    return text
