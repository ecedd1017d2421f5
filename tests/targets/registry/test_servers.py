"""Which server is asked, and how: TLS, plain HTTP on loopback, proxies, mirrors of hosts.toml."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from soci_cli.errors import (
    ConfigError,
    IntegrityError,
    NotFoundError,
    NotInRegistryError,
    RegistryError,
)
from soci_cli.oci.descriptor import Descriptor
from soci_cli.targets.copy import read_blob
from soci_cli.targets.registry import RegistryOptions
from soci_cli.targets.registry.client import Client
from soci_cli.targets.registry.request import Answer, Request
from tests.support.images import noise
from tests.support.places import copy, describe, push_image
from tests.support.servers import ForwardProxy
from tests.support.servers.actions import (
    CutAnswer,
    FlipByte,
    FloodAnswer,
    Hang,
    IgnoreRange,
    Redirect,
    Reply,
    Reset,
    ResetAnswer,
    SetHeaders,
    ShortenAnswer,
    error_reply,
    html_reply,
)
from tests.support.servers.ca import Ca
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.fault_proxy import Fault, FaultProxy
from tests.support.servers.fixtures import USERS
from tests.support.servers.token_server import TokenServer
from tests.targets.registry.tools import (
    LOGIN,
    fails,
    options,
    pull,
    push,
    registries,
    source_at,
    target_at,
)

SIZE = 300_000
LAYER = noise(0, SIZE)
BLOB = "/blobs/sha256:" + describe(LAYER).digest[7:]


# TLS


def test_own_authority(docker_registry_tls: DockerRegistry, ca: Ca) -> None:
    root = push(docker_registry_tls.host, "tls:1", tls_ca=ca.cert)
    assert source_at(docker_registry_tls.host, "tls:1", skip_verify=True).resolve() == root


def test_tls_server_on_loopback(docker_registry_tls: DockerRegistry, ca: Ca) -> None:
    """Loopback is plain HTTP by default; a TLS server there is noticed, and its certificate counts."""
    with fails("certificate is not trusted", "--tlscacert", kind=RegistryError) as said:
        source_at(docker_registry_tls.host, "tls:1").resolve()
    assert "attempts" not in said()
    environ = {"SSL_CERT_FILE": str(ca.cert)}
    where = registries(environ)
    with target_at(where, f"{docker_registry_tls.host}/loopback:1") as target:
        root = push_image(target)
        target.tag(root)
    assert source_at(where, f"{docker_registry_tls.host}/loopback:1").resolve() == root


def test_plain_http_to_a_tls_server(docker_registry_tls: DockerRegistry) -> None:
    with fails("400", "HTTPS", kind=RegistryError):
        source_at(docker_registry_tls.host, "tls:1", plain_http=True).resolve()


def test_tls_to_a_plain_server(docker_registry: DockerRegistry, ca: Ca) -> None:
    begun = time.monotonic()
    with fails("no TLS connection", kind=RegistryError):
        source_at(docker_registry.host, "x:1", tls_ca=ca.cert).resolve()
    assert time.monotonic() - begun < 1


def test_wrong_names_and_authorities(docker_registry: DockerRegistry, tmp_path: Path) -> None:
    from tests.support.servers.ca import make_ca

    ca, other = make_ca(tmp_path / "one"), make_ca(tmp_path / "other")
    with FaultProxy(docker_registry.host, tls=ca.issue("registry.test")) as proxy:
        with fails("certificate is not trusted", "127.0.0.1", kind=RegistryError):
            source_at(proxy.host, "x:1", tls_ca=ca.cert).resolve()
        with fails("certificate is not trusted", kind=RegistryError):
            source_at(proxy.host, "x:1", tls_ca=other.cert).resolve()
        assert not proxy.log
        assert not source_at(proxy.host, "x:1", skip_verify=True).exists(describe(b""))
    with fails("no certificate", kind=ConfigError):
        (tmp_path / "empty.pem").write_text("x")
        source_at(proxy.host, "x:1", tls_ca=tmp_path / "empty.pem").resolve()


def test_client_certificates(need_docker_registry: str, ca: Ca, tmp_path: Path) -> None:
    pair, client = ca.issue("127.0.0.1"), ca.issue_client("alice")
    with DockerRegistry(tmp_path, tls=pair, client_ca=ca.cert) as registry:
        given: dict[str, Any] = {"tls_ca": ca.cert, "tls_cert": client.cert, "tls_key": client.key}
        root = push(registry.host, "mutual:1", **given)
        assert source_at(registry.host, "mutual:1", **given).resolve() == root
        with fails(registry.url, kind=RegistryError):
            source_at(registry.host, "mutual:1", tls_ca=ca.cert).resolve()


def test_token_server_with_the_same_authority(
    need_docker_registry: str, ca: Ca, tmp_path: Path
) -> None:
    """What is trusted for a registry is trusted for its token server, which is another host."""
    with (
        TokenServer(tmp_path / "tokens", USERS, tls=ca.issue("127.0.0.1")) as tokens,
        DockerRegistry(tmp_path / "r", token=tokens, tls=ca.issue("127.0.0.1")) as registry,
    ):
        login = {registry.host: LOGIN}
        root = push(registry.host, "x:1", tls_ca=ca.cert, credentials=login)
        insecure = source_at(registry.host, "x:1", skip_verify=True, credentials=login)
        assert insecure.resolve() == root
        folder = hosts_toml(tmp_path, registry.host, f'ca = "{ca.cert}"')
        trusting = source_at(registry.host, "x:1", hosts_dirs=folder, credentials=login)
        assert trusting.resolve() == root
        with fails("certificate is not trusted"):
            source_at(registry.host, "x:1", credentials=login).resolve()


def test_no_way_back_from_https(docker_registry: DockerRegistry, ca: Ca) -> None:
    with FaultProxy(docker_registry.host, tls=ca.issue("127.0.0.1")) as proxy:
        proxy.add(Fault(Redirect(f"{docker_registry.url}{{path}}"), path="/manifests/"))
        proxy.add(
            Fault(SetHeaders({"Location": f"{docker_registry.url}/x?sig=SECRET"}), method="POST")
        )
        with fails("plain HTTP", "not followed", kind=RegistryError):
            source_at(proxy.host, "x:1", tls_ca=ca.cert).resolve()
        with fails("plain HTTP", "not followed", kind=RegistryError):
            push(proxy.host, "x:1", tls_ca=ca.cert)


def test_registry_that_does_not_know_its_scheme(docker_registry: DockerRegistry, ca: Ca) -> None:
    """Behind a proxy that ends TLS, Location says http:// though nothing listens there."""
    with FaultProxy(docker_registry.host, tls=ca.issue("127.0.0.1")) as proxy:

        def forget(exchange: object) -> None:
            from tests.support.servers.exchange import Exchange

            assert isinstance(exchange, Exchange)
            answer = exchange.ask()
            headers = [
                (name, value.replace("https:", "http:") if name == "Location" else value)
                for name, value in answer.headers
            ]
            exchange.answer(answer.status, headers, answer.body)

        proxy.add(Fault(forget))
        root = push(proxy.host, "scheme:1", tls_ca=ca.cert)
    assert source_at(docker_registry.host, "scheme:1").resolve() == root


