"""Writing to a registry that breaks: complete and correct, or an error and the tag where it was."""

from __future__ import annotations

import re
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from soci_cli.errors import (
    IntegrityError,
    LostUploadError,
    NotFoundError,
    RegistryError,
    SociError,
    UsageError,
)
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.media_types import OCI_LAYER, OCI_MANIFEST
from soci_cli.targets.copy import copy_blob, copy_graph, read_blob
from soci_cli.targets.layout import Layout, WritableLayout
from soci_cli.targets.registry import RetryPolicy
from soci_cli.targets.registry.place import RegistryTarget
from soci_cli.targets.registry.repository import Repository
from soci_cli.targets.registry.upload import BlobUpload
from soci_cli.trial_registry import RegistryServer
from tests.support.images import noise
from tests.support.places import describe, push_image
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
    html_reply,
)
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.exchange import Exchange
from tests.support.servers.fault_proxy import Fault, FaultProxy
from tests.targets.registry.tools import (
    copy,
    fails,
    push,
    registries,
    small_chunks,
    source_at,
    target_at,
)

CHUNK = 100_000
SIZE = 350_000
BLOB = noise(99, SIZE)
UPLOAD = "/blobs/uploads/."
Struck = Callable[..., FaultProxy]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """One for all tests, because there are many; each has repositories of its own."""
    with RegistryServer(tmp_path_factory.mktemp("embedded")) as server:
        yield server


