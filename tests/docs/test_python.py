"""The Python blocks of the documents run, and print what their comments say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.docs.blocks import Digests, blocks, commands, difference
from tests.docs.world import World
from tests.support.machine import PROJECT

RUN = """
import json
space = {"__name__": "__main__"}
for code in json.load(open("blocks.json")):
    exec(compile(code, "block", "exec"), space)
    print("--next--")
"""


@pytest.mark.parametrize("path", [Path("README.md"), Path("docs/library.md")], ids=str)
def test_python_blocks(path: Path, world: World) -> None:
    for block in blocks(PROJECT / path):
        for command in commands(block) if block.hidden else ():
            assert world.run(command.text)[0] == 0
    if path.name == "README.md":
        world.run('cp "$IMAGES"/layer.tar.gz .')
    found = [block for block in blocks(PROJECT / path) if block.language == "python"]
    (world.home / "blocks.json").write_text(json.dumps([block.text for block in found]))
    (world.home / "run.py").write_text(RUN)
    _, printed = world.run("python run.py")
    digests, wrong = Digests(), []
    for block in found:
        comments = re.findall(r"^ *# (.*)$", block.text, re.MULTILINE)
        end = printed.index("--next--") if "--next--" in printed else len(printed)
        different = difference(comments, printed[:end], digests)
        if different:
            wrong.append(f"{path}:{block.line}\n{different}")
        del printed[: end + 1]
    assert not wrong, "\n\n".join(wrong)
