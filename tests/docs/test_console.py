"""What the documents show is what is printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import Digests, blocks, commands, difference
from tests.docs.world import World, make_files, make_images
from tests.support.machine import PROJECT, need
from tests.support.servers.containerd import DEBIAN, ContainerdServer, programs

FILES = sorted(
    path.relative_to(PROJECT)
    for path in (PROJECT / "README.md", PROJECT / "docs/guide.md")
    if any(block.language == "console" for block in blocks(path))
)
pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    make_files(folder)
    make_images(folder)
    return folder


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, images: Path) -> Iterator[World]:
    for tool in ("unshare", "umoci", "skopeo", "jq", "curl", "docker"):
        need(tool)
    path: Path = request.node.callspec.params["path"]
    found = programs(DEBIAN)
    if "\n$ ctr " not in (PROJECT / path).read_text():
        with World(tmp_path / "me", images, None) as world:
            yield world
        return
    assert found
    with (
        ContainerdServer(tmp_path / "containerd", found) as server,
        World(tmp_path / "me", images, server.address) as world,
    ):
        yield world


@pytest.mark.parametrize("path", FILES, ids=str)
def test_console_blocks(path: Path, world: World) -> None:
    digests = Digests()
    wrong = []
    for block in blocks(PROJECT / path):
        if block.language != "console":
            continue
        for command in commands(block):
            lines = 1 if block.hidden else len(command.expected)
            status, printed = world.run(digests.fill_in(command.text), lines)
            at = f"{path}:{command.line}: $ {command.text}\n"
            if (status != 0) != command.fails:
                wrong.append(f"{at}exit status {status}\n" + "\n".join(printed))
            elif not block.hidden:
                different = difference(command.expected, printed, digests)
                if different:
                    wrong.append(at + different)
    assert not wrong, "\n\n".join(wrong)
