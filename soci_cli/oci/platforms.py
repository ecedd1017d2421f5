"""Platform names and which image fits which, by the rules that containerd applies.

The facts are those of containerd's platforms module (v1.0.0-rc.4), with one difference: where it
takes the operating system of the machine it runs on, we take linux, on macOS too, since that is
what containers run there.
"""

from __future__ import annotations

import dataclasses
import platform as _machine
import re
from collections.abc import Iterable
from urllib.parse import unquote

from soci_cli.errors import SociError, UsageError
from soci_cli.oci.descriptor import Platform
from soci_cli.text import quote

_KNOWN_OS = (
    "aix android darwin dragonfly freebsd hurd illumos ios js linux nacl netbsd openbsd plan9 "
    "solaris windows zos"
)
_KNOWN_ARCH = (
    "386 amd64 amd64p32 arm armbe arm64 arm64be ppc64 ppc64le loong64 mips mipsle mips64 mips64le "
    "mips64p32 mips64p32le ppc riscv riscv64 s390 s390x sparc sparc64 wasm"
)
_OS_PART = re.compile(
    r"(?P<os>[A-Za-z0-9_-]+)"
    r"(?:\((?P<version>[A-Za-z0-9_.%-]*)(?P<features>(?:\+[A-Za-z0-9_.%-]+)*)\))?"
)
_PART = re.compile(r"[A-Za-z0-9_.-]+")
_MAX_SPECIFIER = 1024

# Windows builds whose hosts also run older containers: Server 2022 and 2025. Older hosts run
# containers of their own build only.
_WINDOWS_LTSC = (20348, 26100)


def normalize(platform: Platform) -> Platform:
    """One spelling for each platform: `x86_64` is amd64, `aarch64` is arm64, `macOS` is darwin."""
    architecture, variant = _normalize_arch(platform.architecture, platform.variant)
    return dataclasses.replace(
        platform,
        architecture=architecture,
        os=_normalize_os(platform.os),
        os_features=tuple(sorted(set(platform.os_features))),
        variant=variant,
    )


def parse(specifier: str, kind: type[SociError] = UsageError) -> Platform:
    """A platform from what a user types: `OS`, `ARCH`, `OS/ARCH` or `OS/ARCH/VARIANT`.

    OS may carry a version and features, `windows(10.0.17763+win32k)`, with percent escapes for
    special characters. An operating system alone gets this machine's architecture, an architecture
    alone gets linux. Raises `kind`.
    """
    parts = specifier.split("/", 3)
    if len(specifier) > _MAX_SPECIFIER or len(parts) > 3:
        raise _bad(specifier, "expected OS/ARCH or OS/ARCH/VARIANT, such as linux/arm64/v8", kind)
    match = _OS_PART.fullmatch(parts[0])
    if match is None or not all(_PART.fullmatch(part) for part in parts[1:]):
        raise _bad(specifier, "expected OS/ARCH or OS/ARCH/VARIANT, such as linux/amd64", kind)
    base = Platform(
        architecture="",
        os=_normalize_os(match["os"]),
        os_version=_unescape(match["version"] or "", specifier, kind),
        os_features=tuple(
            _unescape(feature, specifier, kind)
            for feature in (match["features"] or "").split("+")[1:]
        ),
    )
    if len(parts) == 3:
        architecture, variant = _normalize_arch(parts[1], parts[2])
        if architecture == "arm64" and not variant:
            variant = "v8"
        return dataclasses.replace(base, architecture=architecture, variant=variant)
    if len(parts) == 2:
        architecture, variant = _normalize_arch(parts[1], "")
    elif base.os in _KNOWN_OS.split():
        host = host_platform()
        architecture, variant = host.architecture, host.variant
    else:
        architecture, variant = _normalize_arch(parts[0], "")
        if architecture not in _KNOWN_ARCH.split():
            raise _bad(specifier, "unknown operating system or architecture", kind)
        base = Platform(architecture="", os="linux")
    if architecture == "arm" and variant == "v7":
        variant = ""  # v7 is what "arm" means, so it is left unsaid
    return dataclasses.replace(base, architecture=architecture, variant=variant)