def own(name: str, proxy: FaultProxy) -> str:
    """A repository that no other test has."""
    return f"{name}-{proxy.host.rpartition(':')[2]}"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An image of two layers of SIZE bytes."""
    with WritableLayout(tmp_path / "source", "1") as target:
        target.tag(push_image(target, seed=5, size=SIZE))
    return Layout(tmp_path / "source", "1")


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with small_chunks(monkeypatch, CHUNK):
        yield


@pytest.fixture
def struck(request: pytest.FixtureRequest) -> Iterator[Struck]:
    """Makes proxies before the embedded registry or, with a host, before another one."""
    made: list[FaultProxy] = []

    def make(*faults: Fault, host: str = "") -> FaultProxy:
        upstream = host or request.getfixturevalue("embedded").address
        made.append(FaultProxy(upstream, *faults))
        return made[-1]

    yield make
    for each in made:
        each.close()


def upload(proxy: FaultProxy, data: bytes = BLOB, **more: object) -> BlobUpload:
    target = target_at(proxy.host, f"{own('app', proxy)}:1", **more)
    return BlobUpload(
        Repository(target._client, target.reference, True), describe(data), target.name, None, CHUNK
    )


def send(writer: BlobUpload, data: bytes = BLOB) -> None:
    try:
        for start in range(0, len(data), 10_000):
            writer.write(data[start : start + 10_000])
        writer.commit()
    finally:
        writer.abort()


def stored(proxy: FaultProxy, data: bytes = BLOB) -> bool:
    proxy.clear()
    source = source_at(proxy.host, f"{own('app', proxy)}:1")
    try:
        return read_blob(source, describe(data), len(data)) == data
    except NotFoundError:
        return False


# How it goes when nothing breaks


def test_round_trip(docker_registry: DockerRegistry, layout: Layout, chunks: None) -> None:
    with FaultProxy(docker_registry.host) as proxy, target_at(proxy.host, "trip:1") as target:
        root = copy(layout, target)
        methods = [
            seen.method for seen in proxy.log if re.search("blobs|uploads", seen.path) is not None
        ]
        assert methods.count("HEAD") == 3
        assert methods.index("HEAD") < methods.index("POST")
        assert methods.count("PATCH") == 8
        pushed = proxy.seen("PUT", "/manifests/")
        assert [seen.path.rpartition("/")[2] for seen in pushed] == [root.digest, "1"]
        again = len(proxy.log)
        copy(layout, target_at(proxy.host, "trip:2"))
        assert not [seen for seen in proxy.log[again:] if "upload" in seen.path]
        assert len(proxy.seen("PUT", "/manifests/")) == 3
    source = source_at(docker_registry.host, "trip:2")
    assert source.resolve() == root
    assert read_blob(source, root) == read_blob(layout, root)


def test_manifests_are_sent_as_they_are(docker_registry: DockerRegistry) -> None:
    """Odd spaces and the order of keys count for the digest."""
    with target_at(docker_registry.host, "exact:1") as target:
        root = push_image(target)
        odd = read_blob(target, root).replace(b":", b" :\t").replace(b" :\t", b":", 1)
        odd = odd.replace(b"sha256 :\t", b"sha256:") + b"\n"
        target.push(describe(odd, OCI_MANIFEST), odd)
        target.tag(describe(odd, OCI_MANIFEST))
    source = source_at(docker_registry.host, "exact:1")
    assert read_blob(source, source.resolve()) == odd


def test_connections_and_parallel_uploads(
    docker_registry: DockerRegistry, layout: Layout, chunks: None
) -> None:
    both = threading.Barrier(2, timeout=5)

    def meet(exchange: Exchange) -> None:
        both.wait()
        answer = exchange.ask()
        exchange.answer(answer.status, answer.headers, answer.body)

    with FaultProxy(docker_registry.host) as proxy:
        proxy.add(Fault(meet, path=UPLOAD, method="PATCH", times=2))
        with target_at(proxy.host, "parallel:1", timeout=10.0) as target:
            copy(layout, target)
        # Two blobs at a time, each with a thread that sends and one that reads.
        assert proxy.connections <= 4
        assert len(proxy.log) > 20


def test_empty_blob(docker_registry: DockerRegistry) -> None:
    with target_at(docker_registry.host, "empty:1") as target:
        target.push(describe(b""), b"")
        assert read_blob(target, describe(b"")) == b""


def test_memory(struck: Struck) -> None:
    """300 MB go by in a chunk of 16 MiB, and many blobs leave nothing behind."""
    size = 300 << 20
    piece = bytes(1 << 20)
    import hashlib

    whole = hashlib.sha256()
    for _ in range(size >> 20):
        whole.update(piece)

    def swallow(exchange: Exchange) -> None:
        exchange.drain()
        where = f"/v2/big/blobs/uploads/{exchange.seen.body_bytes}"
        status = {"POST": 202, "PATCH": 202, "PUT": 201, "HEAD": 404}[exchange.method]
        Reply(status, {"Location": where})(exchange)

    proxy = struck(Fault(swallow), host="127.0.0.1:1")
    tracemalloc.start()
    try:
        with target_at(proxy.host, "big:1", timeout=20.0) as target:
            writer = target.open_writer(Descriptor(OCI_LAYER, f"sha256:{whole.hexdigest()}", size))
            for _ in range(size >> 20):
                writer.write(piece)
            writer.commit()
            writers = []
            for number in range(8):
                data = noise(number, 5 << 20)
                writers.append(target.open_writer(describe(data)))
                writers[-1].write(data)
                writers[-1].commit()
            held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30 << 20
    assert held < 12 << 20


# Faults of one upload


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


def layout_blobs(layout: Layout) -> list[Descriptor]:
    from soci_cli.oci.manifest import parse_manifest

    manifest = parse_manifest(read_blob(layout, layout.resolve()), "")
    return [manifest.config, *manifest.layers]


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


# The tag


TAG = "/manifests/1$"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(error_reply(500, "UNKNOWN", "oh no"), path=UPLOAD), "oh no"),
        (Fault(error_reply(403, "DENIED", "read only"), path="/blobs/uploads/"), "read only"),
        (Fault(error_reply(401, "UNAUTHORIZED"), path=UPLOAD, method="PATCH", skip=2), "401"),
        (Fault(Reset(), path=UPLOAD, method="PATCH", skip=3), "reset"),
        (
            Fault(error_reply(400, "MANIFEST_INVALID", "no"), path="/manifests/sha", method="PUT"),
            "no",
        ),
        (Fault(error_reply(413, "SIZE_INVALID"), path="/manifests/sha", method="PUT"), "413"),
        (Fault(Redirect("{path}"), path="/manifests/sha", method="PUT"), "too often"),
        (
            Fault(
                SetHeaders({"Docker-Content-Digest": describe(b"").digest}),
                path="/manifests/sha",
                method="PUT",
            ),
            "instead of",
        ),
        (Fault(error_reply(429, "TOOMANYREQUESTS"), path=TAG, method="PUT"), "429"),
        (Fault(html_reply(500), path=TAG, method="PUT"), "500"),
    ],
    ids=repr,
)
def test_no_tag_moves_after_an_error(
    fault: Fault, said: str, struck: Struck, layout: Layout, chunks: None, embedded: RegistryServer
) -> None:
    proxy = struck(fault)
    name = f"{own('kept', proxy)}:1"
    before = push(embedded.address, name, seed=77)
    with (
        fails(said),
        target_at(proxy.host, name) as target,
    ):
        copy(layout, target)
    assert source_at(embedded.address, name).resolve() == before


def test_tag_gets_over_faults(struck: Struck, layout: Layout) -> None:
    proxy = struck(
        Fault(Reset(), path=TAG, method="PUT", times=1),
        Fault(error_reply(503, "BUSY"), path=TAG, method="PUT", times=1),
    )
    with target_at(proxy.host, "over:1") as target:
        root = copy(layout, target)
    assert source_at(proxy.host, "over:1").resolve() == root


def test_blobs_that_are_not_seen_for_a_moment(struck: Struck, layout: Layout) -> None:
    """As when another client pushes the same blob at the same time."""
    unknown = error_reply(404, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry")
    proxy = struck(Fault(unknown, path="/manifests/sha", method="PUT", times=2))
    with target_at(proxy.host, "moment:1") as target:
        copy(layout, target)
    proxy.add(Fault(unknown, path="/manifests/", method="PUT"))
    with (
        fails("blob unknown to registry", kind=NotFoundError),
        target_at(proxy.host, "moment:2") as target,
    ):
        target.tag(copy(layout, target))


def test_digest_as_the_name(docker_registry: DockerRegistry) -> None:
    root = push(docker_registry.host, "named:1", seed=8)
    where = registries()
    with target_at(where, f"{docker_registry.host}/named@{root.digest}") as target:
        assert push_image(target, seed=8) == root
        target.tag(root)
        with pytest.raises(UsageError, match="cannot name"):
            target.tag(describe(b"other", OCI_MANIFEST))


# Mounting


def test_mount(docker_registry: DockerRegistry) -> None:
    with FaultProxy(docker_registry.host) as proxy:
        where = registries()
        push(proxy.host, "mount/from:1", seed=31, size=SIZE)
        source = source_at(where, f"{proxy.host}/mount/from:1")
        target = target_at(where, f"{proxy.host}/mount/to:1")
        proxy.clear()
        with target:
            copy(source, target)
        mounted = proxy.seen("POST", "mount=sha256%3A[0-9a-f]+&from=mount%2Ffrom")
        assert [seen.status for seen in mounted] == [201] * 3
        assert not proxy.seen("PATCH|PUT", "/uploads/")
        assert not proxy.seen("GET", "/blobs/")


@pytest.mark.parametrize(
    "action",
    [error_reply(status, "NO") for status in (400, 401, 403, 404, 405, 500)],
    ids=lambda action: action.status,
)
def test_refused_mounts_are_copied(
    action: Action, docker_registry: DockerRegistry, struck: Struck
) -> None:
    push(docker_registry.host, "mount/from:2", seed=32)
    proxy = struck(Fault(action, path="mount="), host=docker_registry.host)
    where = registries()
    repo = f"mount/refused-{action.status}"  # type: ignore[attr-defined]
    with target_at(where, f"{proxy.host}/{repo}:1") as target:
        root = copy(source_at(where, f"{proxy.host}/mount/from:2"), target)
    assert source_at(docker_registry.host, f"{repo}:1").resolve() == root


def test_mount_that_opens_an_upload(docker_registry: DockerRegistry, struck: Struck) -> None:
    def unknown(exchange: Exchange) -> None:
        exchange.path = exchange.path.replace("from=mount", "from=nowhere")
        answer = exchange.ask()
        exchange.answer(answer.status, answer.headers, answer.body)

    push(docker_registry.host, "mount/from:3", seed=33)
    proxy = struck(Fault(unknown, path="mount="), host=docker_registry.host)
    where = registries()
    with target_at(where, f"{proxy.host}/mount/opened:1") as target:
        copy(source_at(where, f"{proxy.host}/mount/from:3"), target)
    assert len(proxy.seen("POST", "/uploads/")) == 3, "the upload that was opened is used"


def test_a_source_that_fails_leaves_nothing(
    docker_registry: DockerRegistry, embedded: RegistryServer, chunks: None
) -> None:
    others = set(embedded.root.rglob(".ingest*"))
    push(docker_registry.host, "half:1", seed=41, size=SIZE)
    with FaultProxy(docker_registry.host) as from_here:
        from_here.add(Fault(error_reply(500, "UNKNOWN", "gone"), path="/blobs/", skip=3))
        from_here.add(Fault(Reset(), path="/blobs/"))
        with fails(), target_at(embedded.address, "half:1") as target:
            source = source_at(from_here.host, "half:1", retries=RetryPolicy(1))
            root = source.resolve()
            for _ in range(3):
                copy_graph(source, target, root)
            target.tag(root)
    with fails(kind=NotFoundError):
        source_at(embedded.address, "half:1").resolve()
    assert set(embedded.root.rglob(".ingest*")) <= others


def test_copy_blob_says_how(docker_registry: DockerRegistry, layout: Layout) -> None:
    with target_at(docker_registry.host, "how:1") as target:
        assert isinstance(target, RegistryTarget)
        blob = layout_blobs(layout)[1]
        assert copy_blob(layout, target, blob) == "copied"
        assert copy_blob(layout, target, blob) == "already there"
