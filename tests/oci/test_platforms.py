from __future__ import annotations

import platform as machine

import hypothesis.strategies as st
import pytest
from hypothesis import given

from soci_cli.errors import SociError, UsageError
from soci_cli.oci import Platform
from soci_cli.oci.platforms import (
    dedupe,
    format_platform,
    host_platform,
    is_unknown,
    matches,
    normalize,
    parse,
)
from tests.oci import strategies

LINUX = Platform("amd64", "linux")


@pytest.fixture(autouse=True)
def on_amd64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "machine", lambda: "x86_64")


@pytest.mark.parametrize(
    ("architecture", "variant", "expected"),
    [
        ("i386", "x", ("386", "")),
        ("x86_64", "", ("amd64", "")),
        ("x86-64", "v1", ("amd64", "")),
        ("AMD64", "V2", ("amd64", "v2")),
        ("aarch64", "8", ("arm64", "")),
        ("arm64", "v8", ("arm64", "")),
        ("arm64", "v8.0", ("arm64", "")),
        ("arm64", "v8.2", ("arm64", "v8.2")),
        ("arm64", "9", ("arm64", "v9")),
        ("armhf", "", ("arm", "v7")),
        ("armel", "", ("arm", "v6")),
        ("arm", "", ("arm", "v7")),
        ("arm", "7", ("arm", "v7")),
        ("arm", "5", ("arm", "v5")),
        ("arm", "6", ("arm", "v6")),
        ("arm", "8", ("arm", "v8")),
        ("s390x", "z", ("s390x", "z")),
    ],
)
def test_normalize(architecture: str, variant: str, expected: tuple[str, str]) -> None:
    got = normalize(Platform(architecture, "macOS", "1", ("b", "a", "b"), variant))
    assert (got.architecture, got.variant) == expected
    assert (got.os, got.os_version, got.os_features) == ("darwin", "1", ("a", "b"))


@pytest.mark.parametrize(
    ("specifier", "expected"),
    [
        ("linux", LINUX),
        ("Linux", LINUX),
        ("x86_64", LINUX),
        ("Aarch64", Platform("arm64", "linux")),
        ("armhf", Platform("arm", "linux")),
        ("armel", Platform("arm", "linux", variant="v6")),
        ("arm", Platform("arm", "linux")),
        ("i386", Platform("386", "linux")),
        ("macOS", Platform("amd64", "darwin")),
        ("Linux/x86_64", LINUX),
        ("linux/arm64", Platform("arm64", "linux")),
        ("linux/arm64/v8", Platform("arm64", "linux", variant="v8")),
        ("linux/arm", Platform("arm", "linux")),
        ("linux/arm/v7", Platform("arm", "linux", variant="v7")),
        ("linux/arm/6", Platform("arm", "linux", variant="v6")),
        ("linux/armhf", Platform("arm", "linux")),
        ("made-up/arch", Platform("arch", "made-up")),
        ("windows()", Platform("amd64", "windows")),
        ("windows(10.0.17763)", Platform("amd64", "windows", "10.0.17763")),
        (
            "windows(10.0.17763+win32k)/amd64",
            Platform("amd64", "windows", "10.0.17763", ("win32k",)),
        ),
        ("linux(+gpu+simd)", Platform("amd64", "linux", "", ("gpu", "simd"))),
        ("windows(10%2Bb.42+a%2Fb)", Platform("amd64", "windows", "10+b.42", ("a/b",))),
        ("windows(50%25done)", Platform("amd64", "windows", "50%done")),
    ],
)
def test_parse(specifier: str, expected: Platform) -> None:
    assert parse(specifier) == expected
    assert matches(parse(specifier), expected)


@pytest.mark.parametrize(
    "specifier",
    [
        "",
        "/",
        "*",
        "linux/*",
        "nothing",
        "linux/",
        "/amd64",
        "linux/arm64/v8/x",
        "linux/arm64/",
        "linux /amd64",
        "linux/amd64\n",
        "windows(1.0/amd64",
        "windows(+)/amd64",
        "windows(%zz)/amd64",
        "windows(%2)/amd64",
        "windows(%ff)/amd64",
        "amd64(1)",
        "línux/amd64",
        "a" * 2000,
    ],
)
def test_parse_refuses(specifier: str) -> None:
    with pytest.raises(UsageError, match=r"^not a platform: ") as info:
        parse(specifier)
    assert "\n" not in str(info.value)