def matches(wanted: Platform, have: Platform) -> bool:
    """Whether an image for `have` is what `wanted` names: no fallback to a lesser variant.

    Operating system, architecture and variant must be equal once normalized, and `wanted` must
    offer every OS feature that `have` needs. On windows the version must be compatible too, and the
    feature win32k does not count.
    """
    wanted, have = normalize(wanted), normalize(have)
    needed = set(have.os_features)
    if wanted.os == "windows":
        needed.discard("win32k")
        if not _windows_version_fits(wanted.os_version, have.os_version):
            return False
    return (
        wanted.os == have.os
        and wanted.architecture == have.architecture
        and wanted.variant == have.variant
        and needed <= set(wanted.os_features)
    )


def format_platform(platform: Platform) -> str:
    """`linux/arm64/v8`: what is set of OS, architecture, variant; "unknown" without an OS."""
    if not platform.os:
        return "unknown"
    parts = (platform.os, platform.architecture, platform.variant)
    return "/".join(part for part in parts if part)


def host_platform() -> Platform:
    """Linux on this machine's architecture, as containerd's DefaultSpec gives it.

    Only on ARM has it a variant, which for arm64 is v8.
    """
    machine = _machine.machine().lower()
    # What the kernel calls the machine, where that is not already a known spelling.
    if re.fullmatch(r"i[3-6]86", machine):
        machine = "386"
    elif machine == "loongarch64":
        machine = "loong64"
    variant = ""
    if arm := re.match(r"armv([5-8])", machine):
        machine, variant = "arm", arm[1]
    platform = normalize(Platform(architecture=machine, os="linux", variant=variant))
    return (
        dataclasses.replace(platform, variant="v8")
        if platform.architecture == "arm64"
        else platform
    )


def dedupe(platforms: Iterable[Platform]) -> list[Platform]:
    """Without those that equal an earlier one once normalized; the rest as they were, in order."""
    first: dict[Platform, Platform] = {}
    for platform in platforms:
        first.setdefault(normalize(platform), platform)
    return list(first.values())


def is_unknown(platform: Platform) -> bool:
    """Whether it is the `unknown/unknown` that builders give to attestations."""
    return "unknown" in (platform.os, platform.architecture)


def _normalize_os(os: str) -> str:
    os = os.lower() or "linux"
    return "darwin" if os == "macos" else os


def _normalize_arch(architecture: str, variant: str) -> tuple[str, str]:
    architecture, variant = architecture.lower(), variant.lower()
    if architecture == "i386":
        return "386", ""
    if architecture in ("x86_64", "x86-64", "amd64"):
        return "amd64", "" if variant == "v1" else variant
    if architecture in ("aarch64", "arm64"):
        if variant in ("8", "v8", "v8.0"):
            return "arm64", ""
        return "arm64", "v9" if variant in ("9", "9.0", "v9.0") else variant
    if architecture == "armhf":
        return "arm", "v7"
    if architecture == "armel":
        return "arm", "v6"
    if architecture == "arm":
        if variant in ("", "7"):
            return "arm", "v7"
        return "arm", f"v{variant}" if variant in ("5", "6", "8") else variant
    return architecture, variant


def _unescape(text: str, specifier: str, kind: type[SociError]) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise _bad(specifier, "a % must be followed by two hex digits", kind)
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise _bad(specifier, "its percent escapes are not UTF-8", kind) from error


def _bad(specifier: str, reason: str, kind: type[SociError]) -> SociError:
    return kind(f"not a platform: {quote(specifier)}: {reason}")


def _windows_version_fits(wanted: str, have: str) -> bool:
    host = _windows_version(wanted)
    if host == (0, 0, 0) or not have:
        return True
    container = _windows_version(have)
    if host[:2] != container[:2]:
        return False
    host_build, build = host[2], container[2]
    if host_build < _WINDOWS_LTSC[0]:
        return host_build == build
    oldest = max((ltsc for ltsc in _WINDOWS_LTSC if ltsc < host_build), default=_WINDOWS_LTSC[0])
    return oldest <= build <= host_build


def _windows_version(text: str) -> tuple[int, int, int]:
    """Major, minor, build; all zero for what does not start with the three."""
    match = re.match(r"0*([0-9]{1,3})\.0*([0-9]{1,3})\.0*([0-9]{1,5})(?:\.|\Z)", text)
    if match is None:
        return 0, 0, 0
    major, minor, build = (int(group) for group in match.groups())
    return (major, minor, build) if major < 256 and minor < 256 and build < 65536 else (0, 0, 0)
