"""A token server as Docker registries use it (distribution, docs/spec/auth/token.md and oauth.md)."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.support.servers.ca import KeyPair, make_ca
from tests.support.servers.exchange import read_body
from tests.support.servers.server import Request, Server

SERVICE = "registry.test"

_ISSUER = "token server of a test"
_LEEWAY = 60  # seconds that docker-registry takes a token for after its end
_COORDINATE = 32  # bytes of a number in a signature of P-256


@dataclass(frozen=True)
class TokenRequest:
    """A request for a token. `grant_type` is empty for GET; `user` is None without credentials.

    `user` is who the credentials name, right or wrong; "" when they are a refresh token.
    """

    method: str
    user: str | None
    service: str
    scopes: tuple[str, ...]
    grant_type: str
    wants_refresh_token: bool
    status: int


class _Refused(Exception):
    def __init__(self, status: int, code: str) -> None:
        super().__init__(status, code)
        self.status = status
        self.code = code


class TokenServer(Server):
    """Gives users what they ask for, and everyone else what can be pulled, or nothing.

    `realm` is the URL to ask. These may be changed at any time: `users`, passwords by name;
    `lifetime`, for how many seconds registries take the tokens (0: they have expired already);
    `reported_lifetime`, what `expires_in` says (None: not there); `allow_anonymous_pull`; `withheld`,
    repositories for which no token is good. `log` has all requests.
    """

    def __init__(
        self,
        folder: Path,
        users: Mapping[str, str],
        *,
        allow_anonymous_pull: bool = True,
        tls: KeyPair | None = None,
    ) -> None:
        self.users = dict(users)
        self.lifetime = 300
        self.reported_lifetime: int | None = 300
        self.allow_anonymous_pull = allow_anonymous_pull
        self.withheld: set[str] = set()
        self.log: list[TokenRequest] = []
        self._refusals: list[_Refusal] = []
        self._refresh_tokens: dict[str, str] = {}
        self._ca = make_ca(folder)
        self._signer = _Signer(self._ca.issue("token-signer"))
        super().__init__(tls)
        self.realm = f"{self.url}/token"

    def registry_config(self) -> dict[str, str]:
        """What docker-registry must know, its setting auth.token."""
        return {
            "realm": self.realm,
            "service": SERVICE,
            "issuer": _ISSUER,
            "rootcertbundle": str(self._ca.cert),
        }

    def identity_token(self, user: str) -> str:
        """A new refresh token of a user."""
        token = secrets.token_urlsafe(24)
        self._refresh_tokens[token] = user
        return token

    def revoke_identity_tokens(self) -> None:
        self._refresh_tokens.clear()

    def refuse(self, status: int, *, times: int | None = None, method: str = "") -> None:
        """Refuses the next `times` requests, all when None, or only those with this method."""
        self._refusals.append(_Refusal(status, times, method))

    def accept(self) -> None:
        """Ends all refusals."""
        self._refusals.clear()

    def mint(self, *scopes: str, user: str = "") -> str:
        """A token for these scopes that registries take for `lifetime` seconds."""
        now = int(time.time())
        return self._signer.sign(
            {
                "iss": _ISSUER,
                "sub": user,
                "aud": SERVICE,
                "exp": now + self.lifetime - _LEEWAY - (self.lifetime <= 0),
                "nbf": now - 3600,
                "iat": now - 3600,
                "jti": secrets.token_hex(8),
                "access": [_access(scope) for scope in scopes],
            }
        )

    def serve(self, request: Request) -> None:
        sent = b"".join(read_body(request)).decode()
        url = urlsplit(request.path)
        form = parse_qs(url.query if request.command == "GET" else sent)
        asked = _Asked(request.command, form, _basic(request.headers.get("Authorization", "")))
        try:
            if url.path != "/token":
                raise _Refused(404, "NOT_FOUND")
            self._check_refusals(request.command)
            user = self._authenticate(asked)
            status, answer = 200, self._grant(asked, user)
        except _Refused as refused:
            status, answer = refused.status, _error(refused)
        self.log.append(asked.logged(status))
        body = json.dumps(answer).encode()
        request.send_response_only(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def _check_refusals(self, method: str) -> None:
        for refusal in self._refusals:
            if refusal.times != 0 and refusal.method in ("", method):
                if refusal.times is not None:
                    refusal.times -= 1
                raise _Refused(refusal.status, "DENIED")

    def _authenticate(self, asked: _Asked) -> str | None:
        """The user, None for nobody in particular."""
        if asked.service != SERVICE:
            raise _Refused(400, "invalid_request")
        if asked.grant_type == "refresh_token":
            user = self._refresh_tokens.get(asked.value("refresh_token"))
            if user is None:
                raise _Refused(401, "invalid_grant")
            return user
        if asked.method == "POST" and asked.grant_type != "password":
            raise _Refused(400, "unsupported_grant_type")
        if asked.credentials is None:
            if not self.allow_anonymous_pull:
                raise _Refused(401, "UNAUTHORIZED")
            return None
        user, password = asked.credentials
        if self.users.get(user) != password:
            raise _Refused(401, "UNAUTHORIZED")
        return user

    def _grant(self, asked: _Asked, user: str | None) -> dict[str, object]:
        granted = [scope for asked_for in asked.scopes if (scope := self._granted(asked_for, user))]
        token = self.mint(*granted, user=user or "")
        issued = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        answer: dict[str, object] = {"access_token": token, "issued_at": issued}
        if asked.method == "GET":
            answer["token"] = token
        else:
            answer["scope"] = " ".join(granted)
        if self.reported_lifetime is not None:
            answer["expires_in"] = self.reported_lifetime
        if user is not None and asked.wants_refresh_token:
            answer["refresh_token"] = self.identity_token(user)
        return answer

    def _granted(self, scope: str, user: str | None) -> str | None:
        """What is given of a scope, None for nothing."""
        kind, name, actions = _parse_scope(scope)
        if name in self.withheld:
            return None
        given = [action for action in actions if user is not None or action == "pull"]
        return f"{kind}:{name}:{','.join(given)}" if given else None


@dataclass
class _Refusal:
    status: int
    times: int | None
    method: str


class _Asked:
    """A request for a token, read from its query or form."""

    def __init__(
        self, method: str, form: Mapping[str, list[str]], basic: tuple[str, str] | None
    ) -> None:
        self._form = form
        self.method = method
        self.service = self.value("service")
        self.scopes = tuple(scope for value in form.get("scope", ()) for scope in value.split())
        self.grant_type = self.value("grant_type") if method == "POST" else ""
        self.wants_refresh_token = (
            self.value("offline_token") == "true" or self.value("access_type") == "offline"
        )
        self.credentials = basic
        if self.grant_type == "password":
            self.credentials = self.value("username"), self.value("password")
        elif self.grant_type == "refresh_token":
            self.credentials = "", self.value("refresh_token")

    def value(self, name: str) -> str:
        return self._form.get(name, [""])[0]

    def logged(self, status: int) -> TokenRequest:
        return TokenRequest(
            self.method,
            self.credentials[0] if self.credentials else None,
            self.service,
            self.scopes,
            self.grant_type,
            self.wants_refresh_token,
            status,
        )


class _Signer:
    """Signs tokens (RFC 7515, ES256). The certificate goes along, as docker-registry wants it."""

    def __init__(self, pair: KeyPair) -> None:
        certificate = x509.load_pem_x509_certificate(pair.cert.read_bytes())
        key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        encoded = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
        self._header = _part({"typ": "JWT", "alg": "ES256", "x5c": [encoded]})

    def sign(self, claims: Mapping[str, object]) -> str:
        text = f"{self._header}.{_part(claims)}"
        signature = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        joined = b"".join(number.to_bytes(_COORDINATE, "big") for number in signature)
        return f"{text}.{_url64(joined)}"


def _part(value: Mapping[str, object]) -> str:
    return _url64(json.dumps(value).encode())


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _basic(header: str) -> tuple[str, str] | None:
    kind, _, value = header.partition(" ")
    if kind.lower() != "basic":
        return None
    user, _, password = base64.b64decode(value).decode().partition(":")
    return user, password


def _parse_scope(scope: str) -> tuple[str, str, list[str]]:
    """Kind, name and actions. A name may contain a colon."""
    kind, _, rest = scope.partition(":")
    name, _, actions = rest.rpartition(":")
    return kind, name, actions.split(",")


def _access(scope: str) -> dict[str, object]:
    kind, name, actions = _parse_scope(scope)
    return {"type": kind, "name": name, "actions": actions}


def _error(refused: _Refused) -> dict[str, object]:
    """An error for clients that know the one way of writing it, or OAuth's."""
    message = "refused by the token server"
    errors = [{"code": refused.code, "message": message, "detail": None}]
    return {"errors": errors, "error": refused.code, "error_description": message}
