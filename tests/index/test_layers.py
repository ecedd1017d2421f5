"""Layers that are not indexed, that are recompressed, and zTOCs that cannot be trusted."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from soci_cli.errors import IntegrityError, InvalidDataError, SociError
from soci_cli.index.convert import ConvertOptions
from soci_cli.oci.media_types import (
    DOCKER_LAYER,
    DOCKER_LAYER_FOREIGN_GZIP,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_NONDISTRIBUTABLE_GZIP,
    OCI_LAYER_ZSTD,
)
from soci_cli.ztoc import FileTree, LayerReader, decode_ztoc
from tests.support.images import (
    GOLDEN,
    LayoutMaker,
    Listener,
    blob_json,
    check_complete,
    gz,
    layer_tar,
    listing,
    make_image,
    make_zstd_image,
    noise,
    options,
    read_index,
    run_convert,
    sha256,
    soci_entries,
    tar_of,
    zst,
)


def recompress(**more: object) -> ConvertOptions:
    return options(recompress_zstd=True, **more)


def sparse_tar(real_size: int = 0) -> bytes:
    """An archive with a GNU sparse file, all of which is a hole."""
    info = tarfile.TarInfo("sparse")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % real_size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + tar_of({"after": b"it"})


def test_a_sparse_layer_is_like_all_others(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    sparse, other = maker.blob(gz(sparse_tar(99999))), maker.blob(gz(layer_tar(1)))
    maker.tag(maker.manifest([sparse, other]))
    listener = Listener()
    result = run_convert(maker.root, tmp_path / "d", observer=listener)
    assert [layer.outcome for layer in result.platforms[0].layers] == ["built", "built"]
    assert listener.notes == []
    assert sparse["digest"] in check_complete(tmp_path / "d")
    assert not run_convert(tmp_path / "d", tmp_path / "d").changed


def test_nothing_to_index_is_an_error(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    maker.tag(maker.manifest([maker.blob(b"x", OCI_LAYER + "+encrypted")]))
    with pytest.raises(SociError, match="no layer that can be indexed"):
        run_convert(maker.root, tmp_path / "d")
    small = make_image(tmp_path / "small").root
    with pytest.raises(SociError, match="lower the minimum layer size"):
        run_convert(small, tmp_path / "d", ConvertOptions())
    assert not (tmp_path / "d" / "index.json").exists()


def test_a_foreign_layer_that_is_not_here(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    foreign = maker.blob(
        gz(layer_tar(9)), DOCKER_LAYER_FOREIGN_GZIP, urls=["https://example.com/l"]
    )
    maker.path(foreign["digest"]).unlink()
    maker.tag(maker.manifest([foreign, maker.blob(gz(layer_tar(1)))]))
    listener = Listener()
    result = run_convert(maker.root, tmp_path / "d", observer=listener)
    assert [layer.outcome for layer in result.platforms[0].layers] == ["skipped", "built"]
    assert "foreign" in listener.notes[0]
    new = blob_json(tmp_path / "d", read_index(tmp_path / "d")["manifests"][0])
    assert new["layers"][0] == {**foreign, "mediaType": OCI_LAYER_NONDISTRIBUTABLE_GZIP}
    assert not run_convert(tmp_path / "d", tmp_path / "d").changed


def test_a_foreign_layer_that_is_here_is_indexed(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    foreign = maker.blob(
        gz(layer_tar(9)), DOCKER_LAYER_FOREIGN_GZIP, urls=["https://example.com/l"]
    )
    maker.tag(maker.manifest([foreign]))
    result = run_convert(maker.root, tmp_path / "d")
    assert [layer.outcome for layer in result.platforms[0].layers] == ["built"]
    assert foreign["digest"] in check_complete(tmp_path / "d")


@pytest.mark.parametrize(
    ("media_type", "data", "outcome"),
    [
        (OCI_LAYER, layer_tar(1), "built"),
        (OCI_LAYER_GZIP, gz(layer_tar(1)), "built"),
        (OCI_LAYER_ZSTD, zst(layer_tar(1)), "skipped"),
        (DOCKER_LAYER, gz(layer_tar(1)), "built"),
        (DOCKER_LAYER, layer_tar(1), "built"),
        (DOCKER_LAYER, zst(layer_tar(1)), "skipped"),
        (OCI_LAYER_GZIP + "+encrypted", b"secret" * 9000, "skipped"),
        ("application/vnd.in-toto+json", b"{}" + b" " * 60000, "skipped"),
    ],
)
def test_media_types(tmp_path: Path, media_type: str, data: bytes, outcome: str) -> None:
    maker = LayoutMaker(tmp_path / "image")
    layers = [maker.blob(data, media_type), maker.blob(gz(layer_tar(2)))]
    maker.tag(maker.manifest(layers))
    listener = Listener()
    result = run_convert(maker.root, tmp_path / "d", observer=listener)
    assert [layer.outcome for layer in result.platforms[0].layers] == [outcome, "built"]
    assert len(listener.notes) == (outcome == "skipped")
    assert layers[0]["digest"] in check_complete(tmp_path / "d")


def test_small_layers_are_left_out_without_a_word(tmp_path: Path) -> None:
    layers = [gz(layer_tar(1, 100)), gz(layer_tar(2, 60_000))]
    listener = Listener()
    result = run_convert(
        make_image(tmp_path / "image", layers).root,
        tmp_path / "d",
        options(min_layer_size=20_000),
        listener,
    )
    assert [layer.outcome for layer in result.platforms[0].layers] == ["skipped", "built"]
    assert listener.notes == []
    exact = options(min_layer_size=len(layers[0]))
    result = run_convert(tmp_path / "image", tmp_path / "e", exact)
    assert [layer.outcome for layer in result.platforms[0].layers] == ["built", "built"]


# zstd


def test_zstd_is_skipped_with_advice(tmp_path: Path) -> None:
    listener = Listener()
    run_convert(make_zstd_image(tmp_path / "image").root, tmp_path / "d", observer=listener)
    assert len(listener.notes) == 1
    assert "zstd" in listener.notes[0]
    assert "--zstd-layers recompress" in listener.notes[0]


def test_zstd_is_recompressed(tmp_path: Path) -> None:
    maker = make_zstd_image(tmp_path / "image")
    result = run_convert(maker.root, tmp_path / "d", recompress())
    reports = result.platforms[0].layers
    assert [report.outcome for report in reports] == ["built", "built"]
    old = blob_json(maker.root, maker.entries[0])
    new = blob_json(tmp_path / "d", read_index(tmp_path / "d")["manifests"][0])
    assert new["config"] == old["config"]
    assert new["layers"][1] == old["layers"][1]
    assert new["layers"][0]["mediaType"] == OCI_LAYER_GZIP
    blobs = check_complete(tmp_path / "d")
    assert old["layers"][0]["digest"] not in blobs
    layer = blobs[new["layers"][0]["digest"]]
    assert gzip.decompress(layer) == layer_tar(3)
    # The new layer can be read through its zTOC.
    index = blob_json(tmp_path / "d", soci_entries(read_index(tmp_path / "d"))[0])
    ztoc = decode_ztoc(blobs[index["layers"][0]["digest"]])
    reader = LayerReader(ztoc, lambda offset, length: layer[offset : offset + length])
    entry = FileTree(ztoc).find(b"data/3.bin")
    assert b"".join(reader.read_file(entry)) == noise(3, 60_000)


def test_recompressing_twice_gives_the_same(tmp_path: Path) -> None:
    image = make_zstd_image(tmp_path / "image").root
    first = run_convert(image, tmp_path / "d", recompress())
    before = listing(tmp_path / "d")
    again = run_convert(image, tmp_path / "d", recompress())
    assert again.descriptor == first.descriptor
    assert set(listing(tmp_path / "d")) == set(before)
    assert run_convert(image, tmp_path / "e", recompress()).descriptor == first.descriptor
    assert not run_convert(tmp_path / "d", tmp_path / "d", recompress()).changed
    archive = f"oci-archive:{tmp_path}/a.tar"
    assert run_convert(image, archive, recompress()).descriptor == first.descriptor
    check_complete(archive)
    store = tmp_path / "store"
    assert run_convert(image, "app", recompress(), store=store).descriptor == first.descriptor
    check_complete("app", store=store)


def test_a_wrong_diff_id_is_refused(tmp_path: Path) -> None:
    maker = make_zstd_image(tmp_path / "image", wrong_diff_id=True)
    layer = blob_json(maker.root, maker.entries[0])["layers"][0]
    with pytest.raises(IntegrityError, match=f"{layer['digest']}.*diff ID"):
        run_convert(maker.root, tmp_path / "d", recompress())
    assert not (tmp_path / "d" / "index.json").exists()


@pytest.mark.parametrize("damage", ["bytes", "stream", "cut"])
def test_a_broken_zstd_layer(tmp_path: Path, damage: str) -> None:
    data = zst(layer_tar(1))
    maker = LayoutMaker(tmp_path / "image")
    if damage == "bytes":
        layer = maker.blob(data, OCI_LAYER_ZSTD)
        wrong = bytearray(data)
        wrong[len(data) // 2] ^= 1
        maker.path(layer["digest"]).write_bytes(wrong)
    elif damage == "stream":
        layer = maker.blob(data[:100] + b"\xff" * 100 + data[200:], OCI_LAYER_ZSTD)
    else:
        layer = maker.blob(data[: len(data) // 2], OCI_LAYER_ZSTD)
    maker.tag(maker.manifest([layer], maker.config([sha256(layer_tar(1))])))
    with pytest.raises((IntegrityError, InvalidDataError), match=layer["digest"]):
        run_convert(maker.root, tmp_path / "d", recompress())
    assert not (tmp_path / "d" / "index.json").exists()


@pytest.mark.parametrize("bomb", ["zeros", "far repeats"])
def test_what_a_zstd_layer_grows_to_is_bounded(
    tmp_path: Path, bomb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zstd packs zeros, and repeats beyond deflate's window, a thousand times better than gzip does."""
    monkeypatch.setattr("soci_cli.index.recompress._LEAST", 1 << 20)
    written: list[int] = []

    class Spool(io.BytesIO):
        def write(self, data: Any, /) -> int:
            written.append(len(data))
            return super().write(data)

    monkeypatch.setattr(tempfile, "TemporaryFile", Spool)
    plain = bytes(64 << 20) if bomb == "zeros" else noise(1, 1 << 20) * 64
    maker = LayoutMaker(tmp_path / "image")
    layer = maker.blob(zst(plain), OCI_LAYER_ZSTD)
    maker.tag(maker.manifest([layer], maker.config([sha256(plain)])))
    with pytest.raises(InvalidDataError, match=f"{layer['digest']}.*--zstd-layers skip"):
        run_convert(maker.root, tmp_path / "d", recompress(min_layer_size=0))
    assert sum(written) <= max(1 << 20, 16 * layer["size"])
    assert not (tmp_path / "d" / "index.json").exists()


