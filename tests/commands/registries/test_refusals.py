"""Registries that refuse SOCI's types, or do not list its indexes; indexes that got lost on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests

from soci_cli.index import push as pushing
from soci_cli.oci.media_types import OCI_INDEX
from tests.commands.registries.machine import CONVERT, INDEX_V1, PUSH, Server, converted
from tests.support.commands import Soci
from tests.support.servers.actions import Reply, error_reply
from tests.support.servers.exchange import Exchange
from tests.support.servers.fault_proxy import Fault, FaultProxy

REFUSALS = [
    error_reply(400, "MANIFEST_INVALID", "unknown media type"),  # GitLab
    error_reply(415, "UNSUPPORTED"),
    error_reply(405, "UNSUPPORTED", "Invalid parameter"),
    Reply(400),
]


def refuse(answer: Reply) -> Fault:
    """Refuses manifests in which a SOCI type is named; takes all others."""

    def action(exchange: Exchange) -> None:
        data = b"".join(exchange.body())
        if b"application/vnd.amazon.soci." in data:
            answer(exchange)
        else:
            given = exchange.ask(body=[data])
            exchange.answer(given.status, given.headers, given.body)

    return Fault(action, path="/manifests/", method="PUT")


@pytest.mark.parametrize("answer", REFUSALS, ids=lambda answer: str(answer.status))
def test_types_that_are_refused(soci: Soci, server: Server, image: Path, answer: Reply) -> None:
    with FaultProxy(server.host, refuse(answer)) as proxy:
        name = f"{proxy.host}/refused:1"
        hint = ("this registry refuses SOCI's media types", "another registry", str(answer.status))
        soci(*CONVERT, f"oci:{image}", f"docker://{name}").bad(1, *hint)
        soci("image", "load", "-i", image, "--name", name).good()
        soci(*PUSH, name).bad(1, *hint)
        soci("push", "--snapshotter", "overlayfs", name).good()


@pytest.mark.parametrize("code", ["TAG_INVALID", "DENIED", "NAME_UNKNOWN"])
def test_other_refusals_are_told_as_they_are(
    soci: Soci, server: Server, image: Path, code: str
) -> None:
    with FaultProxy(server.host, refuse(error_reply(400, code))) as proxy:
        done = soci(*CONVERT, f"oci:{image}", f"docker://{proxy.host}/refused:1").bad(1, code)
        assert "media types" not in done.err


def test_an_index_that_is_not_listed(
    soci: Soci, server: Server, app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "_LOOKS", (0, 0))
    empty = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
    listing = Reply(200, {"Content-Type": OCI_INDEX}, empty)
    with FaultProxy(server.host, Fault(listing, path="/referrers/")) as proxy:
        name = app.replace(server.host, proxy.host)
        soci("pull", name).good()
        done = soci(*PUSH, name).good()
        assert "does not list SOCI index sha256:" in done.err
        assert "soci image convert --soci" in done.err
    soci("pull", app).good()
    assert "does not list" not in soci(*PUSH, app).good().err


def without_its_index(server: Server, name: str, repository: str) -> str:
    """The manifest of a converted image alone, as clients copy one platform; its new name."""
    base = f"http://{server.host}/v2"
    own, tag = name.removeprefix(f"{server.host}/").split(":")
    index = requests.get(f"{base}/{own}/manifests/{tag}", timeout=10).json()
    answer = requests.get(f"{base}/{own}/manifests/{index['manifests'][0]['digest']}", timeout=10)
    manifest = answer.json()
    for blob in (manifest["config"], *manifest["layers"]):
        where = {"mount": blob["digest"], "from": own}
        requests.post(f"{base}/{repository}/blobs/uploads/", params=where, timeout=10)
    headers = {"Content-Type": manifest["mediaType"]}
    url = f"{base}/{repository}/manifests/copy"
    requests.put(url, answer.content, headers=headers, timeout=10).raise_for_status()
    return f"{server.host}/{repository}:copy"


def test_an_image_whose_index_got_lost_gets_one_v1(soci: Soci, server: Server, app: str) -> None:
    lost = without_its_index(server, converted(soci, app), "elsewhere")
    soci("pull", lost).good()
    done = soci(*PUSH, lost).good()
    assert "SOCI v1" in done.err
    (listed,) = server.referrers("elsewhere", done.last)
    assert listed["artifactType"] == INDEX_V1


def test_an_index_beside_the_image_goes_along(soci: Soci, server: Server, app: str) -> None:
    """Within its repository the index is found, and pulled; it is pushed with the image."""
    copy = without_its_index(server, converted(soci, app), "team/app")
    assert "SOCI v2" in soci("pull", copy).good().err
    other = f"{server.host}/moved:1"
    soci("image", "tag", copy, other).good()
    done = soci("push", other).good()
    assert not server.referrers("moved", done.last)
    assert "SOCI v2" in soci("pull", other).good().err
