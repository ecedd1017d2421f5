"""Converting: again, with other options, other platforms, and between all kinds of places."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from soci_cli.errors import NotFoundError
from soci_cli.oci import platforms
from soci_cli.ztoc import BuiltZtoc, build_ztoc
from tests.support.images import (
    GOLDEN,
    Json,
    LayoutMaker,
    Listener,
    blob_json,
    check_complete,
    gz,
    layer_tar,
    listing,
    make_image,
    options,
    read_index,
    run_convert,
    soci_entries,
    temporary,
)

INDEX_DIGEST = "com.amazon.soci.index-digest"
MANIFEST_DIGEST = "com.amazon.soci.image-manifest-digest"
SPAN_SIZE = "com.amazon.soci.span-size"


def two_platforms(root: Path, **index: object) -> LayoutMaker:
    """An image for amd64 and arm64, with one layer in both and one layer of its own each."""
    maker = LayoutMaker(root)
    shared = maker.blob(gz(layer_tar(1)))
    entries = []
    for number, architecture in enumerate(("amd64", "arm64")):
        own = maker.blob(gz(layer_tar(10 + number)))
        manifest = maker.manifest([shared, own], maker.config(architecture=architecture))
        entries.append({**manifest, "platform": {"architecture": architecture, "os": "linux"}})
    maker.tag(maker.index(entries, **index))
    return maker


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "image").root


@pytest.mark.parametrize("place", ["oci:{}/d", "oci:{}/d:v1", "oci-archive:{}/a.tar", "app:v1"])
def test_a_second_time_changes_nothing(tmp_path: Path, image: Path, place: str) -> None:
    target, store = place.format(tmp_path), tmp_path / "store"
    first = run_convert(image, target, store=store)
    before = listing(tmp_path)
    listener = Listener()
    again = run_convert(image, target, observer=listener, store=store)
    assert first.changed
    assert not again.changed
    assert again.descriptor == first.descriptor
    assert listing(tmp_path) == before
    assert not listener.finished


def test_a_second_time_reads_no_layer(tmp_path: Path, image: Path) -> None:
    run_convert(image, tmp_path / "d")
    manifest = json.loads((image / "index.json").read_bytes())["manifests"][0]
    for layer in blob_json(image, manifest)["layers"]:
        path = image / "blobs" / "sha256" / layer["digest"].removeprefix("sha256:")
        path.unlink()
        path.write_bytes(bytes(layer["size"]))  # of the right size, but not its bytes
    assert not run_convert(image, tmp_path / "d").changed


def test_converting_the_result_again(tmp_path: Path, image: Path) -> None:
    first = run_convert(image, tmp_path / "d")
    before = listing(tmp_path / "d")
    assert not run_convert(tmp_path / "d", tmp_path / "d").changed
    assert listing(tmp_path / "d") == before
    for target in (tmp_path / "e", f"oci-archive:{tmp_path}/e.tar"):
        elsewhere = run_convert(tmp_path / "d", target)
        assert elsewhere.changed
        assert elsewhere.descriptor.digest == first.descriptor.digest
        reports = elsewhere.platforms[0].layers
        assert [report.outcome for report in reports] == ["reused", "reused"]
        check_complete(target)


def test_force_builds_anew_and_gives_the_same(tmp_path: Path, image: Path) -> None:
    first = run_convert(image, tmp_path / "d")
    forced = run_convert(image, tmp_path / "d", options(force=True))
    assert forced.changed
    assert forced.descriptor == first.descriptor
    assert {layer.outcome for layer in forced.platforms[0].layers} == {"built"}


def test_another_span_size_replaces_the_index(tmp_path: Path, image: Path) -> None:
    run_convert(image, tmp_path / "d")
    old = soci_entries(read_index(tmp_path / "d"))
    result = run_convert(tmp_path / "d", tmp_path / "d", options(span_size=1 << 14))
    index = read_index(tmp_path / "d")
    (new,) = soci_entries(index)
    assert result.changed
    assert len(old) == 1
    assert new["digest"] != old[0]["digest"]
    assert len(index["manifests"]) == 2
    assert index["manifests"][0]["annotations"] == {INDEX_DIGEST: new["digest"]}
    sizes = [layer["annotations"][SPAN_SIZE] for layer in blob_json(tmp_path / "d", new)["layers"]]
    assert sizes == ["16384", "16384"]
    check_complete(tmp_path / "d")
    # What a conversion leads to does not depend on the way there.
    assert (
        result.descriptor
        == run_convert(image, tmp_path / "e", options(span_size=1 << 14)).descriptor
    )


def test_one_platform_and_then_the_other(tmp_path: Path) -> None:
    image = two_platforms(tmp_path / "image").root
    target = tmp_path / "d"
    run_convert(image, target)
    first = read_index(target)
    (amd64,) = soci_entries(first)
    arm64 = platforms.parse("linux/arm64")
    result = run_convert(target, target, options(platforms=(arm64,)))
    second = read_index(target)
    assert result.changed
    assert [entry["platform"]["architecture"] for entry in second["manifests"]] == [
        "amd64",
        "arm64",
        "amd64",
        "arm64",
    ]
    assert soci_entries(second)[0] == amd64
    assert second["manifests"][0] == first["manifests"][0]
    outcomes = [layer.outcome for layer in result.platforms[0].layers]
    assert outcomes == ["reused", "built"]
    both = run_convert(image, tmp_path / "both", options(all_platforms=True))
    assert both.descriptor == result.descriptor
    assert check_complete(target) == check_complete(tmp_path / "both")
    # The other way round the platforms' indexes stand in the other order, and are the same.
    run_convert(image, tmp_path / "e", options(platforms=(arm64,)))
    run_convert(tmp_path / "e", tmp_path / "e")
    turned = soci_entries(read_index(tmp_path / "e"))
    assert sorted(map(str, turned)) == sorted(map(str, soci_entries(second)))


def test_each_manifest_names_its_index_and_the_other_way_round(tmp_path: Path) -> None:
    run_convert(two_platforms(tmp_path / "image").root, tmp_path / "d", options(all_platforms=True))
    index = read_index(tmp_path / "d")
    manifests, sociable = index["manifests"][:2], soci_entries(index)
    for manifest, own in zip(manifests, sociable, strict=True):
        assert manifest["annotations"] == {INDEX_DIGEST: own["digest"]}
        assert own["annotations"] == {MANIFEST_DIGEST: manifest["digest"]}
        assert blob_json(tmp_path / "d", manifest)["annotations"][INDEX_DIGEST] == own["digest"]
        assert own["platform"] == manifest["platform"]


def test_a_layer_of_two_platforms_is_built_once(tmp_path: Path) -> None:
    maker = two_platforms(tmp_path / "image")
    root = blob_json(maker.root, maker.entries[0])
    shared = blob_json(maker.root, root["manifests"][0])["layers"][0]["digest"]
    listener = Listener()
    run_convert(maker.root, tmp_path / "d", options(all_platforms=True), listener)
    assert len(listener.outcomes(shared)) == 1
    assert "spans" in listener.outcomes(shared)[0]


def test_a_layer_twice_in_a_manifest(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    layer, other = maker.blob(gz(layer_tar(1))), maker.blob(gz(layer_tar(2)))
    maker.tag(maker.manifest([layer, other, layer]))
    listener = Listener()
    result = run_convert(maker.root, tmp_path / "d", observer=listener)
    assert len(listener.outcomes(layer["digest"])) == 1
    assert [report.layer.digest for report in result.platforms[0].layers] == [
        layer["digest"],
        other["digest"],
        layer["digest"],
    ]
    index = blob_json(tmp_path / "d", soci_entries(read_index(tmp_path / "d"))[0])
    assert len(index["layers"]) == 3
    assert index["layers"][0] == index["layers"][2]
    check_complete(tmp_path / "d")


def test_within_one_layout_to_another_tag(tmp_path: Path, image: Path) -> None:
    original = json.loads((image / "index.json").read_bytes())["manifests"][0]
    result = run_convert(f"oci:{image}:latest", f"oci:{image}:soci")
    entries = json.loads((image / "index.json").read_bytes())["manifests"]
    assert entries[0] == original
    assert entries[1]["digest"] == result.descriptor.digest
    assert entries[1]["annotations"]["org.opencontainers.image.ref.name"] == "soci"
    check_complete(f"oci:{image}:latest")
    check_complete(f"oci:{image}:soci")
    assert not temporary(listing(image))


def test_in_place(tmp_path: Path, image: Path) -> None:
    result = run_convert(image, image)
    entries = json.loads((image / "index.json").read_bytes())["manifests"]
    assert [entry["digest"] for entry in entries] == [result.descriptor.digest]
    assert entries[0]["annotations"]["org.opencontainers.image.ref.name"] == "latest"
    check_complete(image)


@pytest.mark.parametrize("start", ["plain", "other span size", "other platform"])
def test_no_layer_is_built_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """Finding out whether anything changes must not cost a build."""
    image = two_platforms(tmp_path / "image").root
    if start == "other span size":
        run_convert(image, image, options(span_size=1 << 14))
    elif start == "other platform":
        run_convert(image, image, options(platforms=(platforms.parse("linux/arm64"),)))
    built: list[str] = []

    def count(*arguments: Any, **more: Any) -> BuiltZtoc:
        built.append(more["expected_digest"])
        return build_ztoc(*arguments, **more)

    monkeypatch.setattr("soci_cli.index.layers.build_ztoc", count)
    run_convert(image, image)
    assert len(built) == (1 if start == "other platform" else 2)
    assert len(set(built)) == len(built)
    assert not run_convert(image, image).changed


def test_an_archive_in_place(tmp_path: Path, image: Path) -> None:
    archive = f"oci-archive:{tmp_path}/a.tar"
    expected = run_convert(image, tmp_path / "d", options(span_size=1 << 14))
    run_convert(image, archive)
    result = run_convert(archive, archive, options(span_size=1 << 14))
    assert result.descriptor.digest == expected.descriptor.digest
    check_complete(archive)


PLACES = {"oci": "oci:{}/d:v1", "oci-archive": "oci-archive:{}/a.tar:v1", "store": "app:v1"}


@pytest.mark.parametrize(("source", "target"), list(itertools.product(PLACES, PLACES)))
def test_every_pair_of_places(tmp_path: Path, image: Path, source: str, target: str) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    expected = run_convert(image, tmp_path / "expected")
    # The source of each kind holds an image that was converted otherwise.
    start = PLACES[source].format(here)
    run_convert(image, start, options(span_size=1 << 15), store=tmp_path / "store")
    end = PLACES[target].format(there).replace("app:v1", "app:v2")
    result = run_convert(start, end, store=tmp_path / "store")
    assert result.descriptor.digest == expected.descriptor.digest
    blobs = check_complete(end, store=tmp_path / "store")
    assert blobs == check_complete(tmp_path / "expected")
    assert not temporary(listing(tmp_path))


def test_the_name_is_kept_where_the_target_gives_none(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", tag="docker.io/library/app:7").root
    for target in (f"oci:{tmp_path}/d", f"oci-archive:{tmp_path}/a.tar"):
        run_convert(image, target)
        check_complete(f"{target}:docker.io/library/app:7")
    run_convert(f"oci-archive:{tmp_path}/a.tar", f"oci:{tmp_path}/e")
    check_complete(f"oci:{tmp_path}/e:docker.io/library/app:7")
    run_convert(image, f"oci:{tmp_path}/f:other")
    with pytest.raises(NotFoundError):
        check_complete(f"oci:{tmp_path}/f:docker.io/library/app:7")


def test_the_platform_comes_from_the_config(tmp_path: Path) -> None:
    """Of a single manifest, and of an entry of an index without a platform."""
    maker = LayoutMaker(tmp_path / "single")
    config = maker.config(architecture="arm64", variant="v8")
    maker.tag(maker.manifest([maker.blob(gz(layer_tar(1)))], config))
    run_convert(maker.root, tmp_path / "d", options(all_platforms=True))
    for entry in read_index(tmp_path / "d")["manifests"]:
        assert entry["platform"]["architecture"] == "arm64"

    maker = LayoutMaker(tmp_path / "index")
    layers = [maker.blob(gz(layer_tar(number))) for number in range(2)]
    amd64 = maker.manifest(layers[:1], maker.config())
    arm64 = maker.manifest(layers[1:], maker.config(architecture="arm64"))
    maker.tag(maker.index([amd64, arm64]))
    result = run_convert(
        maker.root, tmp_path / "e", options(platforms=(platforms.parse("linux/arm64"),))
    )
    (report,) = result.platforms
    assert [layer.layer.digest for layer in report.layers] == [layers[1]["digest"]]
    index = read_index(tmp_path / "e")
    assert [entry["platform"]["architecture"] for entry in index["manifests"][:2]] == [
        "amd64",
        "arm64",
    ]
    assert soci_entries(index)[0]["platform"]["architecture"] == "arm64"


@pytest.mark.parametrize("wanted", ["linux/arm64", "linux/arm64/v8", "linux/aarch64", "arm64"])
@pytest.mark.parametrize("variant", ["", "v8"])
def test_arm64_is_arm64_v8(tmp_path: Path, wanted: str, variant: str) -> None:
    maker = LayoutMaker(tmp_path / "image")
    entries: list[Json] = []
    for number, architecture in enumerate(("amd64", "arm64")):
        manifest = maker.manifest(
            [maker.blob(gz(layer_tar(number)))], maker.config(architecture=architecture)
        )
        platform = {"architecture": architecture, "os": "linux"}
        if variant and architecture == "arm64":
            platform["variant"] = variant
        entries.append({**manifest, "platform": platform})
    maker.tag(maker.index(entries))
    chosen = options(platforms=(platforms.parse(wanted),))
    run_convert(maker.root, tmp_path / "d", chosen)
    assert len(soci_entries(read_index(tmp_path / "d"))) == 1
    assert not run_convert(tmp_path / "d", tmp_path / "d", chosen).changed


def test_no_lesser_variant_is_taken(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="linux/arm64/v9"):
        run_convert(
            GOLDEN / "images" / "multi-platform",
            tmp_path / "d",
            options(platforms=(platforms.parse("linux/arm64/v9"),)),
        )
    with pytest.raises(NotFoundError, match=r"linux/arm/v6.*it has linux/amd64, linux/arm64"):
        run_convert(
            GOLDEN / "images" / "multi-platform",
            tmp_path / "d",
            options(platforms=(platforms.parse("linux/arm/v6"),)),
        )


def test_a_platform_that_was_not_pulled_is_named_all_the_same(tmp_path: Path) -> None:
    maker = two_platforms(tmp_path / "image")
    root = blob_json(maker.root, maker.entries[0])
    absent = root["manifests"][1]
    maker.path(absent["digest"]).unlink()
    listener = Listener()
    run_convert(maker.root, tmp_path / "d", observer=listener)
    assert len(listener.notes) == 1
    assert absent["digest"] in listener.notes[0]
    assert read_index(tmp_path / "d")["manifests"][1] == absent
    assert not run_convert(maker.root, tmp_path / "d").changed
    assert not run_convert(tmp_path / "d", tmp_path / "d").changed
    with pytest.raises(NotFoundError, match=absent["digest"]):
        run_convert(
            maker.root, tmp_path / "e", options(platforms=(platforms.parse("linux/arm64"),))
        )


def test_a_platform_without_ztocs_is_passed_over(tmp_path: Path) -> None:
    maker = LayoutMaker(tmp_path / "image")
    entries = []
    for architecture, size in (("amd64", 60_000), ("arm64", 100)):
        layer = maker.blob(gz(layer_tar(1, size)))
        manifest = maker.manifest([layer], maker.config(architecture=architecture))
        entries.append({**manifest, "platform": {"architecture": architecture, "os": "linux"}})
    maker.tag(maker.index(entries))
    result = run_convert(
        maker.root, tmp_path / "d", options(all_platforms=True, min_layer_size=30_000)
    )
    assert [report.index is not None for report in result.platforms] == [True, False]
    index = read_index(tmp_path / "d")
    assert len(soci_entries(index)) == 1
    assert "annotations" not in index["manifests"][1]


def test_the_store_reuses_ztocs_of_other_images(tmp_path: Path) -> None:
    layers = [gz(layer_tar(number)) for number in range(3)]
    one = make_image(tmp_path / "one", layers[:2]).root
    two = make_image(tmp_path / "two", layers[1:]).root
    store = tmp_path / "store"
    run_convert(one, "one", store=store)
    second = run_convert(two, "two", store=store)
    assert [layer.outcome for layer in second.platforms[0].layers] == ["reused", "built"]
    other = run_convert(two, "three", options(span_size=1 << 14), store=store)
    assert [layer.outcome for layer in other.platforms[0].layers] == ["built", "built"]
    forced = run_convert(two, "four", options(force=True), store=store)
    assert [layer.outcome for layer in forced.platforms[0].layers] == ["built", "built"]
    for name in ("one", "two", "three", "four"):
        check_complete(name, store=store)


def test_the_identifier_is_written_everywhere(tmp_path: Path, image: Path) -> None:
    run_convert(image, tmp_path / "d")
    chosen = options(build_tool_identifier="another tool")
    result = run_convert(tmp_path / "d", tmp_path / "e", chosen)
    assert {layer.outcome for layer in result.platforms[0].layers} == {"built"}
    index = blob_json(tmp_path / "e", soci_entries(read_index(tmp_path / "e"))[0])
    assert index["annotations"] == {"com.amazon.soci.build-tool-identifier": "another tool"}
    blobs = check_complete(tmp_path / "e")
    for layer in index["layers"]:
        assert b"another tool" in blobs[layer["digest"]]


def test_an_absent_platform_of_a_nested_index(tmp_path: Path) -> None:
    """What there is of a nested index takes its place; the rest is named all the same."""
    maker = LayoutMaker(tmp_path / "image")
    inner = [maker.manifest([maker.blob(gz(layer_tar(number)))]) for number in (5, 6)]
    nested = maker.index(inner)
    maker.path(inner[0]["digest"]).unlink()
    image = maker.manifest([maker.blob(gz(layer_tar(1)))])
    platform = {"architecture": "amd64", "os": "linux"}
    maker.tag(maker.index([nested, {**image, "platform": platform}]))
    run_convert(maker.root, tmp_path / "d")
    gone, there, other, soci = read_index(tmp_path / "d")["manifests"]
    assert gone == inner[0]
    assert not (tmp_path / "d" / "blobs" / "sha256" / gone["digest"][7:]).exists()
    assert there["platform"] == other["platform"] == soci["platform"] == platform
    assert (
        blob_json(tmp_path / "d", there)["layers"][0]["digest"]
        == blob_json(maker.root, inner[1])["layers"][0]["digest"]
    )
