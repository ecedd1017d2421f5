"""The registries and the token server that the tests of the client talk to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from soci_cli.targets.layout import Layout, WritableLayout
from soci_cli.trial_registry import RegistryServer
from tests.support.places import push_image
from tests.support.servers.fault_proxy import Fault, FaultProxy
from tests.targets.registry.pushes import CHUNK, SIZE
from tests.targets.registry.tools import Struck, small_chunks


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[RegistryServer]:
    """The project's own registry, new, with the Referrers API and uploads that can be resumed."""
    with RegistryServer(tmp_path / "embedded") as server:
        yield server


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
def upstream(request: pytest.FixtureRequest) -> str:
    """The registry that `struck` makes proxies of."""
    address: str = request.getfixturevalue("embedded").address
    return address


@pytest.fixture
def struck(request: pytest.FixtureRequest) -> Iterator[Struck]:
    """Makes proxies before the registry `upstream` or, with a host, before another one."""
    made: list[FaultProxy] = []

    def make(*faults: Fault, host: str = "") -> FaultProxy:
        made.append(FaultProxy(host or request.getfixturevalue("upstream"), *faults))
        return made[-1]

    yield make
    for each in made:
        each.close()
