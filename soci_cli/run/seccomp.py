"""System calls that a container may use: profiles as Docker and Podman write them, for the runtime.

The format is Docker's ("seccomp.json"): that of the runtime specification, with `archMap`, and with rules
that hold for some processors, capabilities or kernels only (`includes`, `excludes`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from soci_cli.errors import InvalidDataError
from soci_cli.oci.canonical import loads
from soci_cli.oci.values import as_object

DEFAULT_PROFILE = Path("/usr/share/containers/seccomp.json")
"""Where containers-common puts the profile of Docker and Podman."""

_LIMIT = 4 << 20
# By the names of `uname -m`: Docker's name of the processor, and libseccomp's.
_ARCHITECTURES = {
    "x86_64": ("amd64", "SCMP_ARCH_X86_64"),
    "aarch64": ("arm64", "SCMP_ARCH_AARCH64"),
    "armv7l": ("arm", "SCMP_ARCH_ARM"),
    "i686": ("x86", "SCMP_ARCH_X86"),
    "ppc64le": ("ppc64le", "SCMP_ARCH_PPC64LE"),
    "riscv64": ("riscv64", "SCMP_ARCH_RISCV64"),
    "s390x": ("s390x", "SCMP_ARCH_S390X"),
}
_RULE = ("names", "action", "errnoRet", "args")
_TOP = ("defaultAction", "defaultErrnoRet", "architectures", "flags", "listenerPath")


def parse_profile(data: bytes, what: str) -> dict[str, Any]:
    """Reads a profile. InvalidDataError, which begins with `what`."""
    profile = as_object(loads(data, what, _LIMIT), what)
    rules = profile.get("syscalls") or []
    if not isinstance(profile.get("defaultAction"), str) or not isinstance(rules, list):
        raise InvalidDataError(
            f"{what}: no seccomp profile: it has no defaultAction, or no syscalls"
        )
    for rule in rules:
        names = as_object(rule, f"{what}: syscalls").get("names")
        if not isinstance(names, list) or not isinstance(rule.get("action"), str):
            raise InvalidDataError(f"{what}: syscalls: a rule without names or action")
    return profile


def resolve_profile(
    profile: Mapping[str, Any], capabilities: Collection[str], machine: str, release: str
) -> dict[str, Any]:
    """What of a profile holds for these capabilities, as `linux.seccomp` of the runtime specification.

    `machine` and `release` are what uname(2) says of the processor and of the kernel.
    """
    arch, ours = _ARCHITECTURES.get(machine, (machine, ""))
    found = {name: profile[name] for name in _TOP if profile.get(name)}
    for entry in profile.get("archMap") or ():
        if entry.get("architecture") == ours:
            found["architectures"] = [ours, *(entry.get("subArchitectures") or ())]
    about = frozenset(capabilities), arch, version_of(release)
    found["syscalls"] = [
        {name: rule[name] for name in _RULE if rule.get(name) not in (None, [])}
        for rule in profile.get("syscalls") or ()
        if _holds(rule, *about)
    ]
    return found


def _holds(
    rule: Mapping[str, Any], capabilities: frozenset[str], arch: str, kernel: tuple[int, int]
) -> bool:
    included, excluded = rule.get("includes") or {}, rule.get("excludes") or {}
    if included.get("arches") and arch not in included["arches"]:
        return False
    if arch in (excluded.get("arches") or ()):
        return False
    if not capabilities.issuperset(included.get("caps") or ()):
        return False
    if capabilities.intersection(excluded.get("caps") or ()):
        return False
    least = included.get("minKernel")
    return not least or kernel >= version_of(least)


def version_of(text: str) -> tuple[int, int]:
    """The first two numbers of a kernel's release."""
    numbers = [int(one) for one in re.findall(r"\d+", text)[:2]]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)
