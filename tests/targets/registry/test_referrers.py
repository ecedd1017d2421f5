"""What refers to an image: the Referrers API, the fallback tag, and several who write it at once."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from soci_cli.errors import InvalidDataError, RegistryError, SociError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.media_types import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST
from soci_cli.targets.copy import read_blob
from soci_cli.targets.protocol import Target
from soci_cli.targets.registry import referrers
from soci_cli.targets.registry.place import RegistryTarget
from soci_cli.targets.registry.referrers import fallback_tag
from soci_cli.trial_registry import RegistryServer
from tests.support.places import describe, push_json
from tests.support.servers.actions import DropHeaders, Reply, error_reply, html_reply
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.exchange import Exchange
from tests.support.servers.fault_proxy import Fault, FaultProxy
from tests.targets.registry.tools import fails, push, source_at, target_at

KIND = "application/vnd.example.index"
API = "/referrers/"


def refer(target: Target, subject: Descriptor, number: int, kind: str = KIND) -> Descriptor:
    """Pushes a manifest that refers to `subject`."""
    config = push_json(target, {}, OCI_CONFIG)
    value = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": kind,
        "config": config.to_json(),
        "layers": [],
        "subject": {"mediaType": OCI_MANIFEST, "digest": subject.digest, "size": subject.size},
        "annotations": {"number": str(number)},
    }
    data = json.dumps(value).encode()
    descriptor = describe(data, OCI_MANIFEST)
    target.push(descriptor, data)
    return descriptor


def digests(host: str, name: str, subject: Descriptor, kind: str = KIND) -> set[str]:
    return {one.digest for one in source_at(host, name).referrers(subject, kind)}


def test_api(embedded: RegistryServer) -> None:
    root = push(embedded.address, "api:1")
    with FaultProxy(embedded.address) as proxy, target_at(proxy.host, "api:1") as target:
        mine = {refer(target, root, number).digest for number in range(3)}
        refer(target, root, 9, "application/other")
        assert digests(embedded.address, "api:1", root) == mine
        assert not proxy.seen(path=fallback_tag(root.digest)), "the API keeps the list"


def test_pages(embedded: RegistryServer) -> None:
    root = push(embedded.address, "pages:1")
    with target_at(embedded.address, "pages:1") as target:
        mine = {refer(target, root, number).digest for number in range(120)}
    assert digests(embedded.address, "pages:1", root) == mine


@pytest.fixture
def quick_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """For pushers that have no real rival, whose late writes the pause is for."""
    monkeypatch.setattr(referrers, "_SECOND_LOOK", 0.05)


def test_fallback_tag(docker_registry: DockerRegistry, quick_look: None) -> None:
    host = docker_registry.host
    root = push(host, "fallback:1")
    assert not digests(host, "fallback:1", root)
    with target_at(host, "fallback:1") as target:
        first = refer(target, root, 1)
        second = refer(target, root, 2)
        other = refer(target, root, 3, "application/other")
        refer(target, root, 1)
    assert digests(host, "fallback:1", root) == {first.digest, second.digest}
    listed = source_at(host, f"fallback:{fallback_tag(root.digest)}")
    index = json.loads(read_blob(listed, listed.resolve()))
    assert [one["digest"] for one in index["manifests"]] == [
        first.digest,
        second.digest,
        other.digest,
    ]
    assert index["manifests"][0]["artifactType"] == KIND
    assert index["manifests"][0]["annotations"] == {"number": "1"}


def all_at_once(work: Callable[[int], None], count: int) -> list[BaseException]:
    """Runs `work(number)` in threads that begin together; what went wrong."""
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except SociError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.mark.parametrize("api", [True, False])
def test_many_pushers_and_if_match(embedded: RegistryServer, api: bool) -> None:
    """With an API that says nothing of subjects, and with If-Match that is heeded."""
    root = push(embedded.address, "match:1")
    found: dict[int, str] = {}
    with FaultProxy(embedded.address) as proxy:
        proxy.add(Fault(DropHeaders(("oci-subject",)), method="PUT"))
        if not api:
            proxy.add(Fault(error_reply(404, "NOT_FOUND"), path=API))

        def work(number: int) -> None:
            with target_at(proxy.host, "match:1") as target:
                found[number] = refer(target, root, number).digest

        assert not all_at_once(work, 6)
        assert digests(proxy.host, "match:1", root) == set(found.values())
        refused = [seen for seen in proxy.log if seen.status == 412]
        conditions = {"if-match", "if-none-match"}
        assert all(conditions & seen.headers.keys() for seen in refused)
        assert [seen for seen in proxy.seen("PUT") if "if-match" in seen.headers]


def test_many_pushers_of_docker_registry(docker_registry: DockerRegistry) -> None:
    root = push(docker_registry.host, "many:1")
    found: dict[int, str] = {}

    def work(number: int) -> None:
        with target_at(docker_registry.host, "many:1") as target:
            found[number] = refer(target, root, number).digest

    assert not all_at_once(work, 6)
    assert digests(docker_registry.host, "many:1", root) == set(found.values())


def test_two_processes(docker_registry: DockerRegistry) -> None:
    root = push(docker_registry.host, "processes:1")
    program = (
        "import sys; from tests.targets.registry.test_referrers import refer, target_at, describe;"
        "from soci_cli.oci.descriptor import Descriptor;"
        f"root = Descriptor({root.media_type!r}, {root.digest!r}, {root.size});"
        f"target = target_at({docker_registry.host!r}, 'processes:1');"
        "print(refer(target, root, int(sys.argv[1])).digest)"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(number)], stdout=subprocess.PIPE, text=True
        )
        for number in range(2)
    ]
    said = {process.communicate(timeout=20)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0] * 2
    assert digests(docker_registry.host, "processes:1", root) == said


def test_entry_that_is_overwritten_comes_back(
    docker_registry: DockerRegistry, quick_look: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who read the list before us writes it after us."""
    host = docker_registry.host
    root = push(host, "over:1")
    tag = fallback_tag(root.digest)
    empty = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()

    def overwritten(exchange: Exchange) -> None:
        answer = exchange.ask()
        exchange.answer(answer.status, answer.headers, answer.body)
        with target_at(host, f"over:{tag}") as rival:
            assert isinstance(rival, RegistryTarget)
            rival._put_manifest(describe(empty, OCI_INDEX), empty, tag)

    with FaultProxy(host, Fault(overwritten, path=tag, method="PUT", times=2)) as proxy:
        with target_at(proxy.host, "over:1") as target:
            mine = refer(target, root, 1)
        assert len(proxy.seen("PUT", tag)) == 3
    assert digests(host, "over:1", root) == {mine.digest}
    monkeypatch.setattr(referrers, "_ROUNDS", 4)
    with (
        FaultProxy(host, Fault(overwritten, path=tag, method="PUT")) as proxy,
        fails("written by others all the time", kind=RegistryError),
        target_at(proxy.host, "over:1") as target,
    ):
        refer(target, root, 2)


