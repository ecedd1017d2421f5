"""Small blobs: where they are mapped from, and what is left alone."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from soci_cli.errors import IntegrityError, InvalidDataError
from soci_cli.lazy import Cache, Fetching, blobs, open_image
from soci_cli.lazy.blobs import Blob, open_blob
from soci_cli.lazy.cache import blob_key
from soci_cli.lazy.fetcher import Fetcher
from soci_cli.lazy.ztocs import Ztocs
from soci_cli.oci import Descriptor
from soci_cli.targets import Source, Store, open_source, parse_place
from soci_cli.targets.layout import Layout
from soci_cli.ztoc import LayerFiles
from soci_cli.ztoc.flatbuffer import release
from tests.lazy.tools import Place, entry
from tests.support.images import LayoutMaker, gz, layer_tar, run_convert, sha256
from tests.support.layers import tar_ztoc

SMALL = b"a small blob"
LARGE = bytes(range(256)) * (1 << 13)
LIMIT = 1 << 30


def described(data: bytes) -> Descriptor:
    return Descriptor("application/octet-stream", sha256(data), len(data))


def layout_of(root: Path, *datas: bytes) -> Layout:
    folder = root / "blobs" / "sha256"
    folder.mkdir(parents=True)
    for data in datas:
        (folder / sha256(data)[7:]).write_bytes(data)
    return Layout(root)


def content(blob: Blob) -> bytes:
    return blob.buffer[blob.start :]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 1 << 30)


def store_of(root: Path, *datas: bytes) -> Source:
    place = Store(root).open_unnamed()
    for data in datas:
        place.push(described(data), data)
    return place


def test_files_of_the_store_are_mapped_where_they_are(tmp_path: Path, cache: Cache) -> None:
    store = store_of(tmp_path / "store", SMALL, LARGE)
    with store:
        small = open_blob(store, described(SMALL), cache, LIMIT)
        large = open_blob(store, described(LARGE), cache, LIMIT)
    assert (content(small), content(large)) == (SMALL, LARGE)
    assert isinstance(small.buffer, bytes) and isinstance(large.buffer, mmap.mmap)
    assert not cache.entries()
    # A file that is removed or replaced by name stays as it was opened.
    path = tmp_path / "store" / "blobs" / "sha256" / sha256(LARGE)[7:]
    path.unlink()
    path.write_bytes(b"another")
    release(large.buffer)
    assert content(large) == LARGE


def change_mode(path: Path) -> None:
    path.chmod(0o646)


def link(path: Path) -> None:
    path.with_name("other").hardlink_to(path)


def give_away(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file to another user")
    os.chown(path, 65534, 65534)


@pytest.mark.parametrize("change", [change_mode, link, give_away])
def test_files_that_others_may_change_are_copied_first(
    tmp_path: Path, cache: Cache, change: Callable[[Path], None]
) -> None:
    store = store_of(tmp_path / "store", LARGE)
    path = tmp_path / "store" / "blobs" / "sha256" / sha256(LARGE)[7:]
    change(path)
    with store:
        blob = open_blob(store, described(LARGE), cache, LIMIT)
    assert_copied(blob, path, cache)


def test_files_of_layouts_are_copied_first(tmp_path: Path, cache: Cache) -> None:
    """Anybody may write a folder anew while it is used, `cp -r` for example."""
    layout = layout_of(tmp_path / "layout", SMALL, LARGE)
    assert content(open_blob(layout, described(SMALL), cache, LIMIT)) == SMALL
    assert not cache.entries()
    blob = open_blob(layout, described(LARGE), cache, LIMIT)
    assert_copied(blob, layout.blob_path(sha256(LARGE)), cache)


def assert_copied(blob: Blob, path: Path, cache: Cache) -> None:
    assert isinstance(blob.buffer, mmap.mmap)
    assert cache.has(blob_key(sha256(LARGE)))
    # A process that ends for a file that is cut short would take all mounts with it.
    os.truncate(path, 1)
    release(blob.buffer)
    assert content(blob) == LARGE


def test_what_comes_from_elsewhere_is_fetched_once(cache: Cache) -> None:
    place: Any = Place(SMALL, LARGE)
    for data in (SMALL, LARGE, SMALL, LARGE):
        blob = open_blob(place, described(data), cache, LIMIT)
        assert content(blob) == data
        assert isinstance(blob.buffer, mmap.mmap) == (data is LARGE)
    assert len(place.requests) == 2
    # It stays when it is evicted.
    cache.prune()
    assert not cache.entries()
    release(blob.buffer)
    assert content(blob) == LARGE


def test_a_damaged_entry_is_fetched_again(cache: Cache) -> None:
    place: Any = Place(LARGE)
    cache.put(blob_key(sha256(LARGE)), b"\0" * len(LARGE))
    for _ in range(2):
        assert content(open_blob(place, described(LARGE), cache, LIMIT)) == LARGE
    assert len(place.requests) == 1


def test_bytes_that_are_wrong(tmp_path: Path, cache: Cache) -> None:
    place: Any = Place(LARGE)
    place.damage[5] = 9
    with pytest.raises(IntegrityError, match="digest"):
        open_blob(place, described(LARGE), cache, LIMIT)
    assert not cache.has(blob_key(sha256(LARGE)))
    layout = layout_of(tmp_path / "layout", LARGE)
    layout.blob_path(sha256(LARGE)).write_bytes(LARGE[::-1])
    with pytest.raises(IntegrityError, match="digest"):
        open_blob(layout, described(LARGE), cache, LIMIT)
    with pytest.raises(InvalidDataError, match="at most"):
        open_blob(place, described(LARGE), cache, 1000)


@pytest.fixture(params=["network", "closed", "full"])
def nowhere_to_map(
    request: pytest.FixtureRequest, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cache]:
    """The cache is on another machine's file system, cannot be written, or is full."""
    if request.param == "network":
        monkeypatch.setattr(blobs, "_LOCAL", frozenset())
    elif request.param == "closed":
        monkeypatch.setattr(cache, "claim", cache.no_claim)
    else:
        monkeypatch.setattr("soci_cli.lazy.cache.os.write", _full)
    yield cache


