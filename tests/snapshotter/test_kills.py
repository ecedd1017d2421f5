"""Killed at any moment: what was answered stays, and nothing else is left."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from soci_cli.snapshotter.metadata import Kind
from soci_cli.snapshotter.snapshots import Snapshotter
from tests.support.machine import PROJECT

# Prepares, commits and removes for ever, and says what was done.
_WORK = """
import random, sys
from pathlib import Path
from soci_cli.snapshotter.snapshots import Snapshotter
root, seed = Path(sys.argv[1]), int(sys.argv[2])
chance = random.Random(seed)
with Snapshotter(root) as snapshotter:
    print("begun", flush=True)
    names = [one.name for one in snapshotter.walk([]) if one.kind == 3]
    for number in range(10**6):
        key, name = f"key-{seed}-{number}", f"name-{seed}-{number}"
        parent = chance.choice(["", *names])
        print("doing", "prepare", key, flush=True)
        snapshotter.prepare(key, parent, {"number": str(number)})
        print("done", "prepare", key, flush=True)
        if chance.random() < 0.7:
            print("doing", "commit", key, name, flush=True)
            snapshotter.commit(key, name, {"parent": parent})
            print("done", "commit", key, name, flush=True)
            names.append(name)
        elif chance.random() < 0.7:
            print("doing", "remove", key, flush=True)
            snapshotter.remove(key)
            print("done", "remove", key, flush=True)
"""


def kill_while_it_works(root: Path, seed: int, known: dict[str, Kind]) -> set[str]:
    """Lets it work for a moment and kills it; updates what is known, and gives what is uncertain."""
    command = [sys.executable, "-c", _WORK, str(root), str(seed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(random.Random(seed).random() * 0.1)
    process.kill()
    doing: set[str] = set()
    for line in process.stdout.read().rpartition("\n")[0].splitlines():
        state, what, *names = line.split()
        if state == "doing":
            doing = set(names)
            continue
        doing = set()
        if what != "prepare":
            del known[names[0]]
        if what != "remove":
            known[names[-1]] = Kind.COMMITTED if what == "commit" else Kind.ACTIVE
    process.wait()
    process.stdout.close()
    return doing


@pytest.mark.parametrize("count", [6, pytest.param(200, marks=pytest.mark.soak)])
def test_what_was_answered_stays(tmp_path: Path, count: int) -> None:
    known: dict[str, Kind] = {}
    for seed in range(count):
        doing = kill_while_it_works(tmp_path, seed, known)
        with Snapshotter(tmp_path) as snapshotter:
            there = {one.name: one.kind for one in snapshotter.walk([])}
            assert {name: kind for name, kind in there.items() if name not in doing} == {
                name: kind for name, kind in known.items() if name not in doing
            }
            known = there
            for name, kind in there.items():
                if kind is not Kind.COMMITTED:
                    assert snapshotter.mounts(name)
                    assert snapshotter.files(snapshotter.stat(name)).is_dir()
            snapshotter.cleanup()
            folders = {path.name for path in (tmp_path / "snapshots").iterdir()}
            assert folders == {str(one.id) for one in snapshotter.walk([])}
