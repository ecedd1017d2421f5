"""Which servers answer for a registry, and how TLS to them is set up.

The folders of `hosts.toml` files are containerd's (its docs/hosts.md), with Docker's layout of
certificate files beside it. Mirrors come first, the registry itself last.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import tomli

from soci_cli.errors import ConfigError, UsageError
from soci_cli.oci.references import DOCKER_HUB
from soci_cli.oci.values import describe
from soci_cli.targets.registry.options import RegistryOptions
from soci_cli.text import quote
from soci_cli.user_folders import base_folder

DOCKER_HUB_SERVER = "registry-1.docker.io"
CAPABILITIES = frozenset({"pull", "resolve", "push", "referrers"})

_SYSTEM_DIRS = (Path("/etc/containerd/certs.d"), Path("/etc/docker/certs.d"))
_USER_DIRS = ("containerd/certs.d", "docker/certs.d")
_BUNDLE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
_MAX_FILE = 1 << 20
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PATH = re.compile(r"[A-Za-z0-9._~%!$&'()*+,;=:@/-]*")
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ms|us|µs|ns|h|m|s))+")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}

_Pair = tuple[Path, Path | None]


@dataclass(frozen=True)
class TlsSettings:
    """How a server's certificate is checked and which certificates it is shown.

    `authorities` are files or folders that are trusted as well as the system's; `only`, where
    set, is trusted in place of all others. In `clients` a certificate without a key file holds
    its key itself.
    """

    skip_verify: bool = False
    authorities: tuple[Path, ...] = ()
    only: Path | None = None
    clients: tuple[_Pair, ...] = ()


@dataclass(frozen=True)
class Endpoint:
    """One server that answers for a registry.

    `url` has no slash at its end: `https://registry-1.docker.io/v2`. `capabilities` are of "pull",
    "resolve", "push" and "referrers". `namespace` is the registry that a mirror stands in for,
    sent as `?ns=`. With `assumed_http` plain HTTP was only guessed, and a TLS server may be there.
    `dial_timeout` are the seconds that connecting may take; None: the caller's choice.
    """

    url: str
    capabilities: frozenset[str]
    headers: Mapping[str, str] = field(repr=False)  # may hold a secret
    tls: TlsSettings
    namespace: str = ""
    assumed_http: bool = False
    dial_timeout: float | None = None


@dataclass(frozen=True)
class _Host:
    """One table of hosts.toml; without `url` it speaks of the registry itself."""

    url: str = ""
    capabilities: frozenset[str] = CAPABILITIES
    headers: Mapping[str, str] = field(default_factory=dict)
    skip_verify: bool | None = None
    authorities: tuple[Path, ...] = ()
    clients: tuple[_Pair, ...] = ()
    dial_timeout: float | None = None

    @property
    def speaks_of_tls(self) -> bool:
        return self.skip_verify is not None or bool(self.authorities or self.clients)


def endpoints(
    domain: str, options: RegistryOptions, environ: Mapping[str, str]
) -> tuple[Endpoint, ...]:
    """The servers of the registry `domain` in the order in which they are tried.

    `domain` is that of a Reference. Raises UsageError for one of certificate and key without the
    other, ConfigError for a hosts.toml that is broken and for files that cannot be read.
    """
    _check_flags(options)
    bundles = system_tls(environ).authorities
    *mirrors, own = _hosts(domain, options, environ)
    return (
        *(_endpoint(mirror, domain, _tls(mirror, bundles)) for mirror in mirrors),
        _own_endpoint(own, domain, options, bundles),
    )


def ssl_context(tls: TlsSettings) -> ssl.SSLContext:
    """A client's TLS context for one server, TLS 1.2 or later.

    The authorities of the system and of certifi count, and those of `tls`. Of several client
    certificates with keys of the same type the first one is used. Raises ConfigError for a file
    that is missing or holds no certificate or key.
    """
    if tls.only is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _trust(context, tls.only)
    else:
        import certifi  # certifi and the system's files take a moment to load

        context = _system_context()
        for path in (Path(certifi.where()), *tls.authorities):
            _trust(context, path)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # As containerd and curl: authorities made by hand seldom have all that RFC 5280 asks for, and
    # whatever certificate a user trusts is trusted, also when it is the server's own.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if tls.skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for certificate, key in reversed(tls.clients):  # OpenSSL keeps the last one of a type
        _load_client(context, certificate, key)
    return context


def _system_context() -> ssl.SSLContext:
    """A context with the system's authorities, wherever the system keeps them.

    Python's OpenSSL looks in the folders that it was built for. Where nothing is there, as on macOS, on
    Windows and with Python builds that can be moved, truststore finds them.
    """
    context = ssl.create_default_context()
    paths = ssl.get_default_verify_paths()
    if context.cert_store_stats()["x509_ca"] or (
        paths.capath and any(Path(paths.capath).iterdir())
    ):
        return context
    import truststore

    return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def system_tls(environ: Mapping[str, str]) -> TlsSettings:
    """TLS to a server that nothing is said of: the authorities that the environment names count."""
    bundles = (environ.get(name) for name in _BUNDLE_VARIABLES)
    return TlsSettings(authorities=tuple(Path(bundle) for bundle in bundles if bundle))


def configured_domains(options: RegistryOptions, environ: Mapping[str, str]) -> list[str]:
    """The registries that have a folder for hosts.toml, as HOST or HOST:PORT."""
    found = []
    for root in options.hosts_dirs or _usual_roots(environ):
        with suppress(OSError):
            found += [re.sub(r"_([0-9]+)_$", r":\1", folder.name) for folder in root.iterdir()]
    return found


def is_loopback(host: str) -> bool:
    """Whether a host, with or without a port, is this machine: localhost, 127.0.0.0/8 or ::1."""
    for name in (host, host.rpartition(":")[0]):
        name = name.strip("[]").lower()
        if name == "localhost":
            return True
        with suppress(ValueError):
            return ipaddress.ip_address(name).is_loopback
    return False


def _own_endpoint(
    host: _Host, domain: str, options: RegistryOptions, bundles: tuple[Path, ...]
) -> Endpoint:
    """The registry itself. What the command line says goes before hosts.toml."""
    flags_speak = bool(options.skip_verify or options.tls_ca or options.tls_cert)
    guessed = not host.url and is_loopback(domain) and not (flags_speak or host.speaks_of_tls)
    if not host.url:
        server = DOCKER_HUB_SERVER if domain == DOCKER_HUB else domain
        # As containerd: without `server`, capabilities at the top level mean nothing.
        url = f"{'http' if guessed else 'https'}://{server}/v2"
        host = replace(host, url=url, capabilities=CAPABILITIES)
    tls = _tls(host, bundles)
    if options.skip_verify:
        tls = replace(tls, skip_verify=True)
    if options.tls_ca is not None:
        tls = replace(tls, only=options.tls_ca, authorities=())
    if options.tls_cert is not None:
        tls = replace(tls, clients=((options.tls_cert, options.tls_key),))
    endpoint = _endpoint(host, domain, tls)
    if options.plain_http:
        url = "http://" + endpoint.url.partition("://")[2]
        return replace(endpoint, url=url, assumed_http=False)
    is_http = endpoint.url.startswith("http://")
    assumed = guessed or endpoint.assumed_http or (is_http and flags_speak)
    return replace(endpoint, assumed_http=assumed)


def _endpoint(host: _Host, domain: str, tls: TlsSettings) -> Endpoint:
    scheme, _, rest = host.url.partition("://")
    server = rest.partition("/")[0]
    is_registry = server == (DOCKER_HUB_SERVER if domain == DOCKER_HUB else domain)
    return Endpoint(
        url=host.url,
        capabilities=host.capabilities,
        headers=host.headers,
        tls=tls,
        namespace="" if is_registry else domain,
        # http:// beside TLS settings contradicts itself; containerd tries both then.
        assumed_http=scheme == "http" and host.speaks_of_tls,
        dial_timeout=host.dial_timeout,
    )


def _tls(host: _Host, bundles: tuple[Path, ...]) -> TlsSettings:
    return TlsSettings(bool(host.skip_verify), (*bundles, *host.authorities), None, host.clients)


def _check_flags(options: RegistryOptions) -> None:
    if (options.tls_cert is None) != (options.tls_key is None):
        raise UsageError("a client certificate needs both --tlscert and --tlskey")
    for flag, path in (
        ("--tlscacert", options.tls_ca),
        ("--tlscert", options.tls_cert),
        ("--tlskey", options.tls_key),
    ):
        if path is not None and not os.access(path, os.R_OK):
            reason = "cannot be read" if path.exists() else "no such file"
            raise ConfigError(f"{flag} {path}: {reason}; give a PEM file")


# Folders


def _hosts(domain: str, options: RegistryOptions, environ: Mapping[str, str]) -> tuple[_Host, ...]:
    """What the first folder for `domain` says; its last host is the registry itself."""
    roots = options.hosts_dirs
    if roots is None:
        roots = tuple(root for root in _usual_roots(environ) if _is_folder(root))
    for root in roots:
        if not _is_folder(root):
            raise ConfigError(f"{root}: no such folder of hosts.toml files")
        for folder in (root / name for name in _folder_names(domain)):
            try:
                folder.stat()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _unreadable(folder, error) from error
            return _read_folder(folder)
    return (_Host(),)


def _usual_roots(environ: Mapping[str, str]) -> Iterable[Path]:
    if os.geteuid() != 0:
        config = base_folder(environ, "CONFIG")
        if config is not None:
            yield from (config / name for name in _USER_DIRS)
    yield from _SYSTEM_DIRS


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # others' folders may be closed to us, as for nerdctl
        return False


def _folder_names(domain: str) -> Iterable[str]:
    host, colon, port = domain.rpartition(":")
    if colon and not domain.endswith("]"):
        yield f"{host}_{port}_"
    yield domain
    if colon and port == "443":
        yield host  # as nerdctl
    yield "_default"


def _read_folder(folder: Path) -> tuple[_Host, ...]:
    file = folder / "hosts.toml"
    data = _read(file)
    # As containerd: an empty file is the same as none.
    return _parse(data, file) if data else (_docker_layout(folder),)


def _docker_layout(folder: Path) -> _Host:
    """`*.crt` are authorities, `NAME.cert` with `NAME.key` is a client's certificate."""
    try:
        names = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise _unreadable(folder, error) from error
    clients = []
    for certificate in (path for path in names if path.suffix == ".cert"):
        key = certificate.with_suffix(".key")
        clients.append((certificate, key if key in names else None))
    authorities = tuple(path for path in names if path.suffix == ".crt")
    return _Host(authorities=authorities, clients=tuple(clients))


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_FILE + 1)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise _unreadable(file, error) from error
    if len(data) > _MAX_FILE:
        raise ConfigError(f"{file}: more than {_MAX_FILE} bytes is no hosts.toml")
    return data


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path}: cannot be read: {_reason(error, 'unknown error')}")