def _full(fd: int, data: object) -> int:
    raise OSError(28, "No space left on device")


def test_where_nothing_can_be_mapped(nowhere_to_map: Cache) -> None:
    place: Any = Place(LARGE)
    blob = open_blob(place, described(LARGE), nowhere_to_map, LIMIT)
    assert content(blob) == LARGE and isinstance(blob.buffer, bytes)


def test_a_mapped_ztoc_is_read_as_any_other(cache: Cache) -> None:
    entries = [entry(f"{number % 97}/{number}") for number in range(20_000)]
    entries.append(entry("x", xattrs=((b"SCHILY.xattr.user.a", b"1"),)))
    data = tar_ztoc(entries)
    assert len(data) > 1 << 20
    place: Any = Place(data)
    ztocs = Ztocs()
    files = ztocs.get(place, described(data), cache)
    assert isinstance(files.ztoc.files._buffer, mmap.mmap)
    assert list(files.ztoc.files) == entries
    assert len(files.names(b"7")) == 207
    assert files.ztoc.size == len(data)


def test_a_ztoc_is_opened_once(cache: Cache) -> None:
    data = tar_ztoc([entry("a")])
    place: Any = Place(data)
    ztocs = Ztocs()
    files: LayerFiles | None = ztocs.get(place, described(data), cache)
    assert ztocs.get(place, described(data), cache) is files
    assert len(place.requests) == 1
    del files
    assert not list(ztocs._files) and not list(ztocs._turns)


def test_images_of_a_process_share_the_tables_of_their_layers(tmp_path: Path, cache: Cache) -> None:
    maker = LayoutMaker(tmp_path / "image")
    shared = maker.blob(gz(layer_tar(1)))
    for number in (2, 3):
        maker.tag(maker.manifest([shared, maker.blob(gz(layer_tar(number)))]), str(number))
    places = [f"oci:{tmp_path}/soci{number}:{number}" for number in (2, 3)]
    for number, place in zip((2, 3), places, strict=True):
        run_convert(f"oci:{maker.root}:{number}", place)
    with Fetcher() as fetcher, ExitStack() as stack:
        images = []
        for place in places:
            source = stack.enter_context(open_source(parse_place(place), tmp_path / "store"))
            fetching = stack.enter_context(Fetching(cache, fetcher=fetcher))
            images.append(stack.enter_context(open_image(source, fetching)))
        first, second = ([layer.files for layer in image.layers] for image in images)
        assert first[0] is second[0]
        assert first[1] is not second[1]


def test_what_was_read_of_a_mapped_ztoc_is_given_back(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("soci_cli.ztoc.layer._KEPT", 1000)
    data = tar_ztoc(entry(f"{number // 100}/{number}") for number in range(30_000))
    place: Any = Place(data)
    files = Ztocs().get(place, described(data), cache)
    assert resident(sha256(data)) < len(data) // 8  # checked and decoded, but no file was asked for
    list(files.ztoc.files)
    assert resident(sha256(data)) > len(data) // 2
    assert sum(len(files.names(b"%d" % folder)) for folder in range(300)) == 30_000
    assert resident(sha256(data)) < len(data) // 8


def resident(digest: str) -> int:
    """The bytes in memory of mapped files with this digest in their name."""
    found, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            counts = digest.partition(":")[2] in line
        elif counts and line.startswith("Rss:"):
            found += int(line.split()[1]) << 10
    return found