def test_a_zstd_layer_of_two_platforms(tmp_path: Path) -> None:
    """Recompressed once, for both; also for a platform that gets no index of its own."""
    maker = LayoutMaker(tmp_path / "image")
    layer = maker.blob(zst(layer_tar(1)), OCI_LAYER_ZSTD)
    entries = []
    for architecture in ("amd64", "arm64"):
        config = maker.config([sha256(layer_tar(1))], architecture=architecture)
        platform = {"architecture": architecture, "os": "linux"}
        entries.append({**maker.manifest([layer], config), "platform": platform})
    maker.tag(maker.index(entries))
    for number, chosen in enumerate([recompress(), recompress(all_platforms=True)]):
        target = tmp_path / f"d{number}"
        run_convert(maker.root, target, chosen)
        check_complete(target)
        types = {
            blob_json(target, entry)["layers"][0]["mediaType"]
            for entry in read_index(target)["manifests"][:2]
        }
        assert types == {OCI_LAYER_GZIP}


# zTOCs that are there already


def forge(root: Path, *, layer: int, by: int) -> str:
    """Lets the SOCI index of a converted layout give a layer the zTOC of another one."""
    index_json = json.loads((root / "index.json").read_bytes())
    image_index = blob_json(root, index_json["manifests"][0])
    entry = soci_entries(image_index)[0]
    soci = blob_json(root, entry)
    honest = soci["layers"][layer]["digest"]
    for key in ("digest", "size"):
        soci["layers"][layer][key] = soci["layers"][by][key]
    _rewrite(root, entry, soci)
    _rewrite(root, index_json["manifests"][0], image_index)
    (root / "index.json").write_text(json.dumps(index_json))
    return str(honest)