# hosts.toml


def _parse(data: bytes, file: Path) -> tuple[_Host, ...]:
    try:
        document = tomli.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text at byte {error.start}") from error
    except ValueError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{file}: not valid TOML: nested too deep") from error
    tables = document.get("host", {})
    if not isinstance(tables, dict):
        raise _wrong(f"{file}: host", "tables such as [host.'https://example.com']", tables)
    hosts = []
    for url, table in tables.items():
        where = f"{file}: host.{quote(_without_user(url))}"
        if not url or not isinstance(table, dict):
            raise _wrong(where, "a table that is named by a URL", table)
        hosts.append(_host(url, table, where, file.parent))
    server = document.get("server", "")
    if not isinstance(server, str):
        raise _wrong(f"{file}: server", "a URL", server)
    return (*hosts, _host(server, document, f"{file}", file.parent))


def _host(url: str, table: Mapping[str, object], where: str, folder: Path) -> _Host:
    skip_verify = table.get("skip_verify")
    if skip_verify is not None and not isinstance(skip_verify, bool):
        raise _wrong(f"{where}: skip_verify", "true or false", skip_verify)
    override_path = table.get("override_path", False)
    if not isinstance(override_path, bool):
        raise _wrong(f"{where}: override_path", "true or false", override_path)
    return _Host(
        url=url and _url(url, override_path, where),
        capabilities=_capabilities(table.get("capabilities", []), f"{where}: capabilities"),
        headers=_headers(table.get("header", {}), f"{where}: header"),
        skip_verify=skip_verify,
        authorities=_files(table.get("ca", []), f"{where}: ca", folder),
        clients=_clients(table.get("client", []), f"{where}: client", folder),
        dial_timeout=_duration(table.get("dial_timeout", ""), f"{where}: dial_timeout"),
    )


