"""The commands, as processes, beside skopeo and with registries that ask who is there."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from soci_cli.trial_registry import RegistryServer
from tests.support.commands import SOCI, Done, environment, process
from tests.support.images import blob_json, check_complete, make_image, read_index
from tests.support.servers.actions import Pause
from tests.support.servers.ca import Ca
from tests.support.servers.docker_registry import DockerRegistry
from tests.support.servers.fault_proxy import Fault, FaultProxy
from tests.support.servers.fixtures import PASSWORD, USER
from tests.support.servers.token_server import TokenServer
from tests.support.tools import CONVERT, run

SKOPEO = ("skopeo", "--insecure-policy", "copy", "--quiet", "--all")
PUSH = ("push", "--soci-min-layer-size", "0")


@pytest.fixture(params=["docker-registry", "soci"])
def host(
    request: pytest.FixtureRequest, tmp_path: Path, docker_registry: DockerRegistry
) -> Iterator[str]:
    """Where a registry listens: docker-registry, which has no Referrers API, or ours, which has."""
    if request.param == "docker-registry":
        yield docker_registry.host
        return
    with RegistryServer(tmp_path / "served") as server:
        yield server.address


class Runner:
    """Runs commands that must succeed as processes."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Done:
        return process(*arguments, home=self._home, stdin=stdin).good()

    def any(self, *arguments: str, stdin: bytes = b"") -> Done:
        return process(*arguments, home=self._home, stdin=stdin)


def skopeo_in(layout: Path, place: str) -> None:
    run(*SKOPEO, "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{place}")


def skopeo_out(place: str, layout: Path) -> None:
    run(*SKOPEO, "--src-tls-verify=false", f"docker://{place}", f"oci:{layout}:latest")


def test_skopeo_reads_what_we_wrote_and_we_read_what_it_wrote(
    tmp_path: Path, host: str, need_skopeo: str
) -> None:
    image = make_image(tmp_path / "image").root
    name = f"{host}/skopeo/{tmp_path.name.lower()}"
    skopeo_in(image, f"{name}:1")
    soci = Runner(tmp_path)
    converted = soci(*CONVERT, f"docker://{name}:1", f"docker://{name}:2").last

    # skopeo takes everything, and the very same bytes.
    skopeo_out(f"{name}:2", tmp_path / "out")
    index = read_index(tmp_path / "out")
    platform_manifest, soci_index = index["manifests"]
    for entry in (platform_manifest, soci_index):
        assert blob_json(tmp_path / "out", entry)["schemaVersion"] == 2
    assert check_complete(tmp_path / "out").keys() >= {
        entry["digest"] for entry in index["manifests"]
    }

    # What we pull, lazily or not, skopeo pushes: by way of an archive.
    assert soci("pull", f"{name}:2").last == converted
    soci("image", "save", "-o", "saved.tar", f"{name}:2")
    run(
        *SKOPEO,
        "--dest-tls-verify=false",
        f"oci-archive:{tmp_path}/saved.tar",
        f"docker://{name}:3",
    )
    facts = json.loads(soci("image", "inspect", "--format", "json", f"docker://{name}:3").text)
    assert facts["soci"] == "v2"
    layers = [layer["digest"] for part in facts["manifests"] for layer in part["layers"]]
    assert set(layers) <= set(check_complete(f"docker://{name}:3"))

    # An index v1 leaves the image as skopeo wrote it.
    before = run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}:1")
    soci("pull", f"{name}:1")
    soci(*PUSH, f"{name}:1")
    assert before == run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}:1")
    facts = json.loads(soci("image", "inspect", "--format", "json", f"docker://{name}:1").text)
    assert facts["soci"] == "v1"


def work_through(soci: Runner, home: Path, host: str, *flags: str, stdin: bytes = b"") -> None:
    """Every command once, with the flags that the registry needs."""
    image = make_image(home / "image").root
    place = f"docker://{host}/through:1"
    digest = soci(*CONVERT, *flags, f"oci:{image}", place, stdin=stdin).last
    again = soci(*CONVERT, *flags, place, place, stdin=stdin)
    assert again.last == digest
    inspected = soci("image", "inspect", *flags, "--format", "json", place, stdin=stdin)
    assert json.loads(inspected.text)["digest"] == digest
    assert soci("pull", *flags, f"{host}/through:1", stdin=stdin).last == digest
    soci("image", "save", *flags, "-o", "x.tar", f"{host}/through:1", stdin=stdin)
    assert digest in check_complete(f"oci-archive:{home}/x.tar")
    soci("image", "load", "-i", str(image), "--name", f"{host}/through:plain")
    soci(*PUSH, *flags, f"{host}/through:plain", stdin=stdin)


