"""Uploads of one blob that break: gone on with, sent again, or an error."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from soci_cli.errors import (
    IntegrityError,
    LostUploadError,
    NotFoundError,
    RegistryError,
    SociError,
)
from soci_cli.oci.media_types import OCI_MANIFEST
from soci_cli.targets.copy import read_blob
from soci_cli.targets.layout import Layout
from soci_cli.targets.registry import RetryPolicy
from soci_cli.targets.registry.repository import Repository
from soci_cli.targets.registry.upload import BlobUpload
from soci_cli.trial_registry import RegistryServer
from tests.support.images import noise
from tests.support.places import copy, describe
from tests.support.servers.actions import (
    Action,
    ForgetUpload,
    Hang,
    Redirect,
    Reply,
    ReplyEarly,
    Reset,
    ResetUpload,
    SetHeaders,
    error_reply,
)
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.exchange import Exchange
from tests.support.servers.fault_proxy import Fault
from tests.targets.registry.pushes import (
    BLOB,
    CHUNK,
    SIZE,
    UPLOAD,
    layout_blobs,
    own,
    send,
    stored,
    upload,
)
from tests.targets.registry.tools import Struck, fails, source_at, target_at


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """One for all tests, because there are many; each has repositories of its own."""
    with RegistryServer(tmp_path_factory.mktemp("embedded")) as server:
        yield server


@pytest.mark.parametrize("after", [0, 1, 50_000, 99_999])
@pytest.mark.parametrize("skip", [0, 1, 3])
def test_chunks_resume(struck: Struck, after: int, skip: int) -> None:
    proxy = struck(Fault(ResetUpload(after), path=UPLOAD, method="PATCH", skip=skip, times=2))
    send(upload(proxy))
    begun = len(proxy.seen("POST", "/uploads/"))
    # Nothing and one byte of an upload look the same ("0-0"), so it begins again.
    assert begun == (1 if skip or after > 1 else 3)
    sent = sum(seen.body_bytes for seen in proxy.seen("PATCH"))
    assert sent <= SIZE + 2 * CHUNK
    if after > 1:
        # A reset may take away what was on its way, but hardly so both times.
        assert sent < SIZE + 2 * after, "only what did not arrive is sent again"
    assert stored(proxy)


STRUCK: list[Action] = [
    error_reply(500, "UNKNOWN"),
    error_reply(429, "TOOMANYREQUESTS", Retry_After="0"),
    ReplyEarly(error_reply(503, "BUSY")),
    Reset(),
    Hang(),
]


@pytest.mark.parametrize("action", STRUCK, ids=lambda action: repr(action)[:40])
@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
@pytest.mark.parametrize("data", [BLOB, noise(1, 5000)], ids=["large", "small"])
def test_uploads_get_over(struck: Struck, action: Action, method: str, data: bytes) -> None:
    proxy = struck(Fault(action, path="/blobs/uploads/", method=method, skip=0, times=2))
    send(upload(proxy, data, timeout=0.15), data)
    assert stored(proxy, data)


def test_only_the_last_step_is_repeated(struck: Struck) -> None:
    """An upload whose bytes are all there is not sent again because its end was refused."""
    proxy = struck(Fault(error_reply(503, "BUSY"), path=UPLOAD, method="PUT", times=3))
    send(upload(proxy))
    assert len(proxy.seen("PATCH")) == 4
    assert stored(proxy)


def test_last_answer_lost(struck: Struck) -> None:
    """The upload was done; only the answer did not arrive."""

    def deaf(exchange: Exchange) -> None:
        exchange.ask()
        exchange.reset()

    for data in BLOB, noise(2, 5000):
        proxy = struck(Fault(deaf, path=UPLOAD, method="PUT"))
        send(upload(proxy, data), data)
        assert len(proxy.seen("PUT")) == 1
        assert stored(proxy, data)


def test_retry_after_of_the_last_step(struck: Struck, embedded: RegistryServer) -> None:
    wait = error_reply(429, "TOOMANYREQUESTS", Retry_After="1")

    def seconds(data: bytes) -> float:
        proxy = struck(Fault(wait, path=UPLOAD, method="PUT", times=1))
        begun = time.monotonic()
        send(upload(proxy, data), data)
        return time.monotonic() - begun

    with ThreadPoolExecutor() as pool:
        assert min(pool.map(seconds, [BLOB, noise(2, 5000)])) >= 1
    for method in "PUT", "PATCH":
        long = error_reply(429, "TOOMANYREQUESTS", "much later", Retry_After="3600")
        proxy = struck(Fault(long, path=UPLOAD, method=method))
        with fails("429", "much later", kind=RegistryError) as said:
            send(upload(proxy, BLOB[:-1]), BLOB[:-1])
        assert len(proxy.seen(method)) == 1, said()


def test_upload_that_vanished(struck: Struck, layout: Layout, chunks: None) -> None:
    for method, skip in ("PATCH", 0), ("PATCH", 2), ("PUT", 0):
        proxy = struck(Fault(ForgetUpload(), path=UPLOAD, method=method, skip=skip, times=1))
        repo = f"vanished-{method.lower()}-{skip}"
        with target_at(proxy.host, f"{repo}:1") as target:
            root = copy(layout, target)
        assert source_at(proxy.host, f"{repo}:1").resolve() == root
        for layer in layout_blobs(layout):
            assert read_blob(source_at(proxy.host, f"{repo}:1"), layer)


def test_upload_that_always_vanishes(struck: Struck, layout: Layout, chunks: None) -> None:
    proxy = struck(Fault(ForgetUpload(), path=UPLOAD, method="PATCH", skip=1))
    with (
        fails("the registry forgot it", kind=LostUploadError),
        target_at(proxy.host, "lost:1") as target,
    ):
        copy(layout, target)
    with fails(kind=NotFoundError):
        source_at(proxy.host, "lost:1").resolve()


def test_breaks_of_docker_registry(
    docker_registry: DockerRegistry, layout: Layout, chunks: None, struck: Struck
) -> None:
    """It keeps no upload that broke off, so the blob is sent again from its start."""
    faults = [
        Fault(ResetUpload(30_000), path=UPLOAD, method="PATCH", skip=skip, times=1)
        for skip in (0, 3)
    ]
    proxy = struck(*faults, host=docker_registry.host)
    with target_at(proxy.host, "breaks:1") as target:
        root = copy(layout, target)
    source = source_at(docker_registry.host, "breaks:1")
    assert source.resolve() == root
    for blob in layout_blobs(layout):
        assert read_blob(source, blob) == read_blob(layout, blob)


@pytest.mark.parametrize("status", [413, 416])
def test_registries_with_small_chunks(struck: Struck, status: int) -> None:
    """A registry, or a proxy before it, that takes only so much at once; GHCR says 416."""
    data = noise(4, 5 << 20)

    def small_only(exchange: Exchange) -> None:
        if int(exchange.seen.headers["content-length"]) > 1 << 20:
            ReplyEarly(error_reply(status, "SIZE_INVALID"))(exchange)
            return
        answer = exchange.ask()
        exchange.answer(answer.status, answer.headers, answer.body)

    proxy = struck(Fault(small_only, path=UPLOAD, method="PATCH"))
    target = target_at(proxy.host, f"{own('app', proxy)}:1")
    repository = Repository(target._client, target.reference, True)
    send(BlobUpload(repository, describe(data), "x", None, 4 << 20), data)
    assert stored(proxy, data)


@pytest.mark.parametrize("told", ["0-49999", "0-0", "0-99999"])
def test_registry_that_keeps_less(struck: Struck, told: str) -> None:
    """Its next answer, 416, tells; the blob is then sent again, as `copy_blob` does."""

    def half(exchange: Exchange) -> None:
        answer = exchange.ask(
            without={"content-length", "content-range"}, body=exchange.body().first(50_000)
        )
        exchange.drain()
        headers = [
            (name, told if name.lower() == "range" else value) for name, value in answer.headers
        ]
        exchange.answer(answer.status, headers, answer.body)

    proxy = struck(Fault(half, path=UPLOAD, method="PATCH", times=1))
    with pytest.raises(LostUploadError):
        send(upload(proxy))
    assert [seen for seen in proxy.seen("PATCH") if seen.status == 416]
    send(upload(proxy))
    assert stored(proxy)


def test_progress_that_stays_at_the_first_chunk(struck: Struck) -> None:
    """As with ECR, which takes everything and tells of the first chunk only."""
    told = SetHeaders({"Range": f"0-{CHUNK - 1}"})
    proxy = struck(Fault(told, path=UPLOAD, method="PATCH"))
    send(upload(proxy))
    assert len(proxy.seen("PATCH")) == -(-SIZE // CHUNK)
    assert stored(proxy)


LYING = [
    "0-999999999",
    "0-5",
    "x",
    "0-",
    "-1",
    "0-99999999999999999999999",
    "5-10",
    "0-49999",
    "0-0",
]


@pytest.mark.parametrize("told", LYING)
def test_ranges_that_lie(struck: Struck, told: str) -> None:
    """Ended by an error or, where only the Range is wrong, by a blob that is right."""
    proxy = struck(Fault(SetHeaders({"Range": told}), path=UPLOAD, method="PATCH|GET"))
    try:
        send(upload(proxy))
    except SociError as error:
        assert str(error).isprintable()
        assert not stored(proxy)
    else:
        assert stored(proxy)


LOCATIONS = [
    "http://[::1/x?sig=SECRET",
    "ftp://host.invalid/x",
    "http://",
    "//",
    "http://127.0.0.1:99999/x?sig=SECRET",
    "http://127.0.0.1:1/x?sig=SECRET",
    "http://a\xffb.invalid/x?sig=SECRET",
    "?sig=SECRET",
    "x" * 60_000,
]


@pytest.mark.parametrize("location", LOCATIONS, ids=lambda value: value[:20])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_locations_that_lead_nowhere(struck: Struck, location: str, method: str) -> None:
    proxy = struck(Fault(SetHeaders({"Location": location}), path="/blobs/uploads/", method=method))
    if method == "PATCH" and location in ("http://", "//", "?sig=SECRET"):
        send(upload(proxy))  # which all mean where it is already
        assert stored(proxy)
        return
    with fails():
        send(upload(proxy))
    assert not stored(proxy)


def test_uploads_elsewhere_carry_no_credentials(
    docker_registry_htpasswd: DockerRegistry, struck: Struck
) -> None:
    from tests.targets.registry.tools import LOGIN

    seen: list[dict[str, str]] = []

    def other(exchange: Exchange) -> None:
        exchange.drain()
        seen.append(dict(exchange.seen.headers))
        challenge = 'Basic realm="give it to me"'
        Reply(401, {"WWW-Authenticate": challenge})(exchange)

    elsewhere = struck(Fault(other), host="127.0.0.1:1")
    proxy = struck(
        Fault(SetHeaders({"Location": f"{elsewhere.url}/x?sig=SECRET"}), method="POST"),
        Fault(Redirect(f"{elsewhere.url}/y?sig=SECRET"), path="/manifests/"),
        host=docker_registry_htpasswd.host,
    )
    for data in BLOB, noise(3, 100):
        with fails("401", elsewhere.url):
            send(upload(proxy, data, credentials={proxy.host: LOGIN}), data)
    with (
        fails("401"),
        target_at(proxy.host, "elsewhere:1", credentials={proxy.host: LOGIN}) as target,
    ):
        target._put_manifest(describe(b"{}", OCI_MANIFEST), b"{}", "1")
    assert len(seen) >= 3
    assert all("authorization" not in headers for headers in seen)


def test_small_pieces_over_slow_links(struck: Struck) -> None:
    """An upload may take longer than the timeout, which is for a peer that says nothing."""

    def slowly(exchange: Exchange) -> None:
        for _ in exchange.body():
            exchange.wait(0.006)
        where = f"/v2/slow/blobs/uploads/{exchange.seen.body_bytes}"
        Reply({"PATCH": 202, "PUT": 201}[exchange.method], {"Location": where})(exchange)

    opened = Reply(202, {"Location": "/v2/slow/blobs/uploads/x"})
    proxy = struck(
        Fault(Reply(404), method="HEAD"),
        Fault(opened, method="POST"),
        Fault(slowly),
        host="127.0.0.1:1",
    )
    data = bytes(16 << 20)
    target = target_at(proxy.host, "slow:1", timeout=0.6, retries=RetryPolicy(1))
    begun = time.monotonic()
    send(BlobUpload(Repository(target._client, target.reference, True), describe(data), "x"), data)
    assert time.monotonic() - begun > 1.2


def test_wrong_content_ends_nowhere(struck: Struck) -> None:
    for data in BLOB, noise(3, 100):
        proxy = struck()
        writer = upload(proxy, data)
        with fails("does not have that digest", kind=IntegrityError):
            send(writer, bytes([data[0] ^ 1]) + data[1:])
        assert not stored(proxy, data)
        too_short = upload(proxy, data)
        with fails("ended after", kind=IntegrityError):
            send(too_short, data[:-1])
        assert not stored(proxy, data)


def test_abort_cancels(struck: Struck, embedded: RegistryServer) -> None:
    proxy = struck()
    others = set(embedded.root.rglob(".ingest*"))
    writer = upload(proxy)
    writer.write(BLOB[: CHUNK + 5])
    begun = time.monotonic()
    writer.abort()
    writer.abort()
    assert time.monotonic() - begun < 1
    assert len(proxy.seen("DELETE", UPLOAD)) == 1
    with fails("aborted", kind=RegistryError):
        writer.write(BLOB[:1])
    assert set(embedded.root.rglob(".ingest*")) <= others


def test_closing_ends_what_is_open(struck: Struck, chunks: None) -> None:
    proxy = struck()
    with target_at(proxy.host, "open:1") as target:
        target.open_writer(describe(BLOB)).write(BLOB[:-1])
    assert len(proxy.seen("DELETE", UPLOAD)) == 1
    assert not [one for one in threading.enumerate() if one.name == "soci-upload"]
