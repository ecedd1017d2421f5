"""The benchmark works: a run on tiny layers, whose figures say nothing."""

from __future__ import annotations

import json
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.bench import main, make_missing
from tests.bench.engines import missing_for_engines
from tests.bench.layers import Item, Shape, choose
from tests.bench.peers import mkfs_version
from tests.bench.reading import missing_for_reading
from tests.bench.targets import Floor, Target
from tests.support.servers.containerd import NEWER, programs


def test_a_tiny_run_measures_everything(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    need_docker_registry: str,
    need_skopeo: str,
    need_debian_containerd: None,
) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["--scale", "0.004", "--runs", "1", "--no-fail", "--json", str(figures)]
    arguments += ["--work", str(tmp_path / "work"), "--source", sysconfig.get_path("stdlib")]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "Making few, few2, many, small" in text
    reading = not missing_for_reading()
    engines = not missing_for_engines()
    overlayfs = engines and programs(NEWER) is not None
    assert text.count("at most") == (14 if reading else 9) + (3 if engines else 0)
    snapshotter = overlayfs and bool(mkfs_version())
    floors = (6 if reading else 0) + 6 * engines + 6 * overlayfs + snapshotter
    assert text.count("at least") == floors

    report = json.loads(figures.read_text())
    few, few2, many, _, _ = report["layers"]
    assert (few["files"], few2["files"], many["files"]) == (48, 48, 392)
    assert few["uncompressed_size"] == few2["uncompressed_size"]
    assert 3_000_000 < few["uncompressed_size"] < 3_500_000
    assert few["compressed_size"] != few2["compressed_size"]
    rounds = {one["name"]: one["rounds"] for one in report["builds"] + report["reads"]}
    for name in ("few/plain", "few/soci", "few/both", "many/tarfile", "many/read/soci"):
        assert [result["seconds"] > 0 for result in rounds[name]] == [True]
    parts = ("reading", "engines", "whole")
    for one in [one for part in parts for one in report.get(part, [])]:
        assert one["note"] or all(value > 0 for value in one["values"]), one
    if engines:
        measured = {one["key"] for one in report["engines"] if one["values"]}
        assert measured >= {"find/fuse", "find/erofs", "small/erofs", "libs_cold/erofs"}
        assert ("small/overlayfs" in measured) == overlayfs


def test_layers_are_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [Path(sysconfig.get_path("stdlib"))]
    shapes = [Shape("one", files=10, size=200_000)]
    made = make_missing(shapes, sources, tmp_path)
    assert "Making one" in capsys.readouterr().out
    assert make_missing(shapes, sources, tmp_path) == made
    assert not capsys.readouterr().out
    make_missing([replace(shapes[0], files=11)], sources, tmp_path)
    assert "Making one" in capsys.readouterr().out


def test_a_target_is_met_up_to_its_limit() -> None:
    assert Target("t", 1.4, 1.4).met
    assert not Target("t", 1.4, 1.41).met
    assert Floor("t", 1.4, 1.4).met
    assert not Floor("t", 1.4, 1.39).met


def test_chosen_files_reach_count_and_size() -> None:
    files = [Item("", f"/f/{number}", number * 100) for number in range(1000)]
    for count, total in ((100, 2_000_000), (100, 9_000_000), (2500, 100_000_000)):
        chosen = choose(files, count, total, seed=1)
        assert len({item.name for item in chosen}) == count
        assert abs(sum(item.cost for item in chosen) - total) <= total // 1000
        assert chosen == choose(files, count, total, seed=1)
