"""docs/architecture.md says what there is, and imports go down the house only."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.support.machine import PROJECT

ROOT = PROJECT / "soci_cli"
MODULES = sorted(
    path.relative_to(ROOT)
    for path in ROOT.rglob("*.py")
    if path.name != "__init__.py" and "api" not in path.parts
)
EVERYWHERE = (
    "closing",
    "defaults",
    "errors",
    "exports",
    "new_file",
    "parallel",
    "progress",
    "text",
    "user_folders",
)
# What each room may import beside itself and what is for everybody.
BELOW = {
    "oci": (),
    "kernel": (),
    "processes": ("kernel",),
    "ztoc": ("oci",),
    "targets": ("oci",),
    "index": ("oci", "targets", "ztoc"),
    "lazy": ("index", "kernel", "oci", "processes", "targets", "ztoc"),
    "run": ("kernel", "lazy", "oci", "processes"),
    "snapshotter": ("index", "kernel", "lazy", "oci", "processes", "targets", "ztoc"),
    "trial_registry": ("oci", "targets"),
    "settings": ("oci",),
}


def imported(path: Path) -> set[str]:
    """The modules of this project that a module imports, as `targets.copy`."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("soci_cli"):
            inside = (node.module or "").removeprefix("soci_cli").removeprefix(".")
            found |= {inside} if inside else {one.name for one in node.names}
        elif isinstance(node, ast.Import):
            found |= {
                one.name.removeprefix("soci_cli.")
                for one in node.names
                if one.name.startswith("soci_cli.")
            }
    return found


def table() -> dict[str, list[str]]:
    """The names of files in the table "Files", by folder; "" for those in none."""
    text = (PROJECT / "docs/architecture.md").read_text()
    rows = text.partition("### Files")[2].partition("\n## ")[0]
    found: dict[str, list[str]] = {"": [f"{ROOT.name}/"]}
    folder = ""
    for row in rows.splitlines():
        cell = row.partition("|")[2].partition("|")[0].strip()
        if cell.startswith("**"):
            folder = cell.strip("*/")
        found.setdefault(folder, []).extend(re.findall(r"`([^`]+)`", cell))
    return found


def test_each_module_is_in_the_table() -> None:
    listed = table()
    missing = [
        str(path)
        for path in MODULES
        if not any(fnmatch(path.name, name) for name in listed.get(str(path.parent).strip("."), ()))
    ]
    assert not missing


def test_each_row_of_the_table_is_there() -> None:
    listed = {
        f"{folder}/{name}".strip("/")
        for folder, names in table().items()
        for name in names
        if name.endswith(".py")
    }
    assert not [one for one in listed if not list(ROOT.glob(one))]


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[0] != "commands"], ids=str)
def test_imports_go_down(path: Path) -> None:
    room = path.parts[0].removesuffix(".py")
    if room == "__main__":
        return
    allowed = (room, *EVERYWHERE, *BELOW.get(room, ()))
    assert [name for name in imported(path) if name.partition(".")[0] not in allowed] == []


def test_the_engine_of_reading_knows_nothing_of_mounts() -> None:
    for path in MODULES:
        if path.parent == Path("lazy"):
            above = [
                one
                for one in imported(path)
                if one.startswith(("lazy.fuse", "lazy.mounts", "lazy.erofs"))
            ]
            assert not above, path


def test_no_file_is_too_long() -> None:
    files = [
        *ROOT.rglob("*.py"),
        *(PROJECT / "tests").rglob("*.py"),
        *(PROJECT / "examples").rglob("*.py"),
    ]
    lengths = {str(path): path.read_text().count("\n") for path in files if "_pb2" not in path.name}
    assert not {path: length for path, length in lengths.items() if length > 500}
