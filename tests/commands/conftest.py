"""Fixtures of the command tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from soci_cli import inspect, open_source, parse_place
from soci_cli.trial_registry import RegistryServer
from tests.commands.mounting import Home, Remote
from tests.commands.test_reading import indexed_layout
from tests.support.commands import Soci
from tests.support.images import make_image, run_convert


@pytest.fixture
def soci(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> Soci:
    """The command line, with a store of its own."""
    return Soci(capfdbinary, tmp_path / "store")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A layout with an image of two small layers."""
    return make_image(tmp_path / "image").root


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return indexed_layout(tmp_path_factory.mktemp("mounting"))


@pytest.fixture
def home(tmp_path: Path, need_fuse: None, request: pytest.FixtureRequest) -> Iterator[Home]:
    """Somebody who mounts; see `both_engines`."""
    made = Home(tmp_path)
    if hasattr(request, "param"):
        made.use_engine(request.param)
    yield made
    made.clean()


@pytest.fixture(scope="session")
def registry(
    layout: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RegistryServer, list[str]]]:
    """A registry that has the image; the digests of its layers, from the lowest."""
    with RegistryServer(tmp_path_factory.mktemp("registry")) as server:
        image = f"docker://{server.address}/app:1"
        run_convert(layout, image)
        with open_source(parse_place(image), layout) as source:
            (manifest,) = (one for one in inspect(source).manifests if one.layers)
        yield server, [layer.digest for layer in manifest.layers]


@pytest.fixture
def remote(registry: tuple[RegistryServer, list[str]]) -> Iterator[Remote]:
    made = Remote(registry[0].address, registry[1])
    with made.proxy:
        yield made
