from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.errors import SociError, UsageError
from soci_cli.targets import (
    Archive,
    ArchiveTarget,
    Layout,
    StoreTarget,
    WritableLayout,
    open_source,
    open_target,
    parse_place,
)
from tests.support.places import push_image

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "kind", "path", "tag"),
    [
        ("oci:dir", "oci", "dir", None),
        ("oci:/a/b c:v1", "oci", "/a/b c", "v1"),
        ("oci:dir:docker.io/library/a:1", "oci", "dir", "docker.io/library/a:1"),
        ("oci:dir:localhost:5000/a:1", "oci", "dir", "localhost:5000/a:1"),
        (f"oci:dir@{DIGEST}", "oci", "dir", f"@{DIGEST}"),
        (f"oci:dir:a@{DIGEST}", "oci", "dir", f"a@{DIGEST}"),
        ("oci:a@b:20", "oci", "a@b", "20"),
        ("oci-archive:a.tar", "oci-archive", "a.tar", None),
        ("oci-archive:a.tar:x", "oci-archive", "a.tar", "x"),
    ],
)
def test_places_on_disk(text: str, kind: str, path: str, tag: str | None) -> None:
    place = parse_place(text)
    assert (place.kind, place.path, place.tag) == (kind, Path(path), tag)
    assert place.reference is None
    assert place.text == text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3", "docker.io/library/alpine:3"),
        ("docker:dind", "docker.io/library/docker:dind"),
        ("containers:1", "docker.io/library/containers:1"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        (f"a/b@{DIGEST}", f"docker.io/a/b@{DIGEST}"),
    ],
)
def test_names(text: str, name: str) -> None:
    place = parse_place(text)
    assert (place.kind, place.path, place.tag) == ("store", None, None)
    assert str(place.reference) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("docker://alpine", "docker.io/library/alpine:latest"),
        ("docker://ghcr.io/a/b:1", "ghcr.io/a/b:1"),
        ("docker://localhost:5000/x", "localhost:5000/x:latest"),
        ("docker://[::1]:5000/x", "[::1]:5000/x:latest"),
        (f"docker://quay.io/a/b@{DIGEST}", f"quay.io/a/b@{DIGEST}"),
        (f"docker://quay.io/a/b:2@{DIGEST}", f"quay.io/a/b:2@{DIGEST}"),
    ],
)
def test_registries(text: str, name: str) -> None:
    place = parse_place(text)
    assert (place.kind, place.path, place.tag, place.text) == ("docker", None, None, text)
    assert str(place.reference) == name


def test_containerd() -> None:
    place = parse_place("containerd:alpine:3")
    assert (place.kind, str(place.reference)) == ("containerd", "docker.io/library/alpine:3")
    assert parse_place("alpine:3", "containerd").kind == "containerd"
    assert parse_place("oci:alpine:3", "containerd").kind == "oci"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "oci:",
        "oci::tag",
        "oci:dir:",
        "oci:dir:two words",
        "oci:dir:\x1b[2J",
        "oci:a\0b",
        f"oci:@{DIGEST}",
        "oci:dir@sha256:short",
        "oci-archive:",
        "containerd:",
        "containerd:UPPER",
        "docker://",
        "docker://UPPER/case:x y",
        "docker://a/b@sha256:short",
        "docker-archive:",
        "docker-daemon:alpine:3",
        "dir:",
        "containers-storage:alpine",
        "https://example.com/a",
        "Upper/Case:x y",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_place(text)
    assert str(caught.value).isprintable()


def test_other_transports_are_told_what_there_is() -> None:
    with pytest.raises(
        UsageError, match=r"docker://IMAGE, containerd:IMAGE, oci:DIR\[:TAG\], oci-archive"
    ):
        parse_place("docker-daemon:alpine")


PIECES = st.sampled_from(
    [
        "oci:",
        "oci-archive:",
        "docker://",
        "containerd:",
        ":",
        "@",
        "/",
        "a",
        "sha256:",
        DIGEST,
        "\0",
        "..",
        " ",
        "é",
    ]
)


@given(st.one_of(st.text(), st.lists(PIECES).map("".join)))
def test_any_text(text: str) -> None:
    try:
        place = parse_place(text)
    except SociError as error:
        assert "\n" not in str(error)
    else:
        assert (place.path is None) == (place.reference is not None)
        assert (place.path is None) == (place.kind in ("docker", "containerd", "store"))


def test_opening(tmp_path: Path) -> None:
    root = tmp_path / "store"
    layout, archive = f"oci:{tmp_path}/d:t", f"oci-archive:{tmp_path}/a.tar:t"
    kinds = {
        "alpine": (StoreTarget, StoreTarget),
        layout: (Layout, WritableLayout),
        archive: (Archive, ArchiveTarget),
    }
    for text, (source_kind, target_kind) in kinds.items():
        place = parse_place(text)
        with open_target(place, root) as target:
            assert isinstance(target, target_kind)
            assert target.name == text
            image = push_image(target)
            target.tag(image)
        with open_source(place, root) as source:
            assert isinstance(source, source_kind)
            assert source.name == text
            assert source.resolve() == image