def test_basic_authentication(tmp_path: Path, docker_registry_htpasswd: DockerRegistry) -> None:
    soci, host = Runner(tmp_path), docker_registry_htpasswd.host
    refused = soci.any("pull", f"{host}/through:1")
    refused.bad(1, "401 Unauthorized", f"soci login {host}")
    wrong = soci.any("pull", "-u", f"{USER}:not it", f"{host}/through:1")
    wrong.bad(1, "401 Unauthorized")
    assert "not it" not in wrong.err
    work_through(
        soci, tmp_path, host, "-u", USER, "--password-stdin", stdin=PASSWORD.encode() + b"\n"
    )
    # And by login, which stays.
    soci("login", "-u", USER, "--password-stdin", host, stdin=PASSWORD.encode())
    soci("rmi", f"{host}/through:1")
    soci("pull", f"{host}/through:1")
    soci("logout", host)
    soci.any("image", "inspect", f"docker://{host}/through:1").bad(1, "401")


def test_token_authentication(
    tmp_path: Path, docker_registry_token: DockerRegistry, token_server: TokenServer
) -> None:
    soci, host = Runner(tmp_path), docker_registry_token.host
    image = make_image(tmp_path / "first").root
    denied = soci.any(*CONVERT, f"oci:{image}", f"docker://{host}/through:1")
    denied.bad(1, "soci login")
    work_through(soci, tmp_path, host, "-u", f"{USER}:{PASSWORD}")
    # Everybody may pull.
    soci("rmi", f"{host}/through:1")
    soci("pull", f"{host}/through:1")
    # Mounting needs both repositories in one token.
    target = f"docker://{host}/other:1"
    soci(*CONVERT, "-u", f"{USER}:{PASSWORD}", f"docker://{host}/through:plain", target)
    assert any(len(one.scopes) > 1 for one in token_server.log)


def test_tls_by_an_authority_of_our_own(
    tmp_path: Path, docker_registry_tls: DockerRegistry, ca: Ca
) -> None:
    soci, host = Runner(tmp_path), docker_registry_tls.host
    unknown = soci.any("image", "inspect", f"docker://{host}/through:1")
    unknown.bad(1, "certificate", "--tlscacert")
    work_through(soci, tmp_path, host, "--tlscacert", str(ca.cert))
    folder = tmp_path / "certs.d" / host
    folder.mkdir(parents=True)
    (folder / "ca.crt").write_bytes(ca.cert.read_bytes())
    for flags in (["-k"], ["--hosts-dir", str(tmp_path / "certs.d")]):
        soci("image", "inspect", *flags, f"docker://{host}/through:1")


def test_several_pushers_lose_no_index(tmp_path: Path, docker_registry: DockerRegistry) -> None:
    """docker-registry has no Referrers API: every process updates the same tag."""
    image = make_image(tmp_path / "image").root
    name = f"{docker_registry.host}/crowd:1"
    soci = Runner(tmp_path)
    soci("image", "load", "-i", str(image), "--name", name)
    digest = soci("push", "--snapshotter", "none", name).last
    count = 5
    pushers = [
        subprocess.Popen(
            [*SOCI, *PUSH, "--soci-span-size", str(1000 * (number + 1)), name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env=environment(tmp_path),
        )
        for number in range(count)
    ]
    for pusher in pushers:
        _, errors = pusher.communicate(timeout=60)
        assert pusher.returncode == 0, errors
    tag = f"docker://{docker_registry.host}/crowd:{digest.replace(':', '-')}"
    listed = json.loads(run("skopeo", "inspect", "--raw", "--tls-verify=false", tag))
    assert len({entry["digest"] for entry in listed["manifests"]}) == count


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted_conversion_moves_no_tag(
    tmp_path: Path, docker_registry: DockerRegistry, large_archive: Path, signal_number: int
) -> None:
    name = f"interrupted-{signal_number}:1"
    with FaultProxy(docker_registry.host, Fault(Pause(0.3), method="PATCH")) as proxy:
        started = subprocess.Popen(
            [*SOCI, *CONVERT, f"oci-archive:{large_archive}", f"docker://{proxy.host}/{name}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env=environment(tmp_path),
        )
        deadline = time.monotonic() + 30
        while not proxy.seen("PATCH", "uploads") and time.monotonic() < deadline:
            time.sleep(0.02)
        started.send_signal(signal_number)
        started.communicate(timeout=60)
    assert started.returncode in (-signal_number, 128 + signal_number)
    place = f"docker://{docker_registry.host}/{name}"
    Runner(tmp_path).any("image", "inspect", place).bad(1, "404")
    done = Runner(tmp_path)(*CONVERT, f"oci-archive:{large_archive}", place)
    assert done.last in check_complete(place)
