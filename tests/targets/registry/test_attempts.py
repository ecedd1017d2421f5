"""There are as many attempts at one thing as docs/registries.md says, whatever fails at each."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from soci_cli.errors import LostUploadError, RegistryError, UnreachableError
from soci_cli.targets.copy import read_blob
from soci_cli.targets.registry import RetryPolicy
from soci_cli.targets.registry.retry import Attempts
from tests.support.images import noise
from tests.support.places import describe
from tests.support.servers.actions import (
    Action,
    CutAnswer,
    Redirect,
    Reply,
    Reset,
    ResetAnswer,
    error_reply,
)
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.fault_proxy import Fault, FaultProxy
from tests.targets.registry.tools import LOGIN, fails, push, source_at, target_at

SIX = RetryPolicy(first=0.001, longest=0.002)
LAYER = noise(0, 5000)
BLOB = describe(LAYER)
UNAVAILABLE = error_reply(503, "UNAVAILABLE")


@pytest.fixture(scope="module")
def host(docker_registry: DockerRegistry) -> str:
    push(docker_registry.host, "attempts:1")
    return docker_registry.host


@pytest.mark.parametrize("action", [UNAVAILABLE, Reset(), CutAnswer(10), ResetAnswer(10)], ids=repr)
@pytest.mark.parametrize("path", ["/manifests/", "/blobs/"])
def test_reading(host: str, action: Action, path: str) -> None:
    with FaultProxy(host, Fault(action, path=path)) as proxy:
        source = source_at(proxy.host, "attempts:1", retries=SIX)
        with fails(kind=RegistryError):
            source.resolve() if path == "/manifests/" else read_blob(source, BLOB)
        assert len(proxy.log) == 6


def test_failures_of_several_kinds_count_together(host: str) -> None:
    faults = [Fault(one, times=2) for one in (UNAVAILABLE, CutAnswer(10), Reset())]
    with FaultProxy(host, *faults) as proxy:
        with fails("6 attempts", kind=UnreachableError):
            read_blob(source_at(proxy.host, "attempts:1", retries=SIX), BLOB)
        assert len(proxy.log) == 6


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_small_upload(host: str, method: str) -> None:
    with FaultProxy(host, Fault(UNAVAILABLE, method=method)) as proxy:
        with target_at(proxy.host, "attempts/new:1", retries=SIX) as target:
            writer = target.open_writer(describe(b"new"))
            writer.write(b"new")
            with fails("503", kind=LostUploadError if method == "PUT" else RegistryError):
                writer.commit()
        assert len(proxy.seen(method)) == 6


def test_a_chunk(host: str) -> None:
    with FaultProxy(host, Fault(UNAVAILABLE, method="PATCH")) as proxy:
        with target_at(proxy.host, "attempts/new:1", retries=SIX) as target:
            data = noise(5, 9 << 20)
            writer = target.open_writer(describe(data))
            with fails("503", kind=RegistryError):
                writer.write(data)
                writer.commit()
        assert len(proxy.seen("PATCH")) == 6


def test_a_manifest_whose_blobs_are_never_seen(host: str) -> None:
    unknown = error_reply(400, "MANIFEST_BLOB_UNKNOWN")
    with FaultProxy(host, Fault(unknown, method="PUT", path="/manifests/")) as proxy:
        with fails("MANIFEST_BLOB_UNKNOWN", kind=RegistryError):
            push(proxy.host, "attempts:2", retries=SIX)
        assert len(proxy.seen("PUT", "/manifests/")) == 6


def test_a_token() -> None:
    with FaultProxy("127.0.0.1:1", Fault(UNAVAILABLE)) as tokens:
        challenge = {"WWW-Authenticate": f'Bearer realm="{tokens.url}/token"'}
        with FaultProxy("127.0.0.1:1", Fault(Reply(401, challenge))) as registry:
            given = {registry.host: LOGIN}
            with fails("503", kind=RegistryError):
                source_at(registry.host, "x:1", credentials=given, retries=SIX).resolve()
            assert len(tokens.log) == 6 and len(registry.log) == 1


def test_where_nothing_listens() -> None:
    with fails("connection refused (4 attempts)", kind=UnreachableError):
        source_at("127.0.0.1:1", "x:1", retries=SIX).resolve()


def test_attempts_that_are_counted() -> None:
    def failing(error: RegistryError) -> Callable[[], None]:
        def work() -> None:
            done.append(attempts.number)
            raise error

        return work

    for error, count in [
        (RegistryError("no", 403), 1),
        (RegistryError("busy", 503, transient=True), 6),
        (RegistryError("later", 429, 0.0, transient=True), 6),
        (RegistryError("much later", 429, 3600.0, transient=True), 1),
        (UnreachableError("silent"), 6),
        (UnreachableError("refused", refused=True), 4),
        (UnreachableError("not trusted", transient=False), 1),
    ]:
        done: list[int] = []
        attempts = Attempts(SIX)
        with pytest.raises(type(error)) as caught:
            attempts.run(failing(error))
        assert caught.value is error
        assert done == list(range(1, count + 1))
    few = Attempts(SIX, 2)
    few.failed(UnreachableError("silent"))
    few.progressed()
    few.failed(UnreachableError("silent"))
    with pytest.raises(UnreachableError, match="2 attempts"):
        few.failed(UnreachableError("silent"))


def test_each_request_is_logged(host: str, caplog: pytest.LogCaptureFixture) -> None:
    """Method, URL, status, attempt and time; nothing that is secret."""
    caplog.set_level(logging.DEBUG, "soci_cli.registry")
    with FaultProxy("127.0.0.1:1", Fault(Reply(200, body=LAYER))) as store:
        location = f"{store.url}/store?sig=SECRET"
        faults = Fault(UNAVAILABLE, times=1), Fault(Reset(), times=1), Fault(Redirect(location))
        with FaultProxy(host, *faults) as proxy:
            read_blob(source_at(proxy.host, "attempts:1", retries=SIX), BLOB)
    said = [record.getMessage() for record in caplog.records if record.name == "soci_cli.registry"]
    url = f"{proxy.url}/v2/attempts/blobs/{BLOB.digest}"
    for line, start in zip(
        said,
        [
            f"GET {url}: 503 (attempt 1, ",
            f"GET {url}: connection reset by peer (attempt 2, ",
            f"GET {url}: 307 (attempt 3, ",
            f"GET {store.url}/store?…: 200 (attempt 3, ",
        ],
        strict=True,
    ):
        assert line.startswith(start) and line.endswith(" s)")