def _url(text: str, override_path: bool, where: str) -> str:
    """The root of the API at `text`; /v2 is added unless it is there or `override_path` says no."""
    wrong = _wrong(where, "a URL such as https://example.com:5000", _without_user(text))
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        port = parts.port
    except ValueError:
        raise wrong from None
    is_server = parts.scheme in ("http", "https") and _HOST.fullmatch(parts.netloc) and port != 0
    if not is_server or not _PATH.fullmatch(parts.path):
        raise wrong
    path = re.sub("/+", "/", parts.path).rstrip("/")
    if not override_path and not path.endswith("/v2"):
        path += "/v2"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _without_user(url: str) -> str:
    """A URL for a message: a name and password in it are secrets."""
    return re.sub(r"^(.*//)?.*@", r"\1...@", url)


def _capabilities(value: object, where: str) -> frozenset[str]:
    names = frozenset(name.lower() for name in _texts(value, where))
    if unknown := sorted(names - CAPABILITIES):
        raise _wrong(where, "pull, resolve, push or referrers", unknown[0])
    return names or CAPABILITIES


def _headers(value: object, where: str) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a table of headers")
    headers = {}
    for name, content in value.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigError(f"{where}: {quote(name)} is no name of a header")
        items = [content] if isinstance(content, str) else content
        if not isinstance(items, list) or not all(
            isinstance(item, str) and item.isprintable() and item.isascii() for item in items
        ):
            # The value may be a secret.
            raise ConfigError(f"{where}.{name}: expected one line of ASCII text, or a list of them")
        headers[name] = ", ".join(items)
    return headers


