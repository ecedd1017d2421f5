"""Images whose layers have no zTOC, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest

from soci_cli.errors import IntegrityError, InvalidDataError
from soci_cli.lazy import Cache
from soci_cli.oci.media_types import OCI_LAYER_ZSTD
from tests.lazy.tools import opened, whole
from tests.support.images import LayoutMaker, gz, sha256, tar_of, zst
from tests.support.layers import file, mixed_data, pax

BIG = mixed_data(400_000)


@pytest.mark.parametrize(
    "data, kind, said",
    [
        (b"no gzip", "", "layer sha256:.*gzip"),
        (gz(tar_of({"x": bytes(5000)}))[:-20], "", "layer sha256:"),
        (b"no zstd", OCI_LAYER_ZSTD, "layer sha256:"),
        (gz(b"no tar archive" * 100), "", "not a valid tar archive"),
        (b"x", "application/vnd.oci.image.layer.v1.tar+encrypted", "encrypted"),
        (b"x", "text/plain", "no file system layer"),
    ],
)
def test_broken_layers(tmp_path: Path, data: bytes, kind: str, said: str) -> None:
    place = whole(tmp_path, data, kind)
    with opened(place, tmp_path / "cache") as image:
        for _ in range(2):
            with pytest.raises(InvalidDataError, match=said):
                image.open_all()
        with pytest.raises(InvalidDataError, match=said):
            image.find(b"x")
    assert not list((tmp_path / "cache").rglob(".*.part"))


def test_a_sparse_file(tmp_path: Path) -> None:
    records = [(b"GNU.sparse.map", b"5000,3,100000,4"), (b"GNU.sparse.size", b"200000")]
    data = gz(pax(records) + file(b"x", b"onetwo!") + tar_of({"y": b"1"}))
    with opened(whole(tmp_path, data), tmp_path) as image:
        content = bytes(5000) + b"one" + bytes(94997) + b"two!" + bytes(99996)
        assert image.read(image.find(b"x"), 0, 1 << 20) == content
        assert image.read(image.find(b"y"), 0, 10) == b"1"


def test_an_empty_layer(tmp_path: Path) -> None:
    with opened(whole(tmp_path, gz(bytes(1024))), tmp_path / "cache") as image:
        assert image.children(image.root) == []


def test_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = whole(tmp_path, gz(tar_of({"x": bytes(5 << 20)})))
    monkeypatch.setattr("tests.lazy.tools.Cache", lambda root, _: Cache(root, 1 << 20))
    with (
        pytest.raises(InvalidDataError, match="unpacks to more"),
        opened(place, tmp_path / "cache") as image,
    ):
        image.open_all()
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*")) < 1 << 20


def test_a_damaged_file_in_the_cache_is_made_again(tmp_path: Path) -> None:
    place = whole(tmp_path, gz(tar_of({"x": BIG, "y": b"y"})))
    with opened(place, tmp_path / "cache") as image:
        image.open_all()
        (path,) = (tmp_path / "cache" / "devices").rglob("whole")
        with path.open("r+b") as file:
            file.seek(1000)
            file.write(b"damage")
        assert b"".join(image.pieces(image.find(b"x"))) == BIG
    path.write_bytes(path.read_bytes()[:-1])
    with opened(place, tmp_path / "cache") as image:
        assert b"".join(image.pieces(image.find(b"x"))) == BIG
    path.unlink()
    with opened(place, tmp_path / "cache") as image:
        assert image.read(image.find(b"x"), 7, 7) == BIG[7:14]
        assert image.read(image.find(b"y"), 0, 99) == b"y"
        assert image.read(image.find(b"y"), 5, 99) == b""


def test_a_layer_that_is_not_what_its_digest_says(tmp_path: Path) -> None:
    place = whole(tmp_path, gz(tar_of({"x": BIG})))
    (blob,) = (p for p in (tmp_path / "image/blobs/sha256").iterdir() if p.stat().st_size > 50_000)
    data = bytearray(blob.read_bytes())
    data[-3] ^= 1
    blob.write_bytes(data)
    with (
        pytest.raises(IntegrityError, match="layer sha256:"),
        opened(place, tmp_path / "cache") as image,
    ):
        image.open_all()


@pytest.mark.parametrize("cut", [9, 20])
def test_a_layer_that_is_not_what_its_diff_id_says(tmp_path: Path, cut: int) -> None:
    tar = tar_of({"x": bytes(5000)})
    maker = LayoutMaker(tmp_path / "image")
    blob = maker.blob(zst(tar)[:-cut], OCI_LAYER_ZSTD)
    maker.tag(maker.manifest([blob], maker.config([sha256(tar)])))
    with (
        pytest.raises(InvalidDataError),
        opened(f"oci:{maker.root}", tmp_path / "cache") as image,
    ):
        image.open_all()
