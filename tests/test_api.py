"""What `import soci_cli` gives."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import soci_cli
from tests.support.machine import PROJECT

SOURCE = ast.parse(Path(soci_cli.__file__).read_text())


def names_for_type_checkers() -> dict[str, str]:
    """Each name with its module."""
    (block, _) = (part for part in SOURCE.body if isinstance(part, ast.If))
    lines = [line for line in block.body if isinstance(line, ast.ImportFrom)]
    return {one.name: line.module or "" for line in lines for one in line.names}


def test_what_type_checkers_see_is_what_there_is() -> None:
    names = names_for_type_checkers()
    assert sorted([*names, "__version__"]) == soci_cli.__all__
    for name, module in names.items():
        assert getattr(soci_cli, name) is getattr(import_module(module), name)


@pytest.mark.parametrize(
    "name", ["open_image", "pull", "push", "mount_image", "RegistryServer", "open_source"]
)
def test_each_can_be_imported_alone(name: str) -> None:
    subprocess.run([sys.executable, "-c", f"from soci_cli import {name}"], cwd=PROJECT, check=True)


def test_importing_the_package_imports_nothing_else() -> None:
    program = "import sys, soci_cli; print(*(n for n in sys.modules if n.startswith('soci_cli')))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    assert sorted(done.stdout.split()) == ["soci_cli", "soci_cli.exports"]


def test_all_can_be_imported_at_once_and_listed() -> None:
    space: dict[str, object] = {}
    exec("from soci_cli import *", space)
    assert set(soci_cli.__all__) <= set(space)
    assert set(soci_cli.__all__) <= set(dir(soci_cli))


def test_other_names_are_no_part_of_it() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = soci_cli.nothing  # type: ignore[attr-defined]
