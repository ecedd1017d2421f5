"""containerd's filters."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.errors import UsageError
from soci_cli.snapshotter.filters import parse_filters
from soci_cli.snapshotter.metadata import Kind, Snapshot

REF = "containerd.io/snapshot.ref"
SNAPSHOT = Snapshot(
    1,
    "sha256:top",
    "sha256:below",
    Kind.COMMITTED,
    0,
    0,
    {REF: "sha256:top", "a": "", "word": "x y"},
)
ROOT = Snapshot(2, "default/3/box", "", Kind.ACTIVE, 0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "parent",
        "name==sha256:top",
        'name=="sha256:top"',
        f'labels."{REF}"==sha256:top,parent=="sha256:below"',
        f'labels."{REF}"',
        "labels.a",
        "kind==committed",
        'labels.word=="x y"',
        'labels.word=="x\\u0020y"',
        "name~=256:t",
        "name~=/^sha256/",
        "name~=|top$|",
        "labels.none!=x",
        " name == sha256:top , kind != active ",
    ],
)
def test_matches(text: str) -> None:
    assert parse_filters([text])(SNAPSHOT)


@pytest.mark.parametrize(
    "text",
    [
        "name==sha256:to",
        f'labels."{REF}"==sha256:top,parent==""',
        "labels.none",
        "labels.none==",
        "labels.none~=.*",
        "kind==active",
        "kind!=committed",
        "parent!=sha256:below",
        "other",
        "name.more",
        "name~=^256",
    ],
)
def test_does_not_match(text: str) -> None:
    try:
        wanted = parse_filters([text])
    except UsageError:
        assert text.endswith("==")
    else:
        assert not wanted(SNAPSHOT)


def test_one_of_several() -> None:
    wanted = parse_filters(["name==nobody", 'parent==""'])
    assert wanted(ROOT)
    assert not wanted(SNAPSHOT)
    assert parse_filters([])(ROOT)


@pytest.mark.parametrize(
    "text",
    [
        "name==",
        "name=x",
        "name===x",
        "name,",
        ",name",
        "name x",
        "=x",
        'name=="x',
        'name=="\\q"',
        "name~=(",
        "labels.",
        "name == x y",
    ],
)
def test_malformed(text: str) -> None:
    if text == "name===x":  # "=x" is the value, as containerd reads it
        assert not parse_filters([text])(SNAPSHOT)
        return
    with pytest.raises(UsageError, match="at character"):
        parse_filters([text])


@given(st.text(st.sampled_from('nameparlbs."\\/|,=!~ x1\n'), max_size=40))
def test_anything_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse_filters([text])(SNAPSHOT)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\')))
def test_what_is_quoted_is_taken_as_it_is(value: str) -> None:
    snapshot = Snapshot(1, value, "", Kind.VIEW, 0, 0, {value: "1"})
    assert parse_filters([f'name=="{value}"'])(snapshot)
    assert parse_filters([f'labels."{value}"==1'])(snapshot)
