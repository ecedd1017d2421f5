"""examples/lambda_handler.py against a real registry."""

from __future__ import annotations

import importlib.util
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from soci_cli import NotFoundError, inspect, open_source, parse_place
from soci_cli.index.model import INDEX_TYPE_V1
from soci_cli.trial_registry import RegistryServer
from tests.examples.images import EXAMPLES, push_layout
from tests.support.images import LayoutMaker, gz, layer_tar, make_image, sha256
from tests.support.servers import DockerRegistry


@pytest.fixture(scope="session")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lambda_handler", EXAMPLES / "lambda_handler.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Ecr:
    """A registry that stands in for ECR: what it holds, and the events that pushes to it cause."""

    def __init__(self, host: str, example: ModuleType) -> None:
        self.host = host
        self._example = example

    def __call__(self, repository: str, digest: str, tag: str = "", **more: str) -> dict[str, Any]:
        """Handles the event of a push; `more` are variables, but for `result` and `action`."""
        detail = {
            "result": more.pop("result", "SUCCESS"),
            "repository-name": repository,
            "image-digest": digest,
            "action-type": more.pop("action", "PUSH"),
        }
        event = {
            "version": "0",
            "detail-type": "ECR Image Action",
            "source": "aws.ecr",
            "account": "123456789012",
            "region": "eu-central-1",
            "detail": {**detail, "image-tag": tag} if tag else detail,
        }
        environ = {"SOCI_REGISTRY": self.host, "SOCI_MIN_LAYER_SIZE": "0", **more}
        done: dict[str, Any] = self._example.handle(event, environ)
        return done

    def tags(self, repository: str) -> list[str]:
        with urllib.request.urlopen(f"http://{self.host}/v2/{repository}/tags/list") as answer:
            tags: list[str] = json.load(answer)["tags"]
            return tags

    def soci(self, name: str) -> list[str]:
        """Which index each platform of an image has."""
        with open_source(parse_place(f"docker://{self.host}/{name}"), Path("no-store")) as source:
            return [manifest.soci for manifest in inspect(source).manifests]


@pytest.fixture(params=["fallback tag", "Referrers API"])
def ecr(request: pytest.FixtureRequest, example: ModuleType) -> Iterator[Ecr]:
    """docker-registry, which has no Referrers API, and our own, which has one as ECR does."""
    if request.param == "fallback tag":
        registry: DockerRegistry = request.getfixturevalue("docker_registry")
        yield Ecr(registry.host, example)
        return
    with RegistryServer() as server:
        yield Ecr(server.address, example)


@pytest.fixture
def repository(tmp_path: Path) -> str:
    return "lambda/" + sha256(str(tmp_path).encode())[-12:]


def test_index_beside_the_image(ecr: Ecr, repository: str, tmp_path: Path) -> None:
    digest = push_layout(make_image(tmp_path / "image").root, f"{ecr.host}/{repository}:1.0")
    before = set(ecr.tags(repository))

    done = ecr(repository, digest, "1.0")

    assert done["outcome"] == "indexed"
    assert done["image"] == f"{ecr.host}/{repository}@{digest}"
    assert ecr.soci(f"{repository}:1.0") == ["v1"]
    with open_source(parse_place(f"docker://{ecr.host}/{repository}:1.0"), tmp_path) as source:
        assert source.resolve().digest == digest
        (index,) = source.referrers(source.resolve(), INDEX_TYPE_V1)
    assert done["pushed"] == [index.digest]
    fallback = set(ecr.tags(repository)) - before
    assert fallback <= {f"sha256-{digest[7:]}"}


def test_its_own_pushes_end_there(ecr: Ecr, repository: str, tmp_path: Path) -> None:
    digest = push_layout(make_image(tmp_path / "image").root, f"{ecr.host}/{repository}:1.0")
    (index,) = ecr(repository, digest, "1.0")["pushed"]

    # As ECR sends them: the index without a tag, and once more the image.
    assert ecr(repository, index)["outcome"] == "skipped"
    assert ecr(repository, digest, "1.0")["reason"] == "it has SOCI indexes already"
    # Whatever tag an index gets, and the list of referrers.
    assert ecr(repository, index, "odd")["reason"] == "it is an artifact"
    assert ecr(repository, digest, f"sha256-{digest[7:]}")["outcome"] == "skipped"
    assert ecr(repository, digest, f"sha256-{digest[7:]}.sig")["outcome"] == "skipped"


