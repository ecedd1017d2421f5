"""Profiles in Docker's format, resolved for a runtime."""

from __future__ import annotations

import json
from typing import Any

import pytest

from soci_cli.errors import InvalidDataError
from soci_cli.run.seccomp import DEFAULT_PROFILE, parse_profile, resolve_profile

PROFILE: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "defaultErrno": "ENOSYS",
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": None},
    ],
    "syscalls": [
        {"names": ["all"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "", "includes": {}},
        {"names": ["arm"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
        {"names": ["not-arm"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["arm64"]}},
        {"names": ["admin"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {
            "names": ["no-admin"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": 1,
            "errno": "EPERM",
            "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}],
            "excludes": {"caps": ["CAP_SYS_ADMIN"]},
        },
        {"names": ["new"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
    ],
}


def names(*given: Any) -> list[str]:
    found = resolve_profile(PROFILE, *given)
    return [name for rule in found["syscalls"] for name in rule["names"]]


def test_rules_that_hold() -> None:
    assert names([], "x86_64", "6.1.0-13-amd64") == ["all", "not-arm", "no-admin", "new"]
    assert names(["CAP_SYS_ADMIN"], "aarch64", "4.7.9") == ["all", "arm", "admin"]


def test_what_a_runtime_is_given() -> None:
    found = resolve_profile(PROFILE, [], "x86_64", "6.1")
    assert found["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert (found["defaultAction"], found["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 38)
    assert found["syscalls"][0] == {"names": ["all"], "action": "SCMP_ACT_ALLOW"}
    assert found["syscalls"][2] == {
        "names": ["no-admin"],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": 1,
        "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}],
    }


@pytest.mark.parametrize(
    "value", [[], {}, {"defaultAction": 1}, {"defaultAction": "x", "syscalls": [{"names": "y"}]}]
)
def test_what_is_no_profile(value: object) -> None:
    with pytest.raises(InvalidDataError, match=r"^profile"):
        parse_profile(json.dumps(value).encode(), "profile")


def test_the_usual_profile() -> None:
    if not DEFAULT_PROFILE.exists():
        pytest.skip("this machine has no seccomp profile")
    profile = parse_profile(DEFAULT_PROFILE.read_bytes(), "profile")
    found = resolve_profile(profile, [], "x86_64", "6.1")
    allowed = {
        name
        for rule in found["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW"
        for name in rule["names"]
    }
    assert "openat" in allowed
    assert "init_module" not in allowed