# Proxies


def test_http_proxy(docker_registry: DockerRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    with ForwardProxy({"registry.test": docker_registry.host}) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:SECRET@{proxy.host}")
        root = push("registry.test:5000", "proxied:1", plain_http=True)
        assert {seen.target.partition("/v2/")[0] for seen in proxy.log} == {
            "http://registry.test:5000"
        }
        assert all(seen.authorization for seen in proxy.log)
        assert source_at(docker_registry.host, "proxied:1").resolve() == root
        count = len(proxy.log)
        assert count == len(proxy.log), "loopback goes without a proxy"
        with fails("502", "unknown host"):
            source_at("other.test", "x:1", plain_http=True).resolve()
        monkeypatch.setenv("no_proxy", "registry.test")
        with fails("the host cannot be found"):
            source_at("registry.test:5000", "proxied:1", plain_http=True).resolve()
    monkeypatch.delenv("no_proxy")
    with fails("connection refused"):
        source_at("registry.test:5000", "proxied:1", plain_http=True).resolve()


def test_https_proxy(
    docker_registry_tls: DockerRegistry, ca: Ca, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ForwardProxy({"registry.test": docker_registry_tls.host}) as proxy:
        monkeypatch.setenv("https_proxy", f"http://me:SECRET@{proxy.host}")
        push("registry.test", "tunnel:1", tls_ca=ca.cert)
        assert {(seen.method, seen.target) for seen in proxy.log} == {
            ("CONNECT", "registry.test:443")
        }
        with fails("certificate is not trusted"):
            source_at("registry.test", "tunnel:1").resolve()
        source_at("registry.test", "tunnel:1", skip_verify=True).resolve()
        with fails("502"):
            source_at("other.test", "x:1").resolve()
    for broken in "http://me:SECRET@:99999", "http://me:SECRET@[::1", "ftp://me:SECRET@x":
        monkeypatch.setenv("https_proxy", broken)
        with fails("https://registry.test/v2/"):
            source_at("registry.test", "tunnel:1", tls_ca=ca.cert).resolve()


# Mirrors


def hosts_toml(folder: Path, host: str, text: str) -> tuple[Path, ...]:
    name = host.replace(":", "_") + "_"
    (folder / "certs.d" / name).mkdir(parents=True, exist_ok=True)
    (folder / "certs.d" / name / "hosts.toml").write_text(text)
    return (folder / "certs.d",)


@pytest.fixture(scope="module")
def image(docker_registry: DockerRegistry) -> Descriptor:
    return push(docker_registry.host, "mirrored:1", size=SIZE)


@pytest.fixture
def registry(docker_registry: DockerRegistry, image: Descriptor) -> Iterator[FaultProxy]:
    with FaultProxy(docker_registry.host) as proxy:
        yield proxy


@pytest.fixture
def mirror(docker_registry: DockerRegistry, image: Descriptor) -> Iterator[FaultProxy]:
    with FaultProxy(docker_registry.host) as proxy:
        yield proxy


def mirrored(
    folder: Path, registry: FaultProxy, mirror: FaultProxy, text: str = ""
) -> RegistryOptions:
    own = f'server = "{registry.url}"\n'
    return options(
        hosts_dirs=hosts_toml(folder, registry.host, f'{own}[host."{mirror.url}"]\n{text}'),
        timeout=0.3,
        credentials={registry.host: LOGIN},
    )


def with_options(given: RegistryOptions) -> dict[str, Any]:
    return {name: getattr(given, name) for name in given.__dataclass_fields__}


def test_mirror_is_asked_first(
    registry: FaultProxy, mirror: FaultProxy, image: Descriptor, tmp_path: Path
) -> None:
    given = with_options(mirrored(tmp_path, registry, mirror, 'header = {x-key = "1"}'))
    assert pull(source_at(registry.host, "mirrored:1", **given), tmp_path / "out") == image
    assert not registry.log
    assert all(f"ns={registry.host.replace(':', '%3A')}" in seen.path for seen in mirror.log)
    assert all(seen.headers["x-key"] == "1" for seen in mirror.log)
    assert all("authorization" not in seen.headers for seen in mirror.log)


MIRROR_FAULTS = [
    Fault(error_reply(404, "MANIFEST_UNKNOWN")),
    Fault(error_reply(401, "UNAUTHORIZED")),
    Fault(error_reply(429, "TOOMANYREQUESTS", Retry_After="3600")),
    Fault(error_reply(500, "UNKNOWN")),
    Fault(html_reply(200)),
    Fault(Reset()),
    Fault(Hang()),
    Fault(Redirect("{path}")),
    Fault(Reset(), path="/blobs/"),
    Fault(ResetAnswer(after=1000), path=BLOB),
    Fault(CutAnswer(after=50_000), path=BLOB),
    Fault(ShortenAnswer(to=1000), path=BLOB),
    Fault(Reply(206, {"Content-Range": "bytes 5-9/10"}, b"12345"), path=BLOB),
    Fault(FlipByte(20), path="/manifests/"),
    Fault(ResetAnswer(after=20), path="/manifests/"),
    Fault(FloodAnswer(50 << 20), path="/manifests/"),
    Fault(SetHeaders({"Docker-Content-Digest": describe(b"").digest}), path="/manifests/"),
]


@pytest.mark.parametrize("fault", MIRROR_FAULTS, ids=repr)
def test_a_mirror_that_fails_is_passed_over(
    fault: Fault, registry: FaultProxy, mirror: FaultProxy, image: Descriptor, tmp_path: Path
) -> None:
    mirror.add(fault)
    given = with_options(mirrored(tmp_path, registry, mirror))
    assert pull(source_at(registry.host, "mirrored:1", **given), tmp_path / "out") == image
    assert registry.log


def test_a_mirror_that_is_down(
    registry: FaultProxy, mirror: FaultProxy, image: Descriptor, tmp_path: Path
) -> None:
    mirror.close()
    given = with_options(mirrored(tmp_path, registry, mirror))
    assert pull(source_at(registry.host, "mirrored:1", **given), tmp_path / "out") == image


def test_a_mirror_that_hangs_is_not_asked_for_ever(
    registry: FaultProxy, mirror: FaultProxy, tmp_path: Path
) -> None:
    mirror.add(Fault(Hang()))
    source = source_at(
        registry.host, "mirrored:1", **with_options(mirrored(tmp_path, registry, mirror))
    )
    for number in range(6):
        source.exists(describe(bytes([number])))
    assert len(mirror.log) == 3
    assert len(registry.log) == 6


def test_wrong_bytes_of_a_mirror(
    registry: FaultProxy, mirror: FaultProxy, image: Descriptor, tmp_path: Path
) -> None:
    """What was handed out cannot be taken back: the mirror is named, and not asked again."""
    mirror.add(Fault(FlipByte(100_000), path=BLOB))
    given = with_options(mirrored(tmp_path, registry, mirror))
    source = source_at(registry.host, "mirrored:1", **given)
    with fails("the mirror", mirror.url, "hosts.toml", kind=IntegrityError):
        pull(source, tmp_path / "out")
    assert pull(source, tmp_path / "out") == image


def test_wrong_bytes_after_a_break(
    registry: FaultProxy, mirror: FaultProxy, tmp_path: Path
) -> None:
    mirror.add(Fault(FlipByte(10), path=BLOB, times=1))
    given = with_options(mirrored(tmp_path, registry, mirror))
    source = source_at(registry.host, "mirrored:1", **given)
    with source.fetch(describe(LAYER)) as stream:
        stream.read(1000)
        mirror.add(Fault(ResetAnswer(after=0), path=BLOB))
        mirror.close()
        with fails("the mirror", mirror.url, kind=IntegrityError):
            stream.read()


def test_wrong_bytes_of_the_registry_name_no_mirror(
    registry: FaultProxy, mirror: FaultProxy, tmp_path: Path
) -> None:
    mirror.add(Fault(error_reply(404, "BLOB_UNKNOWN"), path=BLOB))
    registry.add(Fault(FlipByte(100), path=BLOB))
    given = with_options(mirrored(tmp_path, registry, mirror))
    with fails("does not have that digest", kind=IntegrityError) as said:
        pull(source_at(registry.host, "mirrored:1", **given), tmp_path / "out")
    assert "mirror http" not in said()


def test_mirror_resumes(registry: FaultProxy, mirror: FaultProxy, tmp_path: Path) -> None:
    mirror.add(Fault(ResetAnswer(after=100_000), path=BLOB, times=1))
    mirror.add(Fault(IgnoreRange(), path=BLOB, times=1))
    given = with_options(mirrored(tmp_path, registry, mirror))
    assert read_blob(source_at(registry.host, "mirrored:1", **given), describe(LAYER)) == LAYER
    assert not registry.log


def test_what_is_pushed_goes_to_the_registry(
    registry: FaultProxy, mirror: FaultProxy, tmp_path: Path
) -> None:
    """Nothing is taken to be in the registry because a mirror has it."""
    given = with_options(mirrored(tmp_path, registry, mirror))
    with target_at(registry.host, "mirrored:2", **given) as target:
        before = target.before()
        assert before is not None
        with fails("404", kind=NotFoundError):
            before.resolve()
        root = push_image(target, size=SIZE)
        target.tag(root)
        target.resolve()
        read_blob(target, describe(LAYER))
        target.referrers(root, "application/x")
    assert not mirror.log
    assert registry.log


def test_mirror_that_may_push(registry: FaultProxy, mirror: FaultProxy, tmp_path: Path) -> None:
    own = f'server = "{registry.url}"\ncapabilities = ["pull", "resolve"]\n'
    table = f'[host."{mirror.url}"]\ncapabilities = ["push"]\n'
    folder = hosts_toml(tmp_path, registry.host, own + table)
    root = push(registry.host, "mirrored:3", hosts_dirs=folder)
    assert not registry.log
    assert source_at(registry.host, "mirrored:3", hosts_dirs=folder).resolve() == root
    assert registry.log


def test_nobody_may_push(registry: FaultProxy, tmp_path: Path) -> None:
    folder = hosts_toml(
        tmp_path, registry.host, f'server = "{registry.url}"\ncapabilities = ["pull", "resolve"]\n'
    )
    with fails("no server", "may push", kind=RegistryError):
        push(registry.host, "mirrored:4", hosts_dirs=folder)


def test_copy_from_mirror_to_registry(
    registry: FaultProxy, mirror: FaultProxy, docker_registry: DockerRegistry, tmp_path: Path
) -> None:
    given = with_options(mirrored(tmp_path, registry, mirror))
    where = registries(**given)
    source = source_at(where, f"{registry.host}/mirrored:1")
    with target_at(where, f"{registry.host}/mirrored/copy:1") as target:
        root = copy(source, target)
    assert source_at(docker_registry.host, "mirrored/copy:1").resolve() == root
    assert len(registry.seen("POST", "mount=")) == 3


def test_a_mirror_that_others_gave_up_meanwhile(
    registry: FaultProxy, mirror: FaultProxy, image: Descriptor, tmp_path: Path
) -> None:
    """Its answer says nothing of the registry itself, which is asked then."""
    client = Client(registry.host, mirrored(tmp_path, registry, mirror), {})

    def use(answer: Answer) -> str:
        if answer.mirror:
            client.mirror_failed(answer.mirror, IntegrityError("wrong bytes for another thread"))
            raise NotInRegistryError("404", 404)
        return answer.url

    request = Request("GET", "/mirrored/manifests/1", headers={"Accept": image.media_type})
    assert client.asking(request).run(use).startswith(registry.url)
