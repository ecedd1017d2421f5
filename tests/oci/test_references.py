from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import SociError, UsageError
from soci_cli.oci import Reference, familiar, parse_reference

HEX = "ab" * 32
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "full", "short"),
    [
        ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20"),
        ("library/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("index.docker.io/a/b:t", "docker.io/a/b:t", "a/b:t"),
        ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"),
        ("test.com:5000", "docker.io/library/test.com:5000", "test.com:5000"),
        ("LOCALDOMAIN/x", "LOCALDOMAIN/x:latest", "LOCALDOMAIN/x:latest"),
        ("[fc00::1]:5000/a/b", "[fc00::1]:5000/a/b:latest", "[fc00::1]:5000/a/b:latest"),
        (f"ghcr.io/a/b@{DIGEST}", f"ghcr.io/a/b@{DIGEST}", f"ghcr.io/a/b@{DIGEST}"),
        (f"a/b:T@{DIGEST}", f"docker.io/a/b:T@{DIGEST}", f"a/b:T@{DIGEST}"),
        (f"x@{DIGEST}", f"docker.io/library/x@{DIGEST}", f"x@{DIGEST}"),
        (f"docker.io/{HEX}", f"docker.io/library/{HEX}:latest", f"{HEX}:latest"),
        ("dock__er/a-----b.c", "docker.io/dock__er/a-----b.c:latest", "dock__er/a-----b.c:latest"),
        ("docker.io/a.com/b", "docker.io/a.com/b:latest", "docker.io/a.com/b:latest"),
        ("x" * 200, f"docker.io/library/{'x' * 200}:latest", f"{'x' * 200}:latest"),
    ],
)
def test_parse(text: str, full: str, short: str) -> None:
    reference = parse_reference(text)
    assert str(reference) == full
    assert familiar(reference) == short
    assert parse_reference(full) == reference
    assert parse_reference(short) == reference


def test_fields() -> None:
    reference = parse_reference(f"ghcr.io:443/a/b:t@{DIGEST}")
    assert reference == Reference("ghcr.io:443", "a/b", "t", DIGEST)
    assert reference.name == "ghcr.io:443/a/b"
    assert parse_reference("a@" + DIGEST).tag is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected NAME"),
        (HEX, "an image ID"),
        ("Uppercase:tag", "lower case"),
        ("docker/Docker", "lower case"),
        ("test:5000/Uppercase/x", "lower case"),
        (":tag", "not a repository name"),
        ("@" + DIGEST, "not a repository name"),
        ("https://github.com/docker/docker", "not a registry name"),
        ("-docker.io/a", "not a registry name"),
        ("foo_bar.com/x", "not a registry name"),
        ("fc00::1:5000/debian", "not a registry name"),
        ("[fe80::1%eth0]:5000/x", "not a registry name"),
        ("docker///docker", "not a repository name"),
        ("docker/", "not a repository name"),
        ("a/dock..er", "not a repository name"),
        ("a/dock_.er", "not a repository name"),
        ("a___b/x", "not a repository name"),
        ("aa/asdf$$^/aa", "not a repository name"),
        (" alpine", "not a repository name"),
        ("alpine\n", "not a repository name"),
        ("../../etc", "not a registry name"),
        ("a/../b", "not a repository name"),
        ("alpine:", "not a tag"),
        ("alpine:-x", "not a tag"),
        ("alpine:" + "x" * 129, "not a tag"),
        ("alpine:a:b", "not a tag"),
        ("alpine@", "not a digest"),
        ("alpine@sha256:abc", "not a digest"),
        (f"alpine@{DIGEST.upper()}", "not a digest"),
        (f"alpine@{DIGEST}@{DIGEST}", "not a digest"),
        ("a/" + "b" * 254, "longer than 255"),
        ("a" * 2000, "expected NAME"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as info:
        parse_reference(text)
    assert str(info.value).startswith("not an image reference: ")
    assert "\n" not in str(info.value)


REFERENCES = st.text("abAB019.:/@_-[]", max_size=30) | st.text(max_size=20)


@given(REFERENCES)
def test_full_and_short_forms_read_back(text: str) -> None:
    try:
        reference = parse_reference(text)
    except SociError as error:
        assert "\n" not in str(error)
    else:
        assert parse_reference(str(reference)) == reference
        assert parse_reference(familiar(reference)) == reference


def test_hostile_length_is_quick() -> None:
    for text in ("a-" * 500, "a" * 900 + ".", "A." * 400 + "/x", "a_" * 300 + "/" + "b" * 300):
        with pytest.raises(UsageError):
            parse_reference(text)
