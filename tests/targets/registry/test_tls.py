"""TLS to registries: authorities, names, client certificates."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import truststore

from soci_cli.errors import ConfigError
from soci_cli.targets.registry.hosts import (
    Endpoint,
    TlsSettings,
    endpoints,
    ssl_context,
    system_tls,
)
from soci_cli.targets.registry.options import RegistryOptions
from tests.support.servers.ca import Ca, KeyPair, make_ca

NO_FOLDERS = RegistryOptions(hosts_dirs=())


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    return make_ca(tmp_path_factory.mktemp("ca"))


def own(domain: str, options: RegistryOptions = NO_FOLDERS) -> Endpoint:
    """The only endpoint of a registry."""
    (endpoint,) = endpoints(domain, options, {})
    return endpoint


def with_toml(root: Path, text: str, name: str = "example.com") -> RegistryOptions:
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "hosts.toml").write_text(text)
    return RegistryOptions(hosts_dirs=(root,))


@contextmanager
def tls_server(pair: KeyPair, client_ca: Path | None = None) -> Iterator[int]:
    """A server on loopback that greets with the name of the client's certificate; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with (
                closing(connection),
                suppress(OSError),
                context.wrap_socket(connection, server_side=True) as stream,
            ):
                subject = (stream.getpeercert() or {}).get("subject", ())
                stream.sendall(repr(subject).encode())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def greeting(port: int, tls: TlsSettings, name: str = "127.0.0.1") -> str:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
        ssl_context(tls).wrap_socket(connection, server_hostname=name) as stream,
    ):
        return stream.recv(1000).decode()


def test_authorities(ca: Ca, tmp_path: Path) -> None:
    other = make_ca(tmp_path / "other")
    hashed = tmp_path / "hashed"
    hashed.mkdir()
    with tls_server(ca.issue("127.0.0.1")) as port:
        for tls in (TlsSettings(authorities=(other.cert, ca.cert)), TlsSettings(only=ca.cert)):
            assert greeting(port, tls) == "()"
        for tls in (
            TlsSettings(),
            TlsSettings(authorities=(other.cert,)),
            TlsSettings(authorities=(hashed,)),
            TlsSettings(only=other.cert),
        ):
            with pytest.raises(ssl.SSLCertVerificationError):
                greeting(port, tls)
        assert greeting(port, TlsSettings(skip_verify=True, only=other.cert)) == "()"


def test_names_are_checked(ca: Ca) -> None:
    with tls_server(ca.issue("other.example.com")) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            greeting(port, TlsSettings(only=ca.cert))
        assert greeting(port, TlsSettings(only=ca.cert), "other.example.com") == "()"
        assert greeting(port, TlsSettings(skip_verify=True)) == "()"


def test_certificate_of_the_server_itself_is_enough(ca: Ca) -> None:
    pair = ca.issue("127.0.0.1")
    with tls_server(pair) as port:
        assert greeting(port, TlsSettings(only=pair.cert)) == "()"


def test_client_certificates(ca: Ca, tmp_path: Path) -> None:
    one, two = ca.issue_client("one"), ca.issue_client("two")
    both = tmp_path / "both.pem"
    both.write_bytes(two.cert.read_bytes() + two.key.read_bytes())
    with tls_server(ca.issue("127.0.0.1"), client_ca=ca.cert) as port:
        tls = TlsSettings(only=ca.cert)
        assert "'one'" in greeting(port, replace(tls, clients=((one.cert, one.key), (both, None))))
        assert "'two'" in greeting(port, replace(tls, clients=((both, None),)))
        with pytest.raises(OSError):
            greeting(port, tls)


def test_tls_1_2_at_least() -> None:
    for tls in (TlsSettings(), TlsSettings(skip_verify=True)):
        assert ssl_context(tls).minimum_version == ssl.TLSVersion.TLSv1_2


def test_authorities_of_the_environment(ca: Ca, tmp_path: Path) -> None:
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
    environ = {name: str(tmp_path / name) for name in names}
    expected = TlsSettings(authorities=tuple(tmp_path / name for name in names))
    assert system_tls(environ) == expected
    (endpoint,) = endpoints("example.com", NO_FOLDERS, environ)
    assert endpoint.tls == expected
    options = replace(NO_FOLDERS, tls_ca=ca.cert)
    assert endpoints("example.com", options, environ)[0].tls == TlsSettings(only=ca.cert)


def test_certificates_that_are_none(ca: Ca, tmp_path: Path) -> None:
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    cert, _ = ca.issue_client("one")
    other = ca.issue_client("two").key
    for tls, parts in [
        (TlsSettings(only=tmp_path / "none"), ["none", "no such file"]),
        (TlsSettings(authorities=(text,)), ["text.pem", "no certificate"]),
        (TlsSettings(authorities=(tmp_path / "none",)), ["none", "no such file"]),
        (TlsSettings(clients=((cert, tmp_path / "none"),)), ["none", "no such file"]),
        (TlsSettings(clients=((cert, None),)), [str(cert), "no certificate and key"]),
        (TlsSettings(clients=((cert, other),)), [str(other), "belong together"]),
    ]:
        with pytest.raises(ConfigError) as caught:
            ssl_context(tls)
        for part in parts:
            assert part in str(caught.value)


def test_key_with_a_password(ca: Ca, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    cert, key = ca.issue_client("one")
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match=r"locked\.key has a password"):
        ssl_context(TlsSettings(clients=((cert, locked),)))


def test_authorities_that_openssl_does_not_find(
    ca: Ca, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a Python that was built elsewhere: those of the system count all the same."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    assert isinstance(ssl_context(TlsSettings()), truststore.SSLContext)
    monkeypatch.setattr("truststore._openssl._CA_FILE_CANDIDATES", [str(ca.cert)])
    with tls_server(ca.issue("127.0.0.1")) as port:
        assert greeting(port, TlsSettings()) == "()"
    monkeypatch.setattr("truststore._openssl._CA_FILE_CANDIDATES", [])
    with tls_server(ca.issue("127.0.0.1")) as port:
        with pytest.raises(ssl.SSLCertVerificationError):
            greeting(port, TlsSettings())
        assert greeting(port, TlsSettings(authorities=(ca.cert,))) == "()"