def _rewrite(root: Path, descriptor: dict[str, object], value: object) -> None:
    data = json.dumps(value).encode()
    descriptor["digest"], descriptor["size"] = sha256(data), len(data)
    (root / "blobs" / "sha256" / sha256(data).removeprefix("sha256:")).write_bytes(data)


def test_a_forged_ztoc_in_the_source_is_not_used(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image").root
    honest = run_convert(image, tmp_path / "d")
    digest = forge(tmp_path / "d", layer=0, by=1)
    result = run_convert(tmp_path / "d", tmp_path / "e")
    first, second = result.platforms[0].layers
    assert (first.outcome, second.outcome) == ("built", "reused")
    assert first.ztoc is not None
    assert first.ztoc.digest == digest
    assert result.descriptor.digest == honest.descriptor.digest
    assert run_convert(tmp_path / "d", tmp_path / "d").changed
    assert json.loads((tmp_path / "d" / "index.json").read_bytes())["manifests"][0]["digest"] == (
        honest.descriptor.digest
    )


@pytest.mark.parametrize("damage", ["missing", "wrong", "no zTOC", "empty"])
def test_a_damaged_ztoc_in_the_source_is_built_again(tmp_path: Path, damage: str) -> None:
    image = make_image(tmp_path / "image").root
    honest = run_convert(image, tmp_path / "d")
    soci = blob_json(tmp_path / "d", soci_entries(read_index(tmp_path / "d"))[0])
    path = tmp_path / "d" / "blobs" / "sha256" / soci["layers"][0]["digest"][7:]
    data = path.read_bytes()
    path.unlink()
    if damage == "wrong":
        path.write_bytes(data[:-1] + b"?")
    elif damage == "no zTOC":
        path.write_bytes(bytes(len(data)))
    elif damage == "empty":
        path.write_bytes(b"")
    result = run_convert(tmp_path / "d", tmp_path / "e")
    assert [layer.outcome for layer in result.platforms[0].layers] == ["built", "reused"]
    assert result.descriptor.digest == honest.descriptor.digest
    check_complete(tmp_path / "e")


def test_the_xattr_optimization(tmp_path: Path) -> None:
    """Beside the golden case: it can be turned on later, without building zTOCs anew."""
    image = GOLDEN / "images" / "annotated"
    plain = options()
    marked = options(optimize_xattrs=True)
    run_convert(image, tmp_path / "d", plain)
    result = run_convert(tmp_path / "d", tmp_path / "d", marked)
    assert result.changed
    assert {layer.outcome for layer in result.platforms[0].layers} == {"reused"}
    assert result.descriptor == run_convert(image, tmp_path / "e", marked).descriptor
    soci = blob_json(tmp_path / "d", soci_entries(read_index(tmp_path / "d"))[0])
    key = "com.amazon.soci.disable-xattrs"
    assert [layer["annotations"].get(key) for layer in soci["layers"]] == [None, "true", None]


# Recompressed layers that are there already


def test_a_recompressed_layer_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_zstd_image(tmp_path / "image").root
    first = run_convert(image, tmp_path / "d", recompress())

    def fail(*_: object) -> None:
        raise AssertionError("recompressed again")

    monkeypatch.setattr(sys.modules["soci_cli.index.convert"], "recompress_layer", fail)
    again = run_convert(image, tmp_path / "d", recompress())
    assert again.descriptor == first.descriptor
    assert not again.changed
    # Also when only the index is to be made anew.
    run_convert(image, tmp_path / "d", recompress(span_size=1 << 14))
    check_complete(tmp_path / "d")


def test_a_layer_of_another_image_is_not_taken_for_it(tmp_path: Path) -> None:
    """Without diff IDs equal configs do not mean equal layers."""
    results = []
    for number in (1, 2):
        maker = LayoutMaker(tmp_path / f"image{number}")
        maker.tag(maker.manifest([maker.blob(zst(layer_tar(number)), OCI_LAYER_ZSTD)]))
        run_convert(maker.root, tmp_path / "d", recompress())
        blobs = check_complete(tmp_path / "d")
        new = blob_json(tmp_path / "d", read_index(tmp_path / "d")["manifests"][0])
        results.append(gzip.decompress(blobs[new["layers"][0]["digest"]]))
    assert results == [layer_tar(1), layer_tar(2)]


def test_a_layer_that_gets_too_small_is_skipped_each_time(tmp_path: Path) -> None:
    text = tar_of({"text": b"the same words again and again " * 3000})
    loose = zstandard.ZstdCompressor(level=-1000).compress(text)
    archive = tar_of({"x": noise(2, 60_000)})
    maker = LayoutMaker(tmp_path / "image")
    layers = [maker.blob(loose, OCI_LAYER_ZSTD), maker.blob(gz(archive))]
    maker.tag(maker.manifest(layers, maker.config([sha256(text), sha256(archive)])))
    chosen = recompress(min_layer_size=2000)
    assert len(gz(text)) < 1000 < 3000 < len(loose)
    first = run_convert(maker.root, tmp_path / "d", chosen)
    assert [layer.outcome for layer in first.platforms[0].layers] == ["skipped", "built"]
    again = run_convert(maker.root, tmp_path / "d", chosen)
    assert again.descriptor == first.descriptor
    assert not again.changed


@pytest.mark.parametrize("place", ["oci:{}/d", "oci-archive:{}/a.tar"])
@pytest.mark.parametrize("minimum", [0, 2000])
def test_a_recompressed_layer_in_every_place(tmp_path: Path, place: str, minimum: int) -> None:
    """The second time it comes out of the target, also when it is too small to be indexed."""
    text = tar_of({"text": b"the same words again and again " * 3000})
    maker = LayoutMaker(tmp_path / "image")
    loose = zstandard.ZstdCompressor(level=-1000).compress(text)
    layers = [maker.blob(loose, OCI_LAYER_ZSTD), maker.blob(gz(layer_tar(1)))]
    maker.tag(maker.manifest(layers, maker.config([sha256(text), sha256(layer_tar(1))])))
    target = place.format(tmp_path)
    run_convert(maker.root, target, recompress(min_layer_size=minimum))
    chosen = recompress(min_layer_size=minimum, span_size=1 << 14)
    result = run_convert(maker.root, target, chosen)
    assert result.descriptor == run_convert(maker.root, tmp_path / "e", chosen).descriptor
    assert check_complete(target) == check_complete(tmp_path / "e")


def test_a_recompressed_layer_that_is_gone_is_made_again(tmp_path: Path) -> None:
    image = make_zstd_image(tmp_path / "image").root
    first = run_convert(image, tmp_path / "d", recompress())
    manifest = blob_json(tmp_path / "d", read_index(tmp_path / "d")["manifests"][0])
    (tmp_path / "d" / "blobs" / "sha256" / manifest["layers"][0]["digest"][7:]).unlink()
    again = run_convert(image, tmp_path / "d", recompress())
    assert again.changed
    assert again.descriptor == first.descriptor
    check_complete(tmp_path / "d")
