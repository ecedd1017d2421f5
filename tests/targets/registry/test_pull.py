"""Reading from a registry that breaks: what was asked for, or an error in one line."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from soci_cli.errors import IntegrityError, InvalidDataError, NotFoundError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.media_types import OCI_INDEX
from soci_cli.parallel import Stopped
from soci_cli.targets.copy import read_blob
from soci_cli.targets.layout import Layout
from tests.support.images import noise
from tests.support.places import describe, index_json, temporary_files
from tests.support.servers.actions import (
    Action,
    CutAnswer,
    DropHeaders,
    FlipByte,
    FloodAnswer,
    Hang,
    Pause,
    Redirect,
    Reply,
    Reset,
    ResetAnswer,
    SetHeaders,
    error_reply,
    html_reply,
)
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.exchange import Exchange
from tests.support.servers.fault_proxy import Fault, FaultProxy
from tests.targets.registry.pulls import BLOB, LAYER, MANIFEST, SIZE, app
from tests.targets.registry.tools import (
    Struck,
    fails,
    options,
    pull,
    push,
    registries,
    source_at,
    target_at,
)


@pytest.fixture(scope="module")
def image(docker_registry: DockerRegistry) -> Descriptor:
    """pull/app:1, whose first layer is LAYER."""
    return push(docker_registry.host, "pull/app:1", size=SIZE)


@pytest.fixture
def upstream(docker_registry: DockerRegistry, image: Descriptor) -> str:
    return docker_registry.host


RECOVERED = [
    error_reply(429, "TOOMANYREQUESTS", "slow down", Retry_After="0"),
    error_reply(503, "UNAVAILABLE"),
    error_reply(500, "UNKNOWN"),
    error_reply(408, "TIMEOUT"),
    html_reply(502),
    Reset(),
    Hang(),
    ResetAnswer(after=100),
    CutAnswer(after=100),
]


@pytest.mark.parametrize("action", RECOVERED, ids=repr)
@pytest.mark.parametrize("path", [BLOB, MANIFEST])
def test_faults_that_pass(
    action: Action, path: str, struck: Struck, image: Descriptor, tmp_path: Path
) -> None:
    proxy = struck(Fault(action, path=path, times=2))
    assert pull(app(proxy, timeout=0.15), tmp_path) == image
    assert read_blob(Layout(tmp_path, "1"), describe(LAYER)) == LAYER


LASTING: list[tuple[Action, str, str]] = [
    (error_reply(401, "UNAUTHORIZED", "who are you"), "401 Unauthorized", "who are you"),
    (error_reply(403, "DENIED", "not for you"), "403 Forbidden", "not for you"),
    (error_reply(404, "NAME_UNKNOWN", "never seen"), "404 Not Found", "never seen"),
    (error_reply(416, "RANGE_INVALID", "no such bytes"), "416", "no such bytes"),
    (error_reply(429, "TOOMANYREQUESTS", "slow down"), "429", "slow down"),
    (error_reply(500, "UNKNOWN", "oh no"), "500 Internal Server Error", "oh no"),
    (Reply(500, body=b"plain\ntext"), "500", "plain"),
    (Reply(418, body=b"\x1b[31mred\x00"), "418", "red"),
    (html_reply(404), "404", "is this a registry?"),
    (Reset(), "reset by peer", "(4 attempts)"),
    (Hang(), "no answer in time", "(4 attempts)"),
    (Redirect("{path}&sig=SECRET"), "redirected too often", ""),
    (Redirect("http://host.invalid:99999/x?sig=SECRET"), "cannot be used", ""),
    (Redirect("http://[::1/x?sig=SECRET"), "cannot be used", ""),
    (Redirect("ftp://host.invalid/x?sig=SECRET"), "cannot be used", ""),
    (Redirect("http://host.invalid/x?sig=SECRET"), "the host cannot be found", ""),
]


@pytest.mark.parametrize(("action", "said", "also"), LASTING, ids=lambda value: repr(value)[:40])
@pytest.mark.parametrize("path", [BLOB, MANIFEST])
def test_faults_that_last(
    action: Action, said: str, also: str, path: str, struck: Struck, tmp_path: Path
) -> None:
    proxy = struck(Fault(action, path=path))
    begun = time.monotonic()
    with fails(said, also):
        pull(app(proxy, timeout=0.1), tmp_path)
    assert time.monotonic() - begun < 3
    assert not (tmp_path / "index.json").exists() or not index_json(tmp_path)["manifests"]
    assert not list(tmp_path.rglob(".ingest*"))


def test_messages_name_the_url(struck: Struck) -> None:
    proxy = struck(Fault(error_reply(403, "DENIED", "not for you")))
    with fails() as said:
        app(proxy).resolve()
    where = f"{proxy.url}/v2/pull/app/manifests/1"
    assert said() == f"GET {where}: 403 Forbidden: DENIED: not for you"


def test_html_in_place_of_a_manifest(struck: Struck) -> None:
    with fails("HTML page", "is this a registry?"):
        app(struck(Fault(html_reply(200), path=MANIFEST))).resolve()


@pytest.mark.parametrize("declared", [50 << 20, None, 1000])
def test_manifest_of_50_mb(struck: Struck, declared: int | None) -> None:
    proxy = struck(Fault(FloodAnswer(50 << 20, declared=declared), path=MANIFEST))
    with fails("the manifest"):
        app(proxy).resolve()
    assert proxy.log[0].answer_bytes < 20 << 20
    if declared != 1000:
        assert len(proxy.log) == 1, "what is too large is not asked for again"


def test_wrong_bytes_of_a_manifest(struck: Struck, image: Descriptor) -> None:
    by_tag = struck(Fault(FlipByte(20), path=MANIFEST))
    with fails("does not have the digest", kind=IntegrityError):
        app(by_tag).resolve()
    lying = struck(
        Fault(SetHeaders({"Docker-Content-Digest": describe(b"x").digest}), path=MANIFEST)
    )
    with fails("does not have the digest", kind=IntegrityError):
        app(lying).resolve()
    silent = struck(
        Fault(DropHeaders(("docker-content-digest",)), path="/manifests/1$"),
        Fault(FlipByte(20), path=MANIFEST),
    )
    assert app(silent).resolve() == image
    with fails("does not have the digest", kind=IntegrityError):
        app(silent).find(image.digest)


@pytest.mark.parametrize("told", ["sha512:zz", "sha256:", "x", "sha512:" + 128 * "0", "\xb2"])
def test_nonsense_for_a_digest(struck: Struck, told: str) -> None:
    proxy = struck(Fault(SetHeaders({"Docker-Content-Digest": told}), path=MANIFEST))
    if told in ("x", "\xb2"):
        app(proxy).resolve()  # the bytes themselves count
    else:
        with fails():
            app(proxy).resolve()


def test_media_types_that_lie(struck: Struck, tmp_path: Path) -> None:
    proxy = struck(Fault(SetHeaders({"Content-Type": OCI_INDEX}), path=MANIFEST))
    with fails("expected an image index", kind=InvalidDataError):
        pull(app(proxy), tmp_path)


def test_index_that_refers_to_itself(struck: Struck, tmp_path: Path) -> None:
    entry = Descriptor(OCI_INDEX, describe(b"self").digest, 1)
    body = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry.to_json()]}
    for _ in range(3):
        entry = Descriptor(OCI_INDEX, entry.digest, len(json.dumps(body)))
        body["manifests"] = [entry.to_json()]
    data = json.dumps(body).encode()
    headers = {"Content-Type": OCI_INDEX, "Docker-Content-Digest": entry.digest}
    proxy = struck(Fault(Reply(200, headers, data), path=MANIFEST))
    with fails("does not have the digest", kind=IntegrityError):
        pull(app(proxy), tmp_path)
    unnamed = Reply(200, {"Content-Type": OCI_INDEX}, data)
    with fails("does not have the digest", kind=IntegrityError):
        pull(app(struck(Fault(unnamed, path=MANIFEST))), tmp_path)


# Connections


def test_connections_are_reused(struck: Struck, image: Descriptor, tmp_path: Path) -> None:
    proxy = struck(Fault(error_reply(503, "BUSY"), path=BLOB, times=2))
    with app(proxy) as source:
        pull(source, tmp_path)
        assert not source.exists(describe(b"nothing"))
        read_blob(source, describe(LAYER))
    assert len(proxy.log) > 6
    assert proxy.connections <= 2  # as many as blobs are fetched at a time


def test_blobs_are_fetched_side_by_side(struck: Struck, image: Descriptor, tmp_path: Path) -> None:
    both = threading.Barrier(2, timeout=5)

    def meet(exchange: Exchange) -> None:
        both.wait()
        answer = exchange.ask()
        exchange.answer(answer.status, answer.headers, answer.body)

    proxy = struck(Fault(meet, path="/blobs/", method="GET", times=2))
    assert pull(app(proxy, timeout=10.0), tmp_path) == image


def test_tag_is_asked_once(docker_registry: DockerRegistry, image: Descriptor) -> None:
    with FaultProxy(docker_registry.host) as proxy:
        source = app(proxy)
        assert source.resolve() == source.resolve() == image
        assert len(read_blob(source, image)) == image.size
        assert len(proxy.log) == 1


def test_an_error_does_not_wait_for_a_blob_that_hangs(struck: Struck, tmp_path: Path) -> None:
    first, second = (f"/blobs/{describe(noise(seed, SIZE)).digest}" for seed in (0, 1))
    proxy = struck(Fault(Hang(), path=first), Fault(error_reply(404, "BLOB_UNKNOWN"), path=second))
    ended = threading.Event()

    def copy_all() -> None:
        with fails("BLOB_UNKNOWN", kind=NotFoundError):
            pull(app(proxy, timeout=3600), tmp_path / "out")
        ended.set()

    threading.Thread(target=copy_all, daemon=True).start()
    assert ended.wait(60)
    assert not temporary_files(tmp_path / "out")


def test_nobody_wants_it_any_more(struck: Struck) -> None:
    """Then nothing is tried again, neither before the answer nor in its middle."""
    blob = describe(noise(0, SIZE))

    def lost() -> None:
        raise Stopped("stopped")

    for action in (error_reply(503, "UNAVAILABLE"), CutAnswer(10), Reset()):
        proxy = struck(Fault(action, path="/blobs/"))
        source = app(proxy)
        with pytest.raises(Stopped), source.fetch_while(lost, blob) as stream:
            stream.read()
        assert len(proxy.seen("GET", "/blobs/")) == 1


def test_what_has_come_is_handed_out(struck: Struck) -> None:
    blob = describe(noise(0, SIZE))
    proxy = struck(Fault(Pause(3600, at=10), path="/blobs/"))
    with app(proxy, timeout=3600).fetch(blob) as stream:
        assert stream.readinto(bytearray(SIZE)) == 10


# Redirects


def test_redirects_carry_no_credentials(
    docker_registry_htpasswd: DockerRegistry, image: Descriptor, tmp_path: Path
) -> None:
    """Blobs are often at another host, which needs no token but a signed URL."""
    from tests.targets.registry.tools import LOGIN

    pushed = push(
        docker_registry_htpasswd.host,
        "redirects:1",
        size=SIZE,
        credentials={docker_registry_htpasswd.host: LOGIN},
    )
    assert pushed == image
    with FaultProxy(docker_registry_htpasswd.host) as registry, FaultProxy("127.0.0.1:1") as store:
        store.add(Fault(Reply(200, body=LAYER), times=1))
        store.add(Fault(ResetAnswer(after=0), times=1))
        registry.add(Fault(Redirect(f"{store.url}/x?sig=SECRET"), path=BLOB))
        source = source_at(registry.host, "redirects:1", credentials={registry.host: LOGIN})
        source.resolve()
        assert read_blob(source, describe(LAYER)) == LAYER
        assert "authorization" in registry.log[-1].headers
        assert all("authorization" not in seen.headers for seen in store.log)
        assert all("cookie" not in seen.headers for seen in store.log)


def test_bodies_of_redirects_are_not_read(struck: Struck, image: Descriptor) -> None:
    def endless(exchange: Exchange) -> None:
        def body() -> Iterator[bytes]:
            while True:
                exchange.wait(0.001)
                yield bytes(10_000)

        exchange.answer(307, [("Location", f"{exchange.path}?again")], body())

    proxy = struck(Fault(endless, path="/manifests/1$"))
    assert app(proxy).resolve() == image
    assert proxy.log[0].answer_bytes < 8 << 20


def test_expired_redirects_are_asked_for_anew(struck: Struck) -> None:
    for status in 400, 401, 403, 410:
        with FaultProxy("127.0.0.1:1") as store:
            store.add(Fault(Reply(status, body=b"expired"), times=1))
            store.add(Fault(Reply(200, body=LAYER)))
            proxy = struck(Fault(Redirect(f"{store.url}/x?sig=SECRET"), path=BLOB))
            assert read_blob(app(proxy), describe(LAYER)) == LAYER
            assert len(proxy.log) == 2


def test_redirected_ranges(struck: Struck, docker_registry: DockerRegistry) -> None:
    with FaultProxy(docker_registry.host, Fault(ResetAnswer(after=1000), times=1)) as store:
        proxy = struck(Fault(Redirect(f"{store.url}{{path}}"), path=BLOB))
        assert read_blob(app(proxy), describe(LAYER)) == LAYER
        assert store.log[1].headers["range"] == f"bytes=1000-{SIZE - 1}"


def test_secrets_that_a_registry_repeats_are_not_shown(
    docker_registry_htpasswd: DockerRegistry,
) -> None:
    from tests.targets.registry.tools import LOGIN

    def echo(exchange: Exchange) -> None:
        sent = exchange.seen.headers["authorization"]
        error_reply(400, "INVALID", f"what is {sent.partition(' ')[2]}, {LOGIN.password}?")(
            exchange
        )

    with (
        FaultProxy(docker_registry_htpasswd.host, Fault(echo, path=MANIFEST, skip=1)) as registry,
        fails("400 Bad Request: INVALID: what is …, …?") as said,
    ):
        source_at(registry.host, "x:1", credentials={registry.host: LOGIN}).resolve()
    assert "YWxpY2U6" not in said()


def test_errors_of_plain_loopback_keep_the_message(struck: Struck) -> None:
    """A 400 is looked into for a sign of TLS, and shown all the same."""
    with fails("400 Bad Request: INVALID: the registry's reason"):
        app(struck(Fault(error_reply(400, "INVALID", "the registry's reason")))).resolve()


def test_not_found(docker_registry: DockerRegistry) -> None:
    with fails("404", "MANIFEST_UNKNOWN", kind=NotFoundError):
        source_at(docker_registry.host, "pull/app:none").resolve()
    with fails("404", kind=NotFoundError):
        read_blob(source_at(docker_registry.host, "pull/app:1"), describe(b"nowhere"))


def test_closing_lets_connections_go(struck: Struck) -> None:
    proxy = struck()
    where = registries()
    source_at(where, f"{proxy.host}/pull/app:1").resolve()
    assert proxy.open_connections == 1
    where.close()
    deadline = time.monotonic() + 2
    while proxy.open_connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not proxy.open_connections


def test_before_is_what_the_tag_means_now(docker_registry: DockerRegistry) -> None:
    name = "pull/before:1"
    first = push(docker_registry.host, name, seed=1)
    with target_at(docker_registry.host, name) as target:
        before = target.before()
        assert before is not None
        assert before.resolve() == first
    assert options().timeout == 2.0
