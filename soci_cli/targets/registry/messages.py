"""What went wrong with a request, in one line without secrets."""

from __future__ import annotations

import json
import socket
import ssl
from http.client import responses
from urllib.parse import urlsplit, urlunsplit

import requests
import urllib3

from soci_cli.errors import NotFoundError, RegistryError, SociError
from soci_cli.targets._disk import shown
from soci_cli.targets.registry.retry import retry_after
from soci_cli.targets.registry.transport import raw_stream

_BODY_LIMIT = 64 * 1024
_SHOWN = 200


def redacted(url: str) -> str:
    """A URL without user, password, query and fragment, which may hold secrets."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "a URL that cannot be read"
    query = "?…" if parts.query else ""
    return shown(urlunsplit((parts.scheme, host, parts.path, "", "")) + query)


def refusal(method: str, url: str, response: requests.Response, hint: str = "") -> SociError:
    """The error for an answer that is none of those wanted. Closes the response.

    NotFoundError for 404, RegistryError for the rest.
    """
    status = response.status_code
    said = _registry_message(response)
    text = f"{method} {redacted(url)}: {status} {responses.get(status, '')}".rstrip()
    text += (f": {said}" if said else "") + (f"; {hint}" if hint else "")
    if status == 404:
        return NotFoundError(text)
    return RegistryError(text, status, retry_after(response.headers.get("Retry-After")))


def failure(method: str, url: str, error: Exception, attempts: int = 1) -> RegistryError:
    """The error for a request that got no answer."""
    tried = f" ({attempts} attempts)" if attempts > 1 else ""
    return RegistryError(f"{method} {redacted(url)}: {reason_of(error)}{tried}")


def reason_of(error: BaseException) -> str:
    """The root of a network error in a few words; those of requests nest many others."""
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
        if isinstance(one, OSError) and one.strerror and not isinstance(one, TimeoutError):
            return one.strerror.lower()
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
    return shown(str(found[-1]) or type(found[-1]).__name__, _SHOWN)


def _registry_message(response: requests.Response) -> str:
    """What the registry itself says of an error (OCI distribution spec, "Error Codes")."""
    try:
        with response:
            body = raw_stream(response).read(_BODY_LIMIT, decode_content=True)
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError):
        return ""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind == "text/html":
        return "an HTML page; is this a registry?" if response.status_code == 404 else ""
    text = body.decode(errors="replace").strip()
    try:
        document = json.loads(text)
        errors = document.get("errors") if isinstance(document, dict) else None
    except (ValueError, RecursionError):
        return shown(text.partition("\n")[0], _SHOWN)
    if isinstance(errors, list):
        return "; ".join(filter(None, map(_one_error, errors[:2])))
    for key in ("message", "details", "error_description", "error"):
        said = document.get(key) if isinstance(document, dict) else None
        if isinstance(said, str) and said:
            return shown(said, _SHOWN)
    return ""


def _one_error(error: object) -> str:
    if not isinstance(error, dict):
        return ""
    code, message = (str(error.get(key) or "") for key in ("code", "message"))
    detail = error.get("detail")
    text = ": ".join(filter(None, (code, message)))
    if isinstance(detail, str) and detail:
        text += f" ({detail})"
    return shown(text, _SHOWN)
