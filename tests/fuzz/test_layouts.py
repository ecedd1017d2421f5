"""The whole program on damaged layouts: it ends with a result or with one line, whatever is wrong.

SOCI_TESTS_SCALE says how many cases to try, SOCI_TESTS_SEED where to begin.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import random
import shutil
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from soci_cli.commands import run
from tests.support.images import (
    GOLDEN,
    check_complete,
    listing,
    make_zstd_image,
    options,
    run_convert,
    temporary,
)
from tests.support.scale import scaled

CASES = scaled(500)
SEED = int(os.environ.get("SOCI_TESTS_SEED", "1"))
PROCESSES = 2
MAX_LINES = 4

# Values that parsers trip over.
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**40,
    1.5,
    "",
    "x" * 5000,
    "sha256:" + "0" * 64,
    "sha256:" + "g" * 64,
    "sha512:" + "0" * 128,
    "../../etc/passwd",
    "\ud800",
    "\x1b[31m\n\r\0",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/octet-stream",
    "linux",
    "arm64",
    [],
    {},
    [[]],
    [None],
    {"": ""},
    {"digest": 1},
]


class Layout:
    """A copy of a layout that is damaged step by step."""

    def __init__(self, root: Path, source: random.Random) -> None:
        self.root = root
        self.random = source

    def files(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if path.is_file())

    def blobs(self) -> list[Path]:
        return sorted((self.root / "blobs" / "sha256").iterdir())

    def documents(self) -> list[Path]:
        """Blobs that hold JSON, and index.json."""
        found = [self.root / "index.json"]
        for path in self.blobs():
            if path.is_file():
                with path.open("rb") as file:
                    if file.read(1) == b"{":
                        found.append(path)
        return [path for path in found if path.is_file()]

    def store(self, path: Path, data: bytes, *, fix: bool) -> None:
        """Replaces a file. With `fix` it gets its right digest, and so does all that names it."""
        if not fix or path.parent.name != "sha256":
            path.write_bytes(data)
            return
        old = path.name
        new = hashlib.sha256(data).hexdigest()
        if new == old:
            return
        path.unlink()
        path.with_name(new).write_bytes(data)
        for document in self.documents():
            text = document.read_bytes() if document.exists() else b""
            if old.encode() in text:
                with contextlib.suppress(ValueError, RecursionError):
                    value = json.loads(text)
                    _rename(value, f"sha256:{old}", f"sha256:{new}", len(data))
                    self.store(document, json.dumps(value).encode(), fix=True)


def _rename(value: Any, old: str, new: str, size: int) -> None:
    """Lets descriptors and annotations of a document name the blob that took another's place."""
    if isinstance(value, dict):
        if value.get("digest") == old:
            value.update(digest=new, size=size)
        for key, inner in value.items():
            if inner == old:
                value[key] = new
            _rename(inner, old, new, size)
    elif isinstance(value, list):
        for inner in value:
            _rename(inner, old, new, size)


def damage_bytes(layout: Layout) -> None:
    """Flips bits, cuts, inserts or removes bytes, in any file."""
    source = layout.random
    path = source.choice(layout.files())
    data = bytearray(path.read_bytes())
    for _ in range(source.choice((1, 1, 2, 8))):
        at = source.randrange(len(data) + 1)
        kind = source.randrange(5)
        if kind <= 1 and at < len(data):
            data[at] ^= 1 << source.randrange(8)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            data[at:at] = source.randbytes(source.choice((1, 2, 512)))
        else:
            del data[at : at + source.choice((1, 2, 512))]
    layout.store(path, bytes(data), fix=source.random() < 0.7)


def damage_start(layout: Layout) -> None:
    """Changes something near the beginning of a blob, where headers and tables are."""
    source = layout.random
    path = source.choice(layout.blobs())
    data = bytearray(path.read_bytes())
    if data:
        at = source.randrange(min(len(data), 600))
        data[at : at + 1] = source.choice((b"\0", b"\xff", b"\x80", source.randbytes(1)))
        layout.store(path, bytes(data), fix=True)


