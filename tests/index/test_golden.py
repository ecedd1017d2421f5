"""The golden conversions: what the reference answers, byte for byte."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import pytest

from soci_cli.errors import SociError
from soci_cli.index.convert import ConvertOptions
from soci_cli.oci import platforms
from tests.support.images import (
    GOLDEN,
    LINUX_AMD64,
    REFERENCE_TOOL,
    Json,
    blob_json,
    check_complete,
    run_convert,
    sha256,
)

ROWS: list[Json] = json.loads((GOLDEN / "conversions.json").read_text())
GOOD = [row for row in ROWS if row["exit"] == 0]
REFUSED = [row for row in ROWS if row["exit"] != 0]
ATTESTED = [row for row in GOOD if row["image"] == "with-attestation"]
IMAGES = sorted({row["image"] for row in ROWS})


def options_of(row: Json) -> ConvertOptions:
    """The options that a row's flags ask for."""
    values: dict[str, Any] = {"build_tool_identifier": REFERENCE_TOOL}
    chosen, prefetch = [], []
    flags = iter(row["flags"])
    for flag in flags:
        if flag == "--all-platforms":
            values["all_platforms"] = True
        elif flag == "--min-layer-size":
            values["min_layer_size"] = int(next(flags))
        elif flag == "--span-size":
            values["span_size"] = int(next(flags))
        elif flag == "--platform":
            chosen.append(platforms.parse(next(flags)))
        elif flag == "--prefetch-file":
            prefetch.append(next(flags))
        elif flag == "--layer-types":
            values["keep_layer_types"] = next(flags) == "keep"
        elif flag == "--optimizations":
            values["optimize_xattrs"] = next(flags) == "xattr"
        else:
            raise AssertionError(flag)
    if not chosen and "all_platforms" not in values and platform.machine() != "x86_64":
        chosen.append(LINUX_AMD64)  # the reference ran there
    return ConvertOptions(platforms=tuple(chosen), prefetch_files=tuple(prefetch), **values)


def case(row: Json) -> str:
    return str(row["case"])


def golden_objects(row: Json) -> dict[str, bytes]:
    folder = GOLDEN / "converted" / row["case"]
    objects = {f"sha256:{path.stem}": path.read_bytes() for path in folder.iterdir()}
    assert len(objects) == row["new_json"]
    return objects


def test_every_case_is_tested() -> None:
    assert {row["case"] for row in GOOD} == {path.name for path in (GOLDEN / "converted").iterdir()}
    assert set(IMAGES) == {path.name for path in (GOLDEN / "images").iterdir()}


@pytest.mark.parametrize("row", [row for row in GOOD if row not in ATTESTED], ids=case)
def test_conversion(tmp_path: Path, row: Json) -> None:
    result = run_convert(GOLDEN / "images" / row["image"], tmp_path / "d", options_of(row))
    assert result.changed
    assert result.descriptor.digest == row["digest"]
    blobs = check_complete(tmp_path / "d")
    for digest, data in golden_objects(row).items():
        assert blobs[digest] == data


@pytest.mark.parametrize("row", REFUSED, ids=case)
def test_refusal(tmp_path: Path, row: Json) -> None:
    target = tmp_path / "d"
    with pytest.raises(SociError, match=row["image"]):
        run_convert(GOLDEN / "images" / row["image"], target, options_of(row))
    assert not (target / "index.json").exists()


@pytest.mark.parametrize("row", ATTESTED, ids=case)
def test_an_attestation_keeps_its_annotations(tmp_path: Path, row: Json) -> None:
    """The documented difference: the descriptors' annotations are kept, nothing else differs."""
    result = run_convert(GOLDEN / "images" / row["image"], tmp_path / "d", options_of(row))
    blobs = check_complete(tmp_path / "d")
    expected = golden_objects(row)
    reference = json.loads(expected.pop(row["digest"]))
    for digest, data in expected.items():
        assert blobs[digest] == data
    index = json.loads(blobs[result.descriptor.digest])
    image, attestation, _ = index["manifests"]
    assert attestation.pop("annotations") == {
        "vnd.docker.reference.digest": image["digest"],
        "vnd.docker.reference.type": "attestation-manifest",
    }
    assert index == reference
    assert sha256(blobs[result.descriptor.digest]) == result.descriptor.digest


@pytest.mark.parametrize("name", IMAGES)
def test_the_images_name_and_the_sources_bytes_stay(tmp_path: Path, name: str) -> None:
    source = GOLDEN / "images" / name
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    chosen = ConvertOptions(min_layer_size=0, all_platforms=True)
    run_convert(source, tmp_path / "d", chosen)
    assert before == {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    entries = json.loads((tmp_path / "d" / "index.json").read_bytes())["manifests"]
    assert [entry["annotations"] for entry in entries] == [
        {"org.opencontainers.image.ref.name": "latest"}
    ]
    assert blob_json(tmp_path / "d", entries[0])["schemaVersion"] == 2
