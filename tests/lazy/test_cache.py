"""The cache: limits, damage, crashes, and two processes at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from soci_cli.errors import ConfigError, IntegrityError, StorageError
from soci_cli.lazy import Cache, cache_root
from soci_cli.lazy.cache import DEFAULT_LIMIT, blob_key, device_key, span_key
from soci_cli.lazy.entries import OpenEntries
from tests.support.machine import PROJECT


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


def load(cache: Cache, key: str) -> bytes | None:
    """The bytes of an entry."""
    entry = cache.find(key)
    return None if entry is None else entry.read(0, entry.size)


def test_what_is_forgotten(tmp_path: Path) -> None:
    """All of a layer or blob goes, nothing else, and what it occupied is not counted any more."""
    cache = Cache(tmp_path / "cache", 1 << 20)
    one, other, ztoc = (f"sha256:{digit * 64}" for digit in "abc")
    for layer in (one, other):
        cache.put(span_key(layer, ztoc, 0), bytes(1000))
        cache.put(span_key(layer, other, 3), bytes(500))
        cache.put(device_key(layer, ""), bytes(200))
    cache.put(blob_key(ztoc), bytes(100))
    size, count = cache.occupied(one)
    assert count == 3
    assert 1700 <= size < 1800
    before = size_of(tmp_path)
    assert cache.forget({one, ztoc}) == before - size_of(tmp_path) > 1800
    assert cache.occupied(one) == (0, 0)
    assert cache.occupied(other) == (size, 3)
    assert cache.forget({one}) == 0
    assert not list(tmp_path.rglob(f"*{'a' * 64}*"))


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
    assert 0 < Cache(tmp_path / "not" / "there").limit <= DEFAULT_LIMIT


@contextmanager
def another_user() -> Iterator[None]:
    """Acts as a user who owns nothing."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as others")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_directory_that_others_can_write(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    Cache(root, 1 << 20).put("a/1", b"one")
    for mode in (0o777, 0o720):
        root.chmod(mode)
        with pytest.raises(StorageError, match=rf"{root} can be written by others.* SOCI_CACHE"):
            Cache(root, 1 << 20)
    root.chmod(0o755)
    assert load(Cache(root, 1 << 20), "a/1") == b"one"


def test_a_directory_of_another_user(tmp_path: Path) -> None:
    """Root does not believe what a user has written."""
    tmp_path.chmod(0o777)
    root = tmp_path / "cache"
    for folder in tmp_path.parents[:3]:
        folder.chmod(folder.stat().st_mode | 0o11)
    with another_user():
        Cache(root, 1 << 20).put("a/1", b"forged")
    with pytest.raises(StorageError, match=rf"{root} belongs to user 65534.* set SOCI_CACHE"):
        Cache(root, 1 << 20)
    # Neither what is theirs in a directory of one's own.
    os.chown(root, 0, 0)
    cache = Cache(root, 1 << 20)
    assert load(cache, "a/1") is None
    cache.put("a/2", b"mine")
    with another_user(), pytest.raises(StorageError, match=rf"{root} is closed .*SOCI_CACHE"):
        Cache(root, 1 << 20)


def test_filling_an_entry_in_pieces(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 20)
    claim = cache.claim("a/1")
    assert claim is not None
    with claim:
        assert claim.fill(6, [b"in ", b"two"]).read(0, 9) == b"in two"
    assert load(cache, "a/1") == b"in two"
    claim = cache.claim("a/2")
    with pytest.raises(IntegrityError), claim:  # type: ignore[union-attr]
        claim.fill(6, broken())  # type: ignore[union-attr]
    assert not cache.has("a/2")


def broken() -> Iterator[bytes]:
    yield b"in "
    raise IntegrityError("cut off")


def test_what_comes_over_its_path_later(tmp_path: Path) -> None:
    """As a mount of an image does that needs the cache to be read."""
    root = tmp_path / "home" / "cache"
    cache = Cache(root, 1 << 20)
    cache.put("a/1", b"one")
    (tmp_path / "home").rename(tmp_path / "below")
    root.mkdir(parents=True)
    cache.put("b/2", b"two")
    assert (load(cache, "a/1"), load(cache, "b/2")) == (b"one", b"two")
    assert cache.names("a/") == {"1"}
    assert cache.prune() > 0
    assert load(cache, "b/2") is None
    assert not list(root.iterdir())


def test_a_directory_that_is_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1 << 20)
    cache.put("a/1", b"one")
    shutil.rmtree(tmp_path / "cache")
    assert load(cache, "a/1") is None
    cache.put("a/1", b"again")
    assert load(Cache(tmp_path / "cache", 1 << 20), "a/1") == load(cache, "a/1") == b"again"


def test_entries(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1 << 20)
    assert load(cache, "a/1") is None
    cache.put("a/1", b"one")
    cache.put("a/2", b"")
    assert (load(cache, "a/1"), load(cache, "a/2")) == (b"one", b"")
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
    assert load(cache, "a/1") is None
    assert not path.exists()
    cache.put("a/1", b"new")
    assert load(cache, "a/1") == b"new"