def test_other_errors_of_the_fallback(docker_registry: DockerRegistry) -> None:
    root = push(docker_registry.host, "wrong:1")
    tag = fallback_tag(root.digest)
    for action, said in [
        (error_reply(403, "DENIED", "no tags"), "no tags"),
        (html_reply(200), "not valid JSON"),
        (Reply(200, body=b'{"schemaVersion": 2, "config": {}, "layers": []}'), "expected an image"),
    ]:
        with FaultProxy(docker_registry.host, Fault(action, path=tag, method="GET")) as proxy:
            with fails(said), target_at(proxy.host, "wrong:1") as target:
                refer(target, root, 1)
            assert not proxy.seen("PUT", tag), "what cannot be read is not overwritten"


# Lists that lie


def page(*entries: object, link: str = "", kind: str = OCI_INDEX) -> Reply:
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    headers = {"Content-Type": kind, **({"Link": link} if link else {})}
    return Reply(200, headers, body)


SUBJECT = describe(b"subject", OCI_MANIFEST)
ENTRY = Descriptor(OCI_MANIFEST, describe(b"1").digest, 1, artifact_type=KIND).to_json()


def ask(*faults: Fault) -> tuple[Descriptor, ...]:
    with FaultProxy("127.0.0.1:1", *faults) as proxy:
        return source_at(proxy.host, "lies:1").referrers(SUBJECT, KIND)


