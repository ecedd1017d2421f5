"""The cache: limits, damage, crashes, and two processes at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from soci_cli.errors import ConfigError
from soci_cli.lazy import Cache, MemoryCache, cache_root
from soci_cli.lazy.cache import DEFAULT_LIMIT, default_limit
from tests.commands.tools import PROJECT


def script(text: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Runs a program that has `cache`, a Cache in the folder of its first argument."""
    head = "import sys, os\nfrom pathlib import Path\nfrom soci_cli.lazy import Cache\n"
    body = f"{head}cache = Cache(Path(sys.argv[1]), 1 << 20)\n{textwrap.dedent(text)}"
    return subprocess.Popen(
        [sys.executable, "-c", body, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
    )


def size_of(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def unfinished(root: Path) -> list[Path]:
    return list(root.rglob(".*.part"))


def test_where_it_is() -> None:
    assert cache_root({"SOCI_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}) == Path("/a")
    assert cache_root({"XDG_CACHE_HOME": "/b", "HOME": "/c"}) == Path("/b/soci")
    assert cache_root({"XDG_CACHE_HOME": "b", "HOME": "/c"}) == Path("/c/.cache/soci")
    with pytest.raises(ConfigError):
        cache_root({})


def test_the_limit(tmp_path: Path) -> None:
    assert 0 < default_limit(tmp_path / "not" / "there") <= DEFAULT_LIMIT


def test_entries(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1 << 20)
    assert cache.load("a/1") is None
    cache.put("a/1", b"one")
    cache.put("a/2", b"")
    assert (cache.load("a/1"), cache.load("a/2")) == (b"one", b"")
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert not unfinished(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "longer", "changed", "empty", "header"])
def test_damaged_entries_are_absent(tmp_path: Path, damage: str) -> None:
    cache = Cache(tmp_path, 1 << 20)
    cache.put("a/1", b"0123456789" * 100)
    path = tmp_path / "a" / "1"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-1]
    elif damage == "longer":
        data += b"x"
    elif damage == "changed":
        data[500] ^= 1
    elif damage == "empty":
        data.clear()
    else:
        data[9] ^= 1
    path.write_bytes(data)
    assert cache.load("a/1") is None
    assert not path.exists()
    cache.put("a/1", b"new")
    assert cache.load("a/1") == b"new"


def test_what_was_not_read_for_long_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100_000)
    for number in range(9):
        cache.put(f"a/{number}", bytes(10_000))
        os.utime(tmp_path / "a" / str(number), (number, number))
    assert cache.load("a/0") is not None  # read now
    held = cache.open("a/1")
    assert held is not None
    os.utime(held, (1, 1))
    cache.put("a/9", bytes(15_000))
    assert not cache.has("a/1")
    assert not cache.has("a/2")
    assert cache.has("a/0")
    assert cache.has("a/9")
    assert size_of(tmp_path) <= 100_000
    # A file that is open stays readable.
    assert len(os.read(held, 20_000)) > 10_000
    os.close(held)


def test_claims(tmp_path: Path) -> None:
    cache, other = Cache(tmp_path, 1 << 20), Cache(tmp_path, 1 << 20)
    claim = cache.claim("a/1")
    assert claim is not None
    assert claim.is_real
    assert other.claim("a/1") is None
    claim.write(b"half")
    claim.close()
    assert not unfinished(tmp_path)
    again = other.claim("a/1")
    assert again is not None
    with again:
        again.put(b"whole")
    assert cache.load("a/1") == b"whole"
    assert not unfinished(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(tmp_path / "file", 1 << 20)
    claim = cache.claim("a/1")
    assert claim is not None
    assert not claim.is_real
    claim.put(b"lost")
    assert cache.load("a/1") is None


def test_killed_in_the_middle_of_writing(tmp_path: Path) -> None:
    writer = script(
        """
        claim = cache.claim("a/1")
        claim.write(b"x" * 5000)
        print("half", flush=True)
        sys.stdin.read()
        """,
        tmp_path,
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "half\n"
    cache = Cache(tmp_path, 1 << 20)
    assert cache.claim("a/1") is None
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert not cache.has("a/1")
    cache.put("a/1", b"whole")
    assert cache.load("a/1") == b"whole"
    assert not unfinished(tmp_path)


def test_leftovers_of_killed_processes_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10_000)
    for name in ("old", "busy", "new"):
        claim = cache.claim(f"a/{name}")
        assert claim is not None
        claim.write(b"x")
        part = tmp_path / "a" / f".{name}.part"
        if name != "new":
            os.utime(part, (1, 1))
        if name == "busy":
            held = claim
        else:
            os.close(claim._fd)  # as when the process ends
            claim._fd = -1
    cache.put("a/big", bytes(20_000))
    assert sorted(path.name for path in unfinished(tmp_path)) == [".busy.part", ".new.part"]
    held.close()


def test_two_processes_at_once(tmp_path: Path) -> None:
    """Far more than fits is written and read by both; nobody ever reads anything wrong."""
    work = """
        import random
        source = random.Random(int(sys.argv[2]))
        hits = 0
        for _ in range(1500):
            number = source.randrange(200)
            data = cache.load(f"a/{number}")
            right = bytes([number]) * (5000 + 100 * number)
            if data is None:
                cache.put(f"a/{number}", right)
            else:
                assert data == right
                hits += 1
        print(hits)
        """
    begin = time.monotonic()
    both = [script(work, tmp_path, str(seed)) for seed in (1, 2)]
    hits = [int(one.communicate(timeout=60)[0]) for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert min(hits) > 100
    assert size_of(tmp_path) < 1.2 * (1 << 20)
    assert not unfinished(tmp_path)
    assert time.monotonic() - begin < 20


def test_memory() -> None:
    memory = MemoryCache(100)
    for number in range(4):
        memory.put(str(number), bytes(30))
        memory.get("0")
    assert [memory.get(str(number)) is not None for number in range(4)] == [True, False, True, True]
    memory.put("large", bytes(101))
    assert memory.get("large") is None
    memory.put("0", bytes(5))
    assert len(memory.get("0") or b"") == 5