def damage_words(layout: Layout) -> None:
    """Puts extreme 32-bit numbers anywhere into a blob, as offsets of a zTOC would be."""
    source = layout.random
    path = source.choice(layout.blobs())
    data = bytearray(path.read_bytes())
    if len(data) > 8:
        at = source.randrange(len(data) - 8) & ~3
        word = source.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, len(data), source.getrandbits(32)))
        data[at : at + 4] = word.to_bytes(4, "little")
        layout.store(path, bytes(data), fix=True)


def damage_json(layout: Layout) -> None:
    """Changes, removes or repeats a value in a document."""
    source = layout.random
    path = source.choice(layout.documents())
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    places: list[tuple[Any, Any]] = []
    pending = [value]
    while pending:
        holder = pending.pop()
        inner = list(holder.items()) if isinstance(holder, dict) else list(enumerate(holder))
        places += [(holder, key) for key, _ in inner]
        pending += [item for _, item in inner if isinstance(item, (dict, list))]
    if not places:
        return
    holder, key = source.choice(places)
    kind = source.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(source.randrange(len(holder) + 1), holder[key])
    elif kind == 2:
        other, other_key = source.choice(places)
        with contextlib.suppress(ValueError, LookupError):
            holder[key] = json.loads(json.dumps(other[other_key]))
    elif kind == 3 and isinstance(holder[key], int):
        holder[key] += source.choice((-1, 1))
    else:
        holder[key] = source.choice(ODD)
    layout.store(path, json.dumps(value).encode(), fix=source.random() < 0.9)


def damage_files(layout: Layout) -> None:
    """Removes a file, or lets one take another's place."""
    source = layout.random
    path = source.choice(layout.files())
    kind = source.randrange(4)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.write_bytes(b"")
    elif kind == 2:
        path.unlink()
        path.mkdir()
    else:
        layout.store(path, source.choice(layout.files()).read_bytes(), fix=source.random() < 0.7)


DAMAGES: list[Callable[[Layout], None]] = [
    damage_bytes,
    damage_bytes,
    damage_start,
    damage_words,
    damage_words,
    damage_json,
    damage_json,
    damage_json,
    damage_files,
]