def test_host(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "x86_64": LINUX,
        "AMD64": LINUX,
        "aarch64": Platform("arm64", "linux", variant="v8"),
        "arm64": Platform("arm64", "linux", variant="v8"),
        "armv7l": Platform("arm", "linux", variant="v7"),
        "armv6l": Platform("arm", "linux", variant="v6"),
        "i686": Platform("386", "linux"),
        "ppc64le": Platform("ppc64le", "linux"),
        "s390x": Platform("s390x", "linux"),
        "riscv64": Platform("riscv64", "linux"),
        "loongarch64": Platform("loong64", "linux"),
    }
    for name, expected in known.items():
        monkeypatch.setattr(machine, "machine", lambda name=name: name)
        assert host_platform() == expected
        assert matches(parse("linux"), expected)
    monkeypatch.setattr(machine, "machine", lambda: "armv7l")
    assert parse("linux") == Platform("arm", "linux")


@pytest.mark.parametrize(
    ("wanted", "have", "expected"),
    [
        ("linux/arm64", Platform("aarch64", "linux", variant="v8"), True),
        ("linux/arm64/v8", Platform("arm64", "linux"), True),
        ("linux/arm", Platform("arm", "Linux", variant="7"), True),
        ("linux/arm/v6", Platform("armel", "linux"), True),
        ("linux/arm/v6", Platform("arm", "linux"), False),
        ("linux/amd64", Platform("386", "linux"), False),
        ("linux/amd64", Platform("amd64", "linux", variant="v2"), False),
        ("linux/amd64", Platform("amd64", "darwin"), False),
        ("linux/amd64", Platform("amd64", "linux", "5.0"), True),
        ("linux/amd64", Platform("amd64", "linux", "", ("gpu",)), False),
        ("linux(+gpu+x)/amd64", Platform("amd64", "linux", "", ("gpu",)), True),
        ("linux(+gpu)/amd64", LINUX, True),
        ("windows/amd64", Platform("amd64", "windows", "10.0.17763.1", ("win32k",)), True),
        ("windows/amd64", Platform("amd64", "windows", "", ("other",)), False),
        ("windows(10.0.17763)/amd64", Platform("amd64", "windows", "10.0.17763.5329"), True),
        ("windows(10.0.17763)/amd64", Platform("amd64", "windows", "10.0.17764"), False),
        ("windows(10.0.17763)/amd64", Platform("amd64", "windows"), True),
        ("windows(10.0.17763)/amd64", Platform("amd64", "windows", "10.0"), False),
        ("windows(10.0)/amd64", Platform("amd64", "windows", "10.0.17763"), True),
        ("windows(10.0.99999)/amd64", Platform("amd64", "windows", "10.0.17763"), True),
        # From Server 2022 on, a host runs containers back to the long-term release before it.
        ("windows(10.0.20348)/amd64", Platform("amd64", "windows", "10.0.20348"), True),
        ("windows(10.0.20348)/amd64", Platform("amd64", "windows", "10.0.17763"), False),
        ("windows(10.0.25398)/amd64", Platform("amd64", "windows", "10.0.20348"), True),
        ("windows(10.0.26100)/amd64", Platform("amd64", "windows", "10.0.20348"), True),
        ("windows(10.0.26200)/amd64", Platform("amd64", "windows", "10.0.20348"), False),
        ("windows(10.0.20348)/amd64", Platform("amd64", "windows", "10.0.26100"), False),
        ("windows(10.0.20348)/amd64", Platform("amd64", "windows", "9.0.20348"), False),
    ],
)
def test_matches(wanted: str, have: Platform, expected: bool) -> None:
    assert matches(parse(wanted), have) is expected


def test_format() -> None:
    assert format_platform(LINUX) == "linux/amd64"
    assert format_platform(Platform("arm64", "linux", "1", ("x",), "v8")) == "linux/arm64/v8"
    assert format_platform(Platform("", "linux")) == "linux"
    assert format_platform(Platform("amd64", "")) == "unknown"


def test_dedupe_and_unknown() -> None:
    arm = Platform("aarch64", "linux", variant="v8")
    assert dedupe([arm, LINUX, Platform("arm64", "linux"), Platform("x86_64", "Linux")]) == [
        arm,
        LINUX,
    ]
    assert dedupe([]) == []
    assert is_unknown(Platform("unknown", "unknown"))
    assert is_unknown(Platform("unknown", "linux"))
    assert not is_unknown(LINUX)


@given(strategies.platforms)
def test_normalize_is_stable(platform: Platform) -> None:
    once = normalize(platform)
    assert normalize(once) == once
    assert matches(platform, once)
    assert matches(once, platform)
    assert dedupe([platform, once]) == [platform]


SPECIFIERS = st.text("linuxwdosarm64v780/()+%.*_- ", max_size=24)


@given(st.text(max_size=20) | SPECIFIERS)
def test_parse_raises_nothing_else(specifier: str) -> None:
    try:
        platform = parse(specifier)
    except SociError as error:
        assert "\n" not in str(error)
    else:
        again = parse(format_platform(platform))
        assert format_platform(again) == format_platform(platform)
