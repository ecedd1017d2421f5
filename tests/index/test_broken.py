"""Broken images: one error that names what is wrong, and a target that stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from soci_cli.errors import IntegrityError, InvalidDataError, NotFoundError, SociError
from soci_cli.oci.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST
from tests.support.images import (
    GOLDEN,
    Json,
    LayoutMaker,
    gz,
    layer_tar,
    listing,
    make_image,
    options,
    run_convert,
    sha256,
    temporary,
)

AMD64 = {"architecture": "amd64", "os": "linux"}


@dataclass
class Broken:
    """An image and what the error must name."""

    root: Path
    named: str
    error: type[SociError]


def single(root: Path) -> tuple[LayoutMaker, Json, Json]:
    maker = make_image(root)
    manifest = json.loads(maker.path(maker.entries[0]["digest"]).read_bytes())
    return maker, maker.entries[0], manifest


def change(maker: LayoutMaker, digest: str, how: str) -> None:
    """Damages a blob: it is gone, cut, longer, or has one wrong bit."""
    path = maker.path(digest)
    data = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(data[:-1])
    elif how == "longer":
        path.write_bytes(data + b"\0")
    elif how == "bit":
        path.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    elif how == "folder":
        path.mkdir()
    elif how == "link":
        path.symlink_to("/etc/hostname")


CASES: dict[str, Callable[[Path], Broken]] = {}


def case(function: Callable[[Path], Broken]) -> Callable[[Path], Broken]:
    CASES[function.__name__] = function
    return function


def _damaged(part: str, how: str) -> Callable[[Path], Broken]:
    def make(root: Path) -> Broken:
        maker, entry, manifest = single(root)
        digest = {
            "manifest": entry["digest"],
            "config": manifest["config"]["digest"],
            "layer": manifest["layers"][1]["digest"],
        }[part]
        change(maker, digest, how)
        kinds: dict[str, type[SociError]] = {"gone": NotFoundError}
        kinds.update(folder=InvalidDataError, link=InvalidDataError)
        return Broken(root, digest.removeprefix("sha256:"), kinds.get(how, IntegrityError))

    return make


for _part in ("manifest", "config", "layer"):
    for _how in ("gone", "cut", "longer", "bit", "folder", "link"):
        CASES[f"{_part}_{_how}"] = _damaged(_part, _how)


def _document(data: bytes, media_type: str = OCI_MANIFEST) -> Callable[[Path], Broken]:
    def make(root: Path) -> Broken:
        maker = LayoutMaker(root)
        blob = maker.blob(data, media_type)
        maker.tag(blob)
        return Broken(root, blob["digest"], InvalidDataError)

    return make


_CONFIG: Json = {"mediaType": OCI_CONFIG, "digest": sha256(b"{}"), "size": 2}
CASES.update(
    {
        "not_json": _document(b"this is not JSON"),
        "empty": _document(b""),
        "not_an_object": _document(b"[]"),
        "deep_json": _document(b"[" * 100_000),
        "null": _document(b"null"),
        "no_config": _document(b'{"schemaVersion": 2}'),
        "schema_1": _document(b'{"schemaVersion": 1, "fsLayers": []}'),
        "two_in_one": _document(
            json.dumps({"schemaVersion": 2, "config": _CONFIG, "manifests": []}).encode()
        ),
        "layers_no_list": _document(
            json.dumps({"schemaVersion": 2, "config": _CONFIG, "layers": {}}).encode()
        ),
        "negative_size": _document(
            json.dumps({"schemaVersion": 2, "config": {**_CONFIG, "size": -1}}).encode()
        ),
        "path_as_digest": _document(
            json.dumps(
                {"schemaVersion": 2, "config": {**_CONFIG, "digest": "sha256:../../etc"}}
            ).encode()
        ),
        "index_not_json": _document(b"}", OCI_INDEX),
        "manifest_as_index": _document(
            json.dumps({"schemaVersion": 2, "config": _CONFIG, "layers": []}).encode(), OCI_INDEX
        ),
        "unknown_type": _document(b"{}", "text/plain"),
    }
)


@case
def index_in_itself(root: Path) -> Broken:
    """It can only be tried with a digest that is wrong."""
    maker = LayoutMaker(root)
    wrong = sha256(b"?")
    size = len(json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})) + 121
    inner = {"mediaType": OCI_INDEX, "digest": wrong, "size": size, "platform": AMD64}
    index = maker.index([inner, {**single_manifest(maker), "platform": AMD64}])
    maker.path(index["digest"]).rename(maker.path(wrong))
    maker.tag({**index, "digest": wrong})
    return Broken(root, wrong, IntegrityError)


def single_manifest(maker: LayoutMaker) -> Json:
    return maker.manifest([maker.blob(gz(layer_tar(1)))])


@case
def nested_20_deep(root: Path) -> Broken:
    maker = LayoutMaker(root)
    nested = maker.index([single_manifest(maker)])
    for _ in range(20):
        nested = maker.index([nested])
    maker.tag(maker.index([nested, {**single_manifest(maker), "platform": AMD64}]))
    return Broken(root, "nested deeper", InvalidDataError)


@case
def nested_without_end(root: Path) -> Broken:
    """Few documents, which list each other more often than anybody may read."""
    maker = LayoutMaker(root)
    nested = maker.index([])
    for _ in range(5):
        nested = maker.index([nested] * 20)
    maker.tag(nested)
    return Broken(root, str(root), InvalidDataError)


@case
def nested_blob_gone(root: Path) -> Broken:
    maker = LayoutMaker(root)
    layer = maker.blob(gz(layer_tar(8)))
    nested = maker.index([maker.manifest([layer])])
    change(maker, layer["digest"], "gone")
    maker.tag(maker.index([nested, {**single_manifest(maker), "platform": AMD64}]))
    return Broken(root, layer["digest"], NotFoundError)


@case
def all_manifests_gone(root: Path) -> Broken:
    maker = LayoutMaker(root)
    manifest = single_manifest(maker)
    index = maker.index([{**manifest, "platform": AMD64}])
    maker.tag(index)
    change(maker, manifest["digest"], "gone")
    return Broken(root, index["digest"], NotFoundError)


@case
def empty_index(root: Path) -> Broken:
    maker = LayoutMaker(root)
    index = maker.index([])
    maker.tag(index)
    return Broken(root, index["digest"], NotFoundError)


@case
def one_digest_two_sizes(root: Path) -> Broken:
    """The first descriptor of a layer is right, the second is not."""
    maker = LayoutMaker(root)
    layer = maker.blob(gz(layer_tar(1)))
    maker.tag(maker.manifest([layer, {**layer, "size": layer["size"] + 1}]))
    return Broken(root, layer["digest"], SociError)


@case
def one_digest_two_sizes_in_two_platforms(root: Path) -> Broken:
    maker = LayoutMaker(root)
    layer = maker.blob(gz(layer_tar(1)))
    entries = [
        {**maker.manifest([layer]), "platform": AMD64},
        {
            **maker.manifest([{**layer, "size": 5}], maker.config(architecture="arm64")),
            "platform": {**AMD64, "architecture": "arm64"},
        },
    ]
    maker.tag(maker.index(entries))
    return Broken(root, layer["digest"], SociError)


@case
def one_config_two_sizes(root: Path) -> Broken:
    maker = LayoutMaker(root)
    config = maker.config()
    entries = [
        {**maker.manifest([maker.blob(gz(layer_tar(1)))], config), "platform": AMD64},
        {
            **maker.manifest([], {**config, "size": 5}),
            "platform": {"architecture": "unknown", "os": "unknown"},
        },
    ]
    maker.tag(maker.index(entries))
    return Broken(root, config["digest"], SociError)


def _bad_layer(name: str) -> Callable[[Path], Broken]:
    def make(root: Path) -> Broken:
        data = (GOLDEN / "layers" / name).read_bytes()
        maker = LayoutMaker(root)
        layers = [maker.blob(gz(layer_tar(1))), maker.blob(data)]
        maker.tag(maker.manifest(layers))
        return Broken(root, layers[1]["digest"], InvalidDataError)

    return make


for _path in sorted((GOLDEN / "layers").glob("bad-*")):
    if "pax-global" not in _path.name:  # that one is accepted here
        CASES[_path.name.split(".")[0]] = _bad_layer(_path.name)


@case
def config_no_json(root: Path) -> Broken:
    maker = LayoutMaker(root)
    config = maker.blob(b"no", OCI_CONFIG)
    maker.tag(maker.manifest([maker.blob(gz(layer_tar(1)))], config))
    return Broken(root, config["digest"], InvalidDataError)


@case
def annotations_of_numbers(root: Path) -> Broken:
    maker = LayoutMaker(root)
    manifest = maker.manifest([maker.blob(gz(layer_tar(1)))], annotations={"a": 1})
    maker.tag(manifest)
    return Broken(root, manifest["digest"], InvalidDataError)


@pytest.mark.parametrize("name", sorted(CASES))
def test_broken(tmp_path: Path, name: str) -> None:
    broken = CASES[name](tmp_path / "image")
    for chosen in (options(), options(all_platforms=True)):
        with pytest.raises(SociError) as caught:
            run_convert(broken.root, tmp_path / "new" / "d", chosen)
        message = str(caught.value)
        assert broken.named in message
        assert "\n" not in message
        assert isinstance(caught.value, broken.error)
    assert not temporary(listing(tmp_path / "new"))
    assert not (tmp_path / "new" / "d" / "index.json").exists()


@pytest.mark.parametrize("place", ["oci:{}/d", "oci-archive:{}/a.tar", "app"])
@pytest.mark.parametrize("name", ["layer_gone", "layer_bit", "config_bit", "bad-bitflip"])
def test_the_target_stays_as_it_was(tmp_path: Path, name: str, place: str) -> None:
    broken = CASES[name](tmp_path / "image")
    there = tmp_path / "there"
    there.mkdir()
    target, store = place.format(there), there / "store"
    run_convert(make_image(tmp_path / "other", [gz(layer_tar(77))]).root, target, store=store)
    before = listing(there)
    before.pop("store/soci.db", None)  # it may learn of a zTOC that was finished
    indexes = {path: path.read_bytes() for path in there.rglob("index.json")}
    with pytest.raises(SociError):
        run_convert(broken.root, target, store=store)
    after = listing(there)
    assert {key: after.get(key) for key in before} == before
    assert indexes == {path: path.read_bytes() for path in there.rglob("index.json")}
    assert not temporary(after)
    # Blobs that were finished may stay, and all of them are whole.
    for added in set(after) - set(before) - {"store/soci.db"}:
        path = there / added
        assert path.parent.name == "sha256"
        assert sha256(path.read_bytes()) == f"sha256:{path.name}"


def test_an_archive_that_fails_leaves_nothing(tmp_path: Path) -> None:
    broken = CASES["layer_bit"](tmp_path / "image")
    target = tmp_path / "there"
    target.mkdir()
    with pytest.raises(IntegrityError):
        run_convert(broken.root, f"oci-archive:{target}/a.tar")
    assert not listing(target)


def test_an_unwanted_platform_is_checked_too(tmp_path: Path) -> None:
    """It is copied, so its blobs count as well."""
    maker = LayoutMaker(tmp_path / "image")
    layer = maker.blob(gz(layer_tar(2)), OCI_LAYER_GZIP)
    arm64: Any = {
        **maker.manifest([layer], maker.config(architecture="arm64")),
        "platform": {**AMD64, "architecture": "arm64"},
    }
    maker.tag(maker.index([{**single_manifest(maker), "platform": AMD64}, arm64]))
    change(maker, layer["digest"], "bit")
    with pytest.raises(IntegrityError, match=layer["digest"]):
        run_convert(maker.root, tmp_path / "d")


def test_a_broken_target_is_refused_or_repaired(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image").root
    good = run_convert(image, tmp_path / "d")
    path = tmp_path / "d" / "blobs" / "sha256" / good.descriptor.digest[7:]
    path.write_bytes(b"cut")
    assert run_convert(image, tmp_path / "d").changed
    assert sha256(path.read_bytes()) == good.descriptor.digest
    (tmp_path / "d" / "index.json").write_bytes(b"no JSON")
    with pytest.raises(InvalidDataError, match=r"index\.json"):
        run_convert(image, tmp_path / "d")
    assert (tmp_path / "d" / "index.json").read_bytes() == b"no JSON"