def call(*arguments: str | Path) -> tuple[int, str, str]:
    """Runs a command here; status, stdout and stderr. A traceback is an error of the test."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="surrogateescape")
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run([str(argument) for argument in arguments])
    out.flush()
    raw = out.buffer
    assert isinstance(raw, io.BytesIO)
    return status, raw.getvalue().decode("utf-8", "replace"), err.getvalue()


def commands_for(layout: Layout, work: Path) -> list[list[str | Path]]:
    """The commands to try on a damaged layout."""
    source = layout.random
    place = f"oci:{layout.root}"
    convert: list[str | Path] = ["image", "convert", "--soci", "--soci-min-layer-size", "0"]
    convert += source.choice(([], ["--all-platforms"], ["--all-platforms", "--force"]))
    convert += source.choice(([], ["--soci-span-size", "64KiB"]))
    convert += source.choice(([], ["--zstd-layers", "recompress"]))
    convert += source.choice(([], ["--prefetch-file", "opt/big.txt", "--optimizations", "xattr"]))
    target = source.choice((f"oci:{work}/new", f"oci-archive:{work}/new.tar", "app", place))
    commands: list[list[str | Path]] = [[*convert, place, target]]
    other = source.randrange(4)
    if other == 0:
        commands.append(["image", "inspect", place])
        commands.append(["image", "inspect", "--format", "json", place])
    elif other == 1:
        commands.append(["image", "load", "-i", layout.root, "--name", "loaded"])
        commands += [["images"], ["rmi", "--force", "loaded", "app"]]
    else:
        blobs = [path for path in layout.blobs() if path.is_file()]
        if len(blobs) > 1:
            one, two = source.sample(blobs, 2)
            commands.append(["ztoc", "info", "--files", one])
            commands.append(["ztoc", "get-file", one, two, "opt/big.txt"])
            commands.append(["ztoc", "build", "-o", work / "z", two])
    return commands


def check(arguments: list[str | Path], root: Path, work: Path, store: Path) -> tuple[str, bool]:
    """Runs one command; what is wrong with what it did, or empty, and whether it succeeded."""
    try:
        status, out, err = call("--root", store, *arguments)
    except (Exception, SystemExit):  # noqa: BLE001 - what is not handled is what is looked for
        return traceback.format_exc(), False
    lines = err.splitlines()
    if status not in (0, 1, 2):
        return f"status {status}: {err}", False
    if len(lines) > (MAX_LINES if status else 40) or "Traceback" in err:
        return err, False
    if status and not (lines and lines[-1].startswith(("soci: ", "Error: "))):
        return f"status {status} without a reason: {err!r}", False
    if any(not character.isprintable() for character in (out + err).replace("\n", "")):
        return f"unprintable output: {out!r} {err!r}", False
    for folder in (work, root, store):
        if left := temporary(listing(folder)):
            return f"left behind: {left}", False
    if arguments[:2] == ["image", "convert"] and status == 0:
        try:
            # What lies in the target already is not read again.
            in_place = arguments[-1] == arguments[-2]
            blobs = check_complete(str(arguments[-1]), store=store, said=err, verify=not in_place)
        except Exception:  # noqa: BLE001 - whatever it is, it is told with the case
            return f"the result is not complete\n{traceback.format_exc()}", False
        if out.splitlines()[-1] not in blobs:
            return f"the digest is not that of the result: {out}", False
    return "", status == 0


def run_cases(first: int, last: int, sources: list[Path], work: Path) -> tuple[list[str], int]:
    """Tries the cases of a range; what went wrong, and how many conversions succeeded."""
    problems: list[str] = []
    good = 0
    os.fsync = lambda fd: None  # nothing here has to survive a crash
    for case in range(first, last):
        source = random.Random(f"{SEED} {case}")
        here = work / str(case)
        layout = Layout(here / "image", source)
        shutil.copytree(source.choice(sources), layout.root)
        (here / "work").mkdir()
        (here / "store").mkdir()
        try:
            for _ in range(source.randint(1, 8) if source.random() < 0.5 else 1):
                # What earlier damage left may be nothing to choose from.
                with contextlib.suppress(OSError, IndexError):
                    source.choice(DAMAGES)(layout)
        except Exception:  # noqa: BLE001 - a case that cannot be made is a defect of the test
            problems.append(f"case {case} was not made: {traceback.format_exc()}")
            continue
        for arguments in commands_for(layout, here / "work"):
            problem, succeeded = check(arguments, layout.root, here / "work", here / "store")
            if problem:
                problems.append(f"case {case}, {' '.join(map(str, arguments))}:\n{problem}")
            good += succeeded and arguments[:2] == ["image", "convert"]
        shutil.rmtree(here)
    return problems, good


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What is damaged: plain images and converted ones."""
    folder = tmp_path_factory.mktemp("sources")
    single, attested = GOLDEN / "images" / "single-gzip", GOLDEN / "images" / "with-attestation"
    run_convert(single, folder / "converted", options(prefetch_files=("opt/big.txt",)))
    run_convert(attested, folder / "attested", options(all_platforms=True))
    zstd = make_zstd_image(folder / "zstd").root
    return [single, folder / "converted", folder / "converted", folder / "attested", zstd]


def test_damaged_layouts(tmp_path: Path, sources: list[Path]) -> None:
    chunk = 50
    starts = range(0, CASES, chunk)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:
        futures = [
            pool.submit(run_cases, start, min(start + chunk, CASES), sources, tmp_path)
            for start in starts
        ]
        results = [future.result() for future in futures]
    problems = [problem for found, _ in results for problem in found]
    assert not problems, f"{len(problems)} problems\n\n" + "\n\n".join(problems[:20])
    # Damage that nothing notices would make this test worthless.
    assert sum(good for _, good in results) > CASES // 20


def test_undamaged_layouts(tmp_path: Path, sources: list[Path]) -> None:
    """Without damage every command works, so that failures come from the damage."""
    for number, source in enumerate(sources):
        target = f"oci:{tmp_path}/{number}"
        status, _, err = call(
            *("image", "convert", "--soci", "--soci-min-layer-size", "0", "--all-platforms"),
            *(f"oci:{source}", target),
        )
        assert (status, "Traceback" in err) == (0, False)
        check_complete(target)