def test_converted_image(ecr: Ecr, repository: str, tmp_path: Path) -> None:
    digest = push_layout(make_image(tmp_path / "image").root, f"{ecr.host}/{repository}:1.0")

    done = ecr(repository, digest, "1.0", SOCI_CONVERT="1")

    assert done["outcome"] == "converted"
    assert sorted(ecr.tags(repository)) == ["1.0", "1.0-soci"]
    assert ecr.soci(f"{repository}:1.0") == [""]
    assert ecr.soci(f"{repository}:1.0-soci") == ["v2"]
    (converted,) = done["pushed"]
    again = ecr(repository, digest, "1.0", SOCI_CONVERT="1")
    assert (again["outcome"], again["pushed"]) == ("unchanged", [converted])
    # The event of the converted image, and the same under another tag.
    assert ecr(repository, converted, "1.0-soci", SOCI_CONVERT="1")["outcome"] == "skipped"
    other = ecr(repository, converted, "stable", SOCI_CONVERT="1")
    assert other["reason"] == "it is converted already"
    assert ecr(repository, converted, "stable")["reason"] == "it has SOCI indexes already"


def test_all_platforms(ecr: Ecr, repository: str, tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    entries = [
        {
            **maker.manifest(
                [maker.blob(gz(layer_tar(number)))], maker.config(architecture=architecture)
            ),
            "platform": {"os": "linux", "architecture": architecture},
        }
        for number, architecture in enumerate(("amd64", "arm64"))
    ]
    maker.tag(maker.index(entries))
    digest = push_layout(maker.root, f"{ecr.host}/{repository}:1.0")

    assert len(ecr(repository, digest, "1.0")["pushed"]) == 2
    assert ecr.soci(f"{repository}:1.0") == ["v1", "v1"]


def test_what_is_no_image(ecr: Ecr, repository: str, tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "chart")
    config = maker.blob(b'{"name": "chart"}', "application/vnd.cncf.helm.config.v1+json")
    chart = maker.blob(gz(layer_tar(1)), "application/vnd.cncf.helm.chart.content.v1.tar+gzip")
    maker.tag(maker.manifest([chart], config))
    digest = push_layout(maker.root, f"{ecr.host}/{repository}:1.0")

    for more in ({}, {"SOCI_CONVERT": "1"}):
        done = ecr(repository, digest, "1.0", **more)
        assert done["reason"] == "it is an artifact: application/vnd.cncf.helm.config.v1+json"
    assert ecr.tags(repository) == ["1.0"]


def test_nothing_to_index(ecr: Ecr, repository: str, tmp_path: Path) -> None:
    digest = push_layout(make_image(tmp_path / "image").root, f"{ecr.host}/{repository}:1.0")

    for more in ({}, {"SOCI_CONVERT": "1"}):
        done = ecr(repository, digest, "1.0", SOCI_MIN_LAYER_SIZE="10MiB", **more)
        assert done["outcome"] == "skipped"
        assert "10485760 bytes or more" in done["reason"]
    assert ecr.tags(repository) == ["1.0"]


def test_other_events(ecr: Ecr, repository: str) -> None:
    digest = sha256(b"")
    assert ecr(repository, digest, "1.0", action="DELETE")["outcome"] == "skipped"
    assert ecr(repository, digest, "1.0", result="FAILURE")["outcome"] == "skipped"


def test_failures_are_raised(ecr: Ecr, repository: str) -> None:
    with pytest.raises(NotFoundError):
        ecr(repository, sha256(b"nothing"), "1.0")


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("eu-central-1", "123456789012.dkr.ecr.eu-central-1.amazonaws.com"),
        ("cn-north-1", "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn"),
    ],
)
def test_host_of_an_event(example: ModuleType, region: str, host: str) -> None:
    detail = {
        "result": "SUCCESS",
        "repository-name": "app",
        "image-digest": sha256(b""),
        "action-type": "DELETE",
    }
    event = {"account": "123456789012", "region": region, "detail": detail}
    assert example.handle(event, {})["image"] == f"{host}/app@{sha256(b'')}"


def test_handler_reads_the_environment(
    docker_registry: DockerRegistry,
    example: ModuleType,
    repository: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    host = docker_registry.host
    digest = push_layout(make_image(tmp_path / "image").root, f"{host}/{repository}:1.0")
    monkeypatch.setenv("SOCI_REGISTRY", host)
    monkeypatch.setenv("SOCI_MIN_LAYER_SIZE", "0")
    detail = {
        "result": "SUCCESS",
        "repository-name": repository,
        "image-digest": digest,
        "action-type": "PUSH",
        "image-tag": "1.0",
    }
    done = example.handler({"account": "1", "region": "x", "detail": detail}, object())
    assert done["outcome"] == "indexed"
    assert json.loads(capsys.readouterr().out) == done
