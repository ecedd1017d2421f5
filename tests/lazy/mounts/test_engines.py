"""What is tried of the kernel, once a boot, and metadata that are made while FUSE serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from soci_cli.kernel.points import mount_at
from soci_cli.lazy import Cache, Fetching, LazyImage, open_image
from soci_cli.lazy.erofs.mounting import Probed, Way
from soci_cli.lazy.fuse import MountOptions
from soci_cli.lazy.mounts import engines
from soci_cli.lazy.mounts.engines import Engines, Prepared, probed
from soci_cli.targets import open_source, parse_place
from tests.commands.test_reading import BIG, indexed_layout
from tests.lazy.tools import eventually
from tests.support.machine import need_erofs


@pytest.fixture(autouse=True)
def _erofs() -> None:
    need_erofs()


def mount(made: Engines, prepared: Prepared | str, folder: Path) -> str:
    """Mounts, reads and unmounts; which engine served that."""
    target, scratch = folder / "mounted", folder / "scratch"
    for path in (target, scratch):
        path.mkdir(parents=True)
    done = made.mount(
        prepared, target, scratch, MountOptions(), None, fallback=True, unserved=False
    )
    with done.image:
        assert (target / "usr/big").read_bytes() == BIG
    assert mount_at(str(target)) is None
    return done.engine


def test_metadata_that_take_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FUSE serves a mount meanwhile, EROFS the next one; or at once for somebody who wants it so."""
    monkeypatch.setattr(engines, "_AT_ONCE", 1)
    lines: list[str] = []

    def engines_of(image: LazyImage, name: str) -> Engines:
        return Engines(image, Cache(tmp_path / name), tmp_path / "state", {}, lines.append)

    place = parse_place(f"oci:{indexed_layout(tmp_path)}")
    with (
        open_source(place, tmp_path) as source,
        Fetching(Cache(tmp_path / "spans")) as fetching,
        open_image(source, fetching) as image,
    ):
        made = engines_of(image, "cache")
        reason = made.prepare("auto")
        assert isinstance(reason, str)
        assert "are being made" in reason
        assert mount(made, reason, tmp_path / "first") == "fuse"
        eventually(lambda: isinstance(made.prepare("auto"), Prepared))
        assert mount(made, made.prepare("auto"), tmp_path / "second") == "erofs"
        assert isinstance(engines_of(image, "other").prepare("erofs"), Prepared)
    assert lines == []


def test_the_trial_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[frozenset[str]] = []

    def probe(folder: Path, without: frozenset[str]) -> Probed:
        tried.append(without)
        return Probed(None if without else Way.FILES, "because")

    monkeypatch.setattr(engines, "probe", probe)
    state, cache = tmp_path / "state", tmp_path / "cache"
    for _ in range(3):
        assert probed(state, cache, {}) == Probed(Way.FILES, "because")
    assert tried == [frozenset()]
    # Other surroundings, another answer; and what is no answer is none.
    assert probed(state, cache, {"SOCI_WITHOUT": "files loops"}).way is None
    assert probed(state, cache, {}).way is Way.FILES
    probed(state, tmp_path / "elsewhere", {})
    (state / "engine.json").write_text("{")
    probed(state, cache, {})
    assert len(tried) == 5