def _files(value: object, where: str, folder: Path) -> tuple[Path, ...]:
    names = (value,) if isinstance(value, str) else _texts(value, where)
    return tuple(_file(name, where, folder) for name in names)


def _clients(value: object, where: str, folder: Path) -> tuple[_Pair, ...]:
    """A file, a list of files, or a list of pairs of files (an empty key: in the same file)."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise _wrong(where, "a file, a list of files or a list of pairs of files", value)
    pairs: list[_Pair] = []
    for item in items:
        if isinstance(item, str):
            pairs.append((_file(item, where, folder), None))
            continue
        names = _texts(item, where)
        if len(names) != 2:
            raise ConfigError(f"{where}: expected pairs of certificate and key, got {len(names)}")
        key = _file(names[1], where, folder) if names[1] else None
        pairs.append((_file(names[0], where, folder), key))
    return tuple(pairs)


def _file(name: str, where: str, folder: Path) -> Path:
    if not name or "\0" in name:
        raise _wrong(where, "the path of a file", name)
    return folder / name


def _duration(value: object, where: str) -> float | None:
    """Seconds from text as Go writes it, such as 1m30s; None when absent, zero or negative."""
    if value == "":
        return None
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise _wrong(where, "a time such as '1s' or '500ms'", value)
    parts = re.findall(r"([0-9.]+)([a-zµ]+)", value)
    return sum(float(number) * _SECONDS[unit] for number, unit in parts) or None


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(where, "a list of strings", value)
    return tuple(value)


def _wrong(where: str, expected: str, value: object) -> ConfigError:
    return ConfigError(f"{where}: expected {expected}, got {describe(value)}")


# Certificates


def _trust(context: ssl.SSLContext, path: Path) -> None:
    try:
        if path.is_dir():
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    except (OSError, ValueError) as error:
        reason = _reason(error, "holds no certificate in PEM form")
        raise ConfigError(f"certificate authorities {path}: {reason}") from error


def _load_client(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    def no_password() -> str:
        # Without this, OpenSSL asks for it on the terminal.
        raise ConfigError(f"client key {key or certificate} has a password; give one without")

    try:
        context.load_cert_chain(certificate, key, no_password)
    except (OSError, ValueError) as error:
        names = f"{certificate} with key {key}" if key else f"{certificate}"
        reason = _reason(error, "no certificate and key in PEM form that belong together")
        raise ConfigError(f"client certificate {names}: {reason}") from error


def _reason(error: OSError | ValueError, otherwise: str) -> str:
    """Why a file was refused; an SSLError is an OSError too, and its text helps nobody."""
    if isinstance(error, ssl.SSLError) or not isinstance(error, OSError):
        return otherwise
    return (error.strerror or otherwise).lower()
