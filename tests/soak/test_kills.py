"""Processes that are killed at any moment, thousands of times: what they leave is old or new, and whole."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from soci_cli.errors import NotFoundError
from soci_cli.targets import Store
from tests.soak.programs import FILES, PLACES, read_some
from tests.support.commands import process
from tests.support.holders import crash
from tests.support.images import (
    check_complete,
    gz,
    layer_tar,
    make_image,
    noise,
    options,
    run_convert,
    tar_of,
    temporary,
)
from tests.support.machine import PROJECT
from tests.support.scale import scaled

LONGEST = 0.2  # seconds that a process lives after it has begun to work


def kill_one(moment: float, *arguments: str | Path) -> None:
    """Starts a program of `tests.soak.programs`, and kills it so many seconds after it has begun."""
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.soak.programs", *map(str, arguments)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == b"begun\n", running.communicate()
    time.sleep(moment)
    running.kill()
    _, errors = running.communicate()
    assert running.returncode == -signal.SIGKILL, errors.decode()


@pytest.mark.parametrize("kind", ["store", "layout", "archive"])
def test_writers(kind: str, tmp_path: Path) -> None:
    image = f"oci:{make_image(tmp_path / 'image', [gz(layer_tar(1)), gz(layer_tar(2))]).root}"
    store = tmp_path / "store"
    place = {
        "store": "app:v",
        "layout": f"oci:{tmp_path}/d:v",
        "archive": f"oci-archive:{tmp_path}/a",
    }
    moments = random.Random(kind)
    whole = 0
    for _ in range(scaled(1000)):
        kill_one(moments.uniform(0, LONGEST), "converting", image, place[kind], store)
        for number in range(PLACES):
            with suppress(NotFoundError):
                check_complete(f"{place[kind]}{number}", store=store)
                whole += 1
        if kind == "store" and moments.random() < 0.1:
            Store(store).sweep()
            assert not temporary(os.listdir(store))  # noqa: PTH208
    assert whole > scaled(1000)
    print(
        f"\n{scaled(1000)} processes killed that wrote to a {kind}; {whole} images read whole after it"
    )


def test_readers_with_one_cache(tmp_path: Path) -> None:
    files = {number: noise(number, 120_000) for number in range(FILES)}
    names = {f"data/{number}": data for number, data in files.items()}
    layers = [gz(tar_of(dict(list(names.items())[start::2]))) for start in (0, 1)]
    plain = make_image(tmp_path / "image", layers).root
    run_convert(plain, tmp_path / "lazy", options())
    image, cache = f"oci:{tmp_path}/lazy", tmp_path / "cache"
    moments = random.Random(1)
    for number in range(scaled(1000)):
        kill_one(moments.uniform(0, LONGEST), "reading", image, cache, str(number))
        wanted = moments.sample(range(FILES), 10)
        assert read_some(image, cache, wanted) == {one: files[one] for one in wanted}
    print(f"\n{scaled(1000)} processes killed that read through one cache; no wrong byte after it")


def test_servers_of_mounts(tmp_path: Path, need_fuse: None) -> None:
    data = noise(1, 3_000_000)
    layout = make_image(tmp_path / "image", [gz(tar_of({"file": data}))]).root
    run_convert(layout, tmp_path / "lazy", options())
    target = tmp_path / "mnt"
    target.mkdir()
    moments = random.Random(2)
    for _ in range(scaled(300)):
        process("mount", f"oci:{tmp_path}/lazy", target, home=tmp_path).good()
        (mount,) = process("mounts", "--format", "json", home=tmp_path).good().text.splitlines()
        reader = subprocess.Popen(
            ["cat", target / "file"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(0, 0.05))
        crash(json.loads(mount)["pid"])
        read, _ = reader.communicate(timeout=60)
        assert data.startswith(read)
        process("umount", target, home=tmp_path).good()
        assert not os.path.ismount(target)
        assert process("mounts", "--quiet", "--format", "json", home=tmp_path).good().text == ""
    print(f"\n{scaled(300)} servers of mounts killed; each could be unmounted and mounted again")
