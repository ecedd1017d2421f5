"""What the documents show is what is printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import Digests, blocks, commands, difference
from tests.docs.world import World
from tests.support.machine import PROJECT

FILES = sorted(
    path.relative_to(PROJECT)
    for path in (PROJECT / "README.md", PROJECT / "examples/README.md", *PROJECT.glob("docs/*.md"))
    if any(block.language == "console" for block in blocks(path))
)


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
            elif command.expected or not block.hidden:
                different = difference(command.expected, printed, digests)
                if different:
                    wrong.append(at + different)
    assert not wrong, "\n\n".join(wrong)