LINKS = [
    "",
    ";",
    "<",
    "<>; rel=next",
    '<http://[::1/?a=1>; rel="next"',
    '<?last=1>; rel="previous"',
    '<?last=1>; rel="next", <?last=2>; rel="next"',
    "\xff\xfe",
    "x" * 60_000,
]


@pytest.mark.parametrize("link", LINKS, ids=lambda value: value[:20])
def test_links(link: str) -> None:
    try:
        found = ask(Fault(page(ENTRY, link=link), path=API, times=1), Fault(page(), path=API))
    except RegistryError as error:
        assert "link" in str(error)
    else:
        assert [one.digest for one in found] == [ENTRY["digest"]]


def test_links_lead_to_the_same_place() -> None:
    with FaultProxy("127.0.0.1:1") as other, FaultProxy("127.0.0.1:1") as proxy:
        proxy.add(
            Fault(page(ENTRY, link=f'<{other.url}/v2/x?last=1>; rel="next"'), path=API, times=1),
            Fault(page(), path="last=1"),
        )
        assert len(source_at(proxy.host, "lies:1").referrers(SUBJECT, KIND)) == 1
        assert not other.log


def test_lists_without_end() -> None:
    with fails("have no end", kind=RegistryError):
        ask(Fault(page(link='<?last=1>; rel="next"'), path=API))
    many = [{**ENTRY, "digest": describe(str(number).encode()).digest} for number in range(6000)]
    with fails("more than 10000", kind=InvalidDataError):
        ask(Fault(page(*many, link='<?last=1>; rel="next"'), path=API))


def test_second_page_that_fails() -> None:
    """A part of a list is not taken for all of it."""
    first = Fault(page(ENTRY, link='<?last=1>; rel="next"'), path=API, times=1)
    for status in 404, 403, 500:
        with fails(str(status)):
            ask(
                first, Fault(error_reply(status, "NO"), path=API), Fault(page(), path="/manifests/")
            )


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (page({"digest": "x"}), "digest"),
        (page({**ENTRY, "size": -1}), "size"),
        (page({**ENTRY, "size": "1"}), "size"),
        (page(5), "manifests[0]"),
        (Reply(200, {"Content-Type": OCI_INDEX}, b"{"), "not valid JSON"),
        (Reply(200, {"Content-Type": OCI_INDEX}, b"[" * 50_000), "JSON"),
        (Reply(200, {"Content-Type": OCI_INDEX}, b" " * (5 << 20)), "larger than"),
        (error_reply(418, "TEAPOT", "short and stout"), "short and stout"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_lists_that_are_none(reply: Reply, said: str) -> None:
    with fails(said):
        ask(Fault(reply, path=API))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 429, 500, 501])
def test_registries_without_the_api(status: int) -> None:
    found = ask(
        Fault(error_reply(status, "UNSUPPORTED"), path=API),
        Fault(page(ENTRY), path=f"/manifests/{fallback_tag(SUBJECT.digest)}"),
    )
    assert [one.digest for one in found] == [ENTRY["digest"]]


def test_a_page_is_no_list() -> None:
    fallback = Fault(error_reply(404, "MANIFEST_UNKNOWN"), path="/manifests/")
    assert ask(Fault(html_reply(200), path=API), fallback) == ()
    assert ask(Fault(page(ENTRY, kind="application/json"), path=API), fallback) == ()


def test_other_types_are_left_out() -> None:
    other = {**ENTRY, "artifactType": "application/other"}
    assert ask(Fault(page(other), path=API)) == ()


def test_a_tag_that_is_something_else_is_no_list(docker_registry: DockerRegistry) -> None:
    """As with GitLab, which gives the image itself for the fallback tag."""
    root = push(docker_registry.host, "gitlab:1")
    data = read_blob(source_at(docker_registry.host, "gitlab:1"), root)
    answer = Reply(200, {"Content-Type": OCI_MANIFEST}, data)
    with FaultProxy(
        docker_registry.host, Fault(answer, path="/manifests/sha256-", method="GET")
    ) as p:
        assert not digests(p.host, "gitlab:1", root)
        with (
            target_at(p.host, "gitlab:1") as target,
            fails("keeps no list of referrers", "convert the image instead"),
        ):
            refer(target, root, 1)