def test_what_was_not_read_for_long_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100_000)
    for number in range(9):
        cache.put(f"a/{number}", bytes(10_000))
        os.utime(tmp_path / "a" / str(number), (number, number))
    assert load(cache, "a/0") is not None  # read now
    held = cache.open("a/1")
    assert held is not None
    os.utime(tmp_path / "a" / "1", (1, 1))
    cache.put("a/9", bytes(15_000))
    assert not cache.has("a/1")
    assert not cache.has("a/2")
    assert cache.has("a/0")
    assert cache.has("a/9")
    assert size_of(tmp_path) <= 100_000
    # A file that is open stays readable.
    assert len(held.read(0, 20_000)) > 10_000


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
    assert load(cache, "a/1") == b"whole"
    assert not unfinished(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = Cache(tmp_path / "file", 1 << 20)
    claim = cache.claim("a/1")
    assert claim is not None
    assert not claim.is_real
    claim.put(b"lost")
    assert load(cache, "a/1") is None


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
    assert load(cache, "a/1") == b"whole"
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
            entry = cache.find(f"a/{number}")
            data = entry and entry.read(0, entry.size)
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


LAYERS = ["sha256:" + "1" * 64, "sha256:" + "2" * 64, "sha512:" + "3" * 128]


def filled(root: Path) -> Cache:
    """A cache with spans of two layers, an archive and a blob, last used in this order."""
    cache = Cache(root, 1 << 20)
    keys = [span_key(LAYERS[0], LAYERS[1], number) for number in range(3)]
    keys += [span_key(LAYERS[2], LAYERS[1], 0), device_key(LAYERS[1], "")]
    keys += [f"{device_key(LAYERS[1], '')}.ztoc", blob_key(LAYERS[1])]
    for number, key in enumerate(keys):
        cache.put(key, bytes(1000))
        os.utime(root / key, (1000 + number, 1000 + number))
    return cache


def test_what_is_there(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    held = cache.claim(span_key(LAYERS[0], LAYERS[1], 7))
    (tmp_path / "spans" / "x").mkdir()
    (tmp_path / "spans" / "x" / "odd").write_bytes(b"")
    found = [(one.kind, one.digest, one.entries, one.last_used) for one in cache.entries()]
    assert found == [
        ("blobs", LAYERS[1], 1, 1006.0),
        ("devices", LAYERS[1], 2, 1005.0),
        ("spans", LAYERS[2], 1, 1003.0),
        ("spans", LAYERS[0], 3, 1002.0),
    ]
    assert all(one.entries * 1000 < one.size < one.entries * 1100 for one in cache.entries())
    assert cache.names(span_key(LAYERS[0], LAYERS[1], 0).removesuffix("0")) == {"0", "1", "2"}
    assert held is not None
    held.close()


def test_prune(tmp_path: Path) -> None:
    cache = filled(tmp_path / "cache")
    assert cache.prune(limit=1 << 20) == 0
    assert cache.prune(older_than=time.time() - 1001.5) == 2 * 1020
    assert [one.entries for one in cache.entries() if one.kind == "spans"] == [1, 1]
    assert cache.prune(limit=3100) == 2 * 1020
    assert [one.kind for one in cache.entries()] == ["blobs", "devices"]
    held = cache.claim(blob_key(LAYERS[0]))
    assert held is not None
    left = cache.claim(blob_key(LAYERS[2]))
    assert left is not None
    os.close(left._fd)  # as when the process ends
    left._fd = -1
    assert cache.prune() == 3 * 1020
    assert cache.entries() == []
    assert len(unfinished(tmp_path)) == 1
    held.put(b"1")
    assert load(cache, blob_key(LAYERS[0])) == b"1"
    assert Cache(tmp_path / "no", 1).prune() == 0
    assert Cache(tmp_path / "no", 1).entries() == []


def test_pruned_while_it_is_read(tmp_path: Path) -> None:
    cache = filled(tmp_path)
    entry = cache.find(blob_key(LAYERS[1]))
    assert entry is not None
    cache.prune()
    assert entry.read(10, 20) == bytes(20)
    assert not entry.is_linked
    # What is counted is right: nothing is evicted before there is too much again.
    for number in range(900):
        cache.put(f"a/{number}", bytes(1000))
    assert len(cache.names("a/")) == 900


def test_a_layer_goes_with_its_ztoc(tmp_path: Path) -> None:
    """The layer without its zTOC would be unpacked again."""
    cache = Cache(tmp_path, 100_000)
    key = device_key(LAYERS[0], "")
    cache.put(f"{key}.ztoc", bytes(10_000))
    cache.put("a/1", bytes(20_000))
    cache.put(key, bytes(60_000))
    for at, name in enumerate((f"{key}.ztoc", "a/1", key)):
        os.utime(tmp_path / name, (at, at))
    cache.put("a/2", bytes(15_000))
    assert [cache.has(name) for name in (f"{key}.ztoc", "a/1", key)] == [True, False, True]
    os.utime(tmp_path / "a" / "2", (3, 3))
    cache.put("a/3", bytes(30_000))
    assert [cache.has(name) for name in (f"{key}.ztoc", key, "a/2")] == [False, False, True]


def test_used_entries_stay(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 100_000)
    entries = OpenEntries()
    for number in range(9):
        cache.put(f"a/{number}", bytes(10_000))
        os.utime(tmp_path / "a" / str(number), (number, number))
    first = cache.find("a/0")
    assert first is not None
    os.utime(tmp_path / "a" / "0", (0, 0))
    entries.put("a/0", first)
    first.read(0, 1)
    entries.clear()  # which tells that it was used
    cache.put("a/9", bytes(15_000))
    assert cache.has("a/0")
    assert not cache.has("a/1")
