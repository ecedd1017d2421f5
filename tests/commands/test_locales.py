"""Names with letters that the character set of the output does not have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.commands import process
from tests.support.images import LayoutMaker, gz, tar_of

NAMES = ["caf\u00e9", "\u65e5\u672c", "\U0001f600", "plain"]
LOCALES: list[dict[str, str]] = [
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    {"LC_ALL": "C.UTF-8"},
]


@pytest.fixture
def image(tmp_path: Path) -> str:
    maker = LayoutMaker(tmp_path / "image")
    maker.tag(maker.manifest([maker.blob(gz(tar_of(dict.fromkeys(NAMES, b"x"))))]))
    return f"oci:{maker.root}"


@pytest.mark.parametrize("locale", LOCALES)
def test_what_cannot_be_shown_is_escaped(
    image: str, tmp_path: Path, locale: dict[str, str]
) -> None:
    charset = locale.get("PYTHONIOENCODING", "utf-8" if locale.get("LC_ALL") != "C" else "ascii")
    escaped = [name.encode(charset, "backslashreplace") for name in NAMES]
    for flags in ((), ("-R",), ("-l",)):
        done = process("ls", *flags, image, home=tmp_path, env=locale).good()
        shown = [line.split(b" ")[-1] for line in done.out.splitlines() if line[-1:] != b":"]
        assert sorted(shown) == sorted(escaped)
    done = process("ls", "--format", "json", image, home=tmp_path, env=locale).good()
    found = [json.loads(line.decode(charset))["path"] for line in done.out.splitlines()]
    assert sorted(found) == sorted(f"/{name}" for name in NAMES)
    # So are messages, and what else is printed.
    failed = process("cat", image, "/\u65e5", home=tmp_path, env=locale)
    assert (failed.status, failed.err.count("\n")) == (1, 1)
    assert "has no file" in failed.err
    converted = tmp_path / "\u65e5\u672c"
    convert = (
        "image",
        "convert",
        "--soci",
        "--soci-min-layer-size",
        "0",
        image,
        f"oci:{converted}",
    )
    process(*convert, home=tmp_path, env=locale).good()
    process("image", "inspect", f"oci:{converted}", home=tmp_path, env=locale).good()
