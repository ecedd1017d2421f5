"""The fault proxy passes on what no fault strikes, and each action does what it says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from tests.support.servers.actions import (
    Action,
    CutAnswer,
    DropHeaders,
    FlipByte,
    FloodAnswer,
    ForgetUpload,
    Hang,
    IgnoreRange,
    Pause,
    Redirect,
    Reply,
    ReplyEarly,
    Reset,
    ResetAnswer,
    ResetUpload,
    SetHeaders,
    ShortenAnswer,
    Throttle,
    error_reply,
    html_reply,
)
from tests.support.servers.ca import Ca
from tests.support.servers.client import pull, push_blob, push_image, session, sha256
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.fault_proxy import Fault, FaultProxy

LAYER = bytes(range(256)) * 1000
RANGE = {"Range": "bytes=10-19"}
BROKEN = (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)

Proxy = Callable[..., FaultProxy]


@pytest.fixture
def proxy(docker_registry: DockerRegistry) -> Iterator[Proxy]:
    """Makes proxies before the registry, in which the repository `faults` has the blob LAYER."""
    push_blob(session(), f"{docker_registry.url}/v2/faults", LAYER)
    made: list[FaultProxy] = []

    def make(*actions: Action, path: str = "/v2/faults/blobs/sha256:") -> FaultProxy:
        made.append(
            FaultProxy(docker_registry.host, *(Fault(action, path=path) for action in actions))
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


def blob_url(proxy: FaultProxy) -> str:
    return f"{proxy.url}/v2/faults/blobs/{sha256(LAYER)}"


def read_until_broken(answer: requests.Response) -> tuple[bytes, BaseException]:
    """What comes before the connection breaks, and how it breaks."""
    data = b""
    with pytest.raises(requests.exceptions.ChunkedEncodingError) as caught:
        for piece in answer.iter_content(100):
            data += piece
    return data, caught.value


def test_passes_on_and_logs(proxy: Proxy) -> None:
    through = proxy()
    repository = f"{through.url}/v2/through"
    http = session()
    manifest = push_image(http, repository, "latest", LAYER)
    assert pull(http, repository, "latest") == manifest
    assert [seen.status for seen in through.log] == [202, 201, 202, 201, 201, 200]
    assert [seen.body_bytes for seen in through.log] == [0, 2, 0, len(LAYER), len(manifest), 0]
    assert through.log[-1].answer_bytes == len(manifest)
    assert through.log[-1].path == "/v2/through/manifests/latest"
    assert "application/vnd.oci.image.manifest.v1+json" in through.log[-1].headers["accept"]
    assert [seen.body_bytes for seen in through.seen("PUT", "/uploads/")] == [2, len(LAYER)]
    assert {seen.connection for seen in through.log} == {1}
    assert through.connections == through.open_connections == 1
    assert session().head(blob_url(through)).headers["Content-Length"] == str(len(LAYER))
    assert through.connections == 2


def test_chunked_request(proxy: Proxy) -> None:
    through = proxy()
    start = session().post(f"{through.url}/v2/chunked/blobs/uploads/").headers["Location"]
    assert start.startswith(through.url)
    patched = session().patch(start, data=iter([b"one", b"two"]))
    assert patched.headers["Range"] == "0-5"
    assert through.log[-1].body_bytes == 6


def test_tls(docker_registry: DockerRegistry, ca: Ca) -> None:
    with FaultProxy(docker_registry.host, tls=ca.issue("127.0.0.1")) as through:
        push_image(session(verify=str(ca.cert)), f"{through.url}/v2/through-tls", "a", LAYER)
        assert through.url.startswith("https://")
        assert len(through.log) == 5


def test_bodies_are_streamed(proxy: Proxy) -> None:
    """The start of a body arrives while its end is still held back."""
    paused = proxy(Pause(30, at=100_000))
    answer = session().get(blob_url(paused), stream=True)
    assert answer.raw.read(100_000) == LAYER[:100_000]


def test_skip_times_and_method(docker_registry: DockerRegistry) -> None:
    fault = Fault(Reply(500), path="/v2/$", method="GET|PUT", skip=1, times=2)
    with FaultProxy(docker_registry.host, fault) as struck:
        url = f"{struck.url}/v2/"
        assert session().head(url).status_code == 200
        assert [session().get(url).status_code for _ in range(4)] == [200, 500, 500, 200]
        struck.clear()
        struck.add(Fault(Reply(503), times=1), Fault(Reply(500)))
        assert [session().get(url).status_code for _ in range(2)] == [503, 500]
        assert [seen.status for seen in struck.log] == [503, 500]


def test_replies(proxy: Proxy) -> None:
    limited = session().get(
        blob_url(proxy(error_reply(429, "TOOMANYREQUESTS", "slow down", Retry_After="1")))
    )
    assert limited.status_code == 429
    assert limited.headers["Retry-After"] == "1"
    assert limited.json()["errors"][0]["message"] == "slow down"
    page = session().get(blob_url(proxy(html_reply(404))))
    assert page.status_code == 404
    assert page.text.startswith("<!DOCTYPE html>")
    challenge = {"WWW-Authenticate": 'Bearer realm="http://x"'}
    refused = session().get(blob_url(proxy(Reply(401, challenge))))
    assert refused.headers["WWW-Authenticate"] == 'Bearer realm="http://x"'


def test_reply_keeps_the_connection(proxy: Proxy) -> None:
    struck = proxy(Reply(503), path="/uploads/")
    http = session()
    for _ in range(2):
        assert http.patch(f"{struck.url}/v2/a/blobs/uploads/1", data=LAYER).status_code == 503
    assert struck.connections == 1
    assert [seen.body_bytes for seen in struck.log] == [len(LAYER)] * 2


def test_reply_early(proxy: Proxy) -> None:
    struck = proxy(ReplyEarly(Reply(401)), path="/uploads/")
    url = f"{struck.url}/v2/a/blobs/uploads/1"
    assert session().patch(url, data=b"little").status_code == 401
    assert session().patch(url, data=bytes(50 << 20)).status_code == 401
    assert [seen.body_bytes for seen in struck.log] == [0, 0]


def test_resets(proxy: Proxy) -> None:
    with pytest.raises(requests.ConnectionError, match="Connection reset by peer"):
        session().get(blob_url(proxy(Reset())))
    answer = session().get(blob_url(proxy(ResetAnswer(after=1000))), stream=True)
    data, error = read_until_broken(answer)
    assert data == LAYER[:1000]
    assert "reset by peer" in str(error)


def test_reset_upload(proxy: Proxy, docker_registry: DockerRegistry) -> None:
    struck = proxy(ResetUpload(after=1000), path="/blobs/uploads/.+")
    start = session().post(f"{struck.url}/v2/reset/blobs/uploads/").headers["Location"]
    with pytest.raises(requests.ConnectionError):
        session().patch(start, data=LAYER)
    assert struck.log[-1].status is None
    (upload,) = docker_registry.storage.rglob("reset/_uploads/*/data")
    deadline = time.monotonic() + 5
    while not upload.stat().st_size and time.monotonic() < deadline:
        time.sleep(0.01)  # the registry writes it down when it notices
    assert upload.stat().st_size == 1000


def test_short_answers(proxy: Proxy) -> None:
    cut = session().get(blob_url(proxy(CutAnswer(after=1000))), stream=True)
    assert cut.headers["Content-Length"] == str(len(LAYER))
    data, error = read_until_broken(cut)
    assert data == LAYER[:1000]
    assert "reset" not in str(error)
    short = session().get(blob_url(proxy(ShortenAnswer(to=1000))))
    assert short.content == LAYER[:1000]
    assert short.headers["Content-Length"] == "1000"


def test_flip_byte(proxy: Proxy) -> None:
    for at in 0, 1234, len(LAYER) - 1:
        wrong = bytearray(LAYER)
        wrong[at] ^= 0xFF
        assert session().get(blob_url(proxy(FlipByte(at)))).content == wrong


def test_flood(proxy: Proxy) -> None:
    chunked = session().get(blob_url(proxy(FloodAnswer(3_000_000))), stream=True)
    assert "Content-Length" not in chunked.headers
    assert chunked.content == b" " * 3_000_000
    declared = session().get(blob_url(proxy(FloodAnswer(100, declared=100, filler=b"{"))))
    assert declared.content == b"{" * 100
    lie = session().get(blob_url(proxy(FloodAnswer(100, declared=1 << 40))), stream=True)
    assert read_until_broken(lie)[0] == b" " * 100


def test_slow(proxy: Proxy) -> None:
    begun = time.monotonic()
    assert session().get(blob_url(proxy(Pause(0.2)))).content == LAYER
    assert time.monotonic() - begun >= 0.2
    begun = time.monotonic()
    assert session().get(blob_url(proxy(Throttle(rate=1_000_000)))).content == LAYER
    assert 0.2 < time.monotonic() - begun < 2


def test_hang_ends_with_the_proxy(proxy: Proxy) -> None:
    hanging = proxy(Hang())
    with pytest.raises(requests.Timeout):
        session().get(blob_url(hanging), timeout=0.1)
    begun = time.monotonic()
    hanging.close()
    assert time.monotonic() - begun < 1
    assert hanging.log[0].status is None


def test_redirect(proxy: Proxy) -> None:
    with pytest.raises(requests.TooManyRedirects):
        session().get(blob_url(proxy(Redirect("{path}"))))
    other = proxy()
    struck = proxy(Redirect(f"http://{other.host}{{path}}"))
    answer = session().get(blob_url(struck), headers={**RANGE, "Authorization": "Bearer x"})
    assert answer.content == LAYER[10:20]
    assert "authorization" in struck.log[0].headers
    assert "authorization" not in other.log[0].headers
    assert other.log[0].headers["range"] == "bytes=10-19"


def test_ignore_range(proxy: Proxy) -> None:
    assert session().get(blob_url(proxy()), headers=RANGE).status_code == 206
    ignored = session().get(blob_url(proxy(IgnoreRange())), headers=RANGE)
    assert ignored.status_code == 200
    assert ignored.content == LAYER


def test_headers(proxy: Proxy) -> None:
    dropped = session().head(blob_url(proxy(DropHeaders(("docker-content-digest",)))))
    assert "Docker-Content-Digest" not in dropped.headers
    changed = session().head(
        blob_url(proxy(SetHeaders({"docker-content-digest": "x", "OCI-Subject": "y"})))
    )
    assert changed.headers["Docker-Content-Digest"] == "x"
    assert changed.headers["OCI-Subject"] == "y"
    chunked = session().get(blob_url(proxy(DropHeaders(("Content-Length",)))))
    assert chunked.headers["Transfer-Encoding"] == "chunked"
    assert chunked.content == LAYER


@pytest.mark.parametrize("method", ["GET", "PATCH", "PUT"])
def test_forget_upload(proxy: Proxy, method: str) -> None:
    struck = proxy(ForgetUpload(), path="/blobs/uploads/.+")
    start = session().post(f"{struck.url}/v2/forgotten/blobs/uploads/").headers["Location"]
    url = f"{start}&digest={sha256(LAYER)}"
    answer = session().request(method, url, data=LAYER if method != "GET" else None)
    assert answer.status_code == 404
    assert answer.json()["errors"][0]["code"] == "BLOB_UPLOAD_UNKNOWN"


def test_upstream_that_is_gone(need_docker_registry: str, tmp_path: Path) -> None:
    with DockerRegistry(tmp_path) as registry:
        through = FaultProxy(registry.host)
    with through:
        assert session().get(through.url).status_code == 502


def test_defects_of_an_action_come_out() -> None:
    def defect(exchange: object) -> None:
        raise LookupError("a defect")

    struck = FaultProxy("127.0.0.1:1", Fault(defect))
    with pytest.raises(BROKEN):
        session().get(struck.url)
    with pytest.raises(LookupError, match="a defect"):
        struck.close()
