"""Several processes, and processes that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from soci_cli.oci.references import parse_reference
from soci_cli.targets import (
    Archive,
    ArchiveTarget,
    Layout,
    Store,
    WritableLayout,
    children_of,
    open_source,
    parse_place,
    read_blob,
)
from tests.support.places import push_image, ref_names, temporary_files

PROJECT = Path(__file__).parent.parent.parent

WRITE_FOR_EVER = """
import sys, time
from pathlib import Path
from soci_cli.oci.descriptor import Descriptor
from soci_cli.targets import open_target, parse_place
from tests.support.places import push_image

with open_target(parse_place(sys.argv[1]), Path(sys.argv[2])) as target:
    push_image(target, 5)
    writer = target.open_writer(Descriptor("x", "sha256:" + "0" * 64, 1 << 30))
    writer.write(bytes(100_000))
    print("writing", flush=True)
    time.sleep(60)
"""

TAG_MANY = """
import sys
from pathlib import Path
from soci_cli.targets import open_target, parse_place
from tests.support.places import push_image

for number in range(20):
    place = parse_place(sys.argv[1].replace("NUMBER", sys.argv[3] + str(number)))
    with open_target(place, Path(sys.argv[2])) as target:
        target.tag(push_image(target, number, size=100))
"""


def start(program: str, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupted(place: str, store: Path, number: signal.Signals) -> None:
    process = start(WRITE_FOR_EVER, place, store)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode != 0


def make_old(root: Path) -> None:
    long_ago = time.time() - 2 * 24 * 3600
    for path in root.rglob("*"):
        os.utime(path, (long_ago, long_ago))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_while_writing_a_layout(tmp_path: Path, number: signal.Signals) -> None:
    root = tmp_path / "d"
    interrupted(f"oci:{root}:first", tmp_path, number)
    assert not (root / "index.json").exists()
    with WritableLayout(root, "a") as target:
        image = push_image(target)
        target.tag(image)
    before = (root / "index.json").read_bytes()
    interrupted(f"oci:{root}:a", tmp_path, number)
    assert (root / "index.json").read_bytes() == before
    assert Layout(root, "a").resolve() == image
    assert not (root / "blobs" / "sha256" / ("0" * 64)).exists()
    assert len(temporary_files(root)) == (2 if number == signal.SIGKILL else 0)
    make_old(root)
    with WritableLayout(root, "b") as target:
        target.tag(image)
    assert not temporary_files(root)
    assert ref_names(root) == ["a", "b"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_while_writing_an_archive(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "a.tar"
    interrupted(f"oci-archive:{path}", tmp_path, number)
    assert not path.exists()
    with ArchiveTarget(path) as target:
        image = push_image(target)
        target.tag(image)
    interrupted(f"oci-archive:{path}", tmp_path, number)
    with Archive(path) as source:
        assert source.resolve() == image
    assert len(temporary_files(tmp_path)) == (2 if number == signal.SIGKILL else 0)
    make_old(tmp_path)
    with ArchiveTarget(path) as target:
        target.tag(push_image(target))
    assert not temporary_files(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_while_writing_the_store(tmp_path: Path, number: signal.Signals) -> None:
    interrupted("alpine", tmp_path / "store", number)
    store = Store(tmp_path / "store")
    assert store.images() == []
    # The lock of a killed process is gone, so all that it wrote is swept at once.
    assert store.sweep().skipped == ""
    assert not temporary_files(tmp_path)
    with store.open(parse_reference("alpine")) as target:
        target.tag(push_image(target))
    assert len(store.images()) == 1


@pytest.mark.parametrize("place", ["oci:{}/d:NUMBER", "alpine:NUMBER"])
def test_no_tag_is_lost(tmp_path: Path, place: str) -> None:
    text = place.format(tmp_path)
    processes = [start(TAG_MANY, text, tmp_path / "d", prefix) for prefix in ("a", "b", "c")]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    for prefix in ("a", "b", "c"):
        for number in range(20):
            one = parse_place(text.replace("NUMBER", f"{prefix}{number}"))
            with open_source(one, tmp_path / "d") as source:
                assert source.exists(source.resolve())
    assert len(ref_names(tmp_path / "d")) == 60
    assert not temporary_files(tmp_path)


def test_a_sweep_beside_writers_removes_nothing_that_is_tagged(tmp_path: Path) -> None:
    store = Store(tmp_path / "d")
    process = start(TAG_MANY, "alpine:NUMBER", store.root, "a")
    swept = 0
    while process.poll() is None:
        swept += not store.sweep().skipped
    assert process.communicate()[1] == ""
    assert swept
    layout = Layout(store.root)
    for image in store.images():
        data = read_blob(layout, image.descriptor)
        for child in children_of(image.descriptor, data, "image"):
            assert layout.exists(child)
    assert len(store.images()) == 20
