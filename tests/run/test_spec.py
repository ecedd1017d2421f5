"""From an image's config and flags to a runtime's config.json, without a runtime."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from soci_cli.errors import InvalidDataError, UsageError
from soci_cli.run import capabilities
from soci_cli.run.image_config import ImageConfig, parse_image_config
from soci_cli.run.spec import (
    ContainerOptions,
    Limits,
    Mount,
    Surroundings,
    arguments_of,
    runtime_spec,
)
from soci_cli.run.users import User, resolve_user
from tests.run.schemas import check_config

CONFIG = ImageConfig(("entry", "first"), ("second",), ("A=image", "B=image", "C"), "", "work")
ABOUT = Surroundings("abc", "host", {"/etc/hosts": Path("/tmp/hosts")}, capabilities.DEFAULT)
PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:10:11::/home/app:\n# no:x:1:1::/:\nshort:x\nbad:x:y:1::/:\n"
GROUP = b"root:x:0:\nweb:x:20:app,other\nmore:x:21:app\nlone:x:22:other\n"


def spec(options: ContainerOptions | None = None, **about: Any) -> dict[str, Any]:
    found = runtime_spec(
        CONFIG, options or ContainerOptions(), User(), dataclasses.replace(ABOUT, **about)
    )
    check_config(found)
    return found


def test_as_docker_does() -> None:
    found = spec()
    assert found["process"]["args"] == ["entry", "first", "second"]
    assert found["process"]["cwd"] == "/work"
    assert found["process"]["noNewPrivileges"] is True
    assert found["process"]["env"][2:] == ["A=image", "B=image", "HOME=/"]
    assert len(found["process"]["capabilities"]["bounding"]) == 14
    assert "ambient" not in found["process"]["capabilities"]
    kinds = {one["type"] for one in found["linux"]["namespaces"]}
    assert kinds == {"mount", "pid", "ipc", "uts"}
    assert "/proc/kcore" in found["linux"]["maskedPaths"]
    assert "/proc/sys" in found["linux"]["readonlyPaths"]
    where = [one["destination"] for one in found["mounts"]]
    assert where[:2] == ["/proc", "/dev"]
    assert where[-1] == "/etc/hosts"


def test_flags() -> None:
    mounts = (Mount("/dev/shm", None, ("size=1m",)), Mount("/etc/hosts", Path("/x"), ("rbind",)))
    found = spec(
        ContainerOptions(
            ("third",),
            env=("B=flag", "D=x=y"),
            mounts=mounts,
            working_dir="/here",
            hostname="named",
            network="none",
            terminal=True,
            read_only=True,
            limits=Limits(1.5, 1 << 28, 7),
        ),
        cgroup_namespace=True,
    )
    assert found["process"]["args"] == ["entry", "first", "third"]
    environment = dict(text.split("=", 1) for text in found["process"]["env"])
    assert environment.items() >= {"B": "flag", "D": "x=y", "HOSTNAME": "named"}.items()
    assert environment["TERM"] == "xterm"
    assert (found["process"]["cwd"], found["hostname"]) == ("/here", "named")
    assert found["root"]["readonly"] is True
    kinds = {one["type"] for one in found["linux"]["namespaces"]}
    assert kinds >= {"network", "cgroup"}
    assert found["linux"]["resources"]["cpu"] == {"quota": 150_000, "period": 100_000}
    assert found["linux"]["resources"]["memory"] == {"limit": 1 << 28}
    assert found["linux"]["resources"]["pids"] == {"limit": 7}
    where = [one["destination"] for one in found["mounts"]]
    assert len(where) == len(set(where))  # what a flag names replaces the usual


def test_without_cgroups() -> None:
    found = spec(cgroups=False)
    assert "cgroupsPath" not in found["linux"]
    assert "/sys/fs/cgroup" not in [one["destination"] for one in found["mounts"]]


@pytest.mark.parametrize(
    ("entrypoint", "words", "expected"),
    [
        (None, (), "entry first second"),
        (None, ("x", "y"), "entry first x y"),
        ("other", (), "other"),
        ("other", ("x",), "other x"),
        ("", ("x",), "x"),
    ],
)
def test_arguments(entrypoint: str | None, words: tuple[str, ...], expected: str) -> None:
    options = ContainerOptions(words, entrypoint)
    assert " ".join(arguments_of(CONFIG, options)) == expected


def test_no_command() -> None:
    with pytest.raises(UsageError, match="no command"):
        arguments_of(ImageConfig(), ContainerOptions())
    with pytest.raises(UsageError, match="no command"):
        arguments_of(CONFIG, ContainerOptions(entrypoint=""))


@pytest.mark.parametrize(
    "text", ["[]", '{"config": 1}', '{"config": {"Cmd": "x"}}', '{"config": {"Env": ["a\\u0000"]}}']
)
def test_configs_of_strangers(text: str) -> None:
    with pytest.raises(InvalidDataError, match=r"^config"):
        parse_image_config(text.encode(), "config")


def test_config() -> None:
    data = b'{"config": {"Cmd": null, "Entrypoint": ["a"], "User": "u", "StopSignal": "INT"}}'
    found = parse_image_config(data, "config")
    assert found == ImageConfig(("a",), user="u", stop_signal="INT")
    assert parse_image_config(b"{}", "config") == ImageConfig()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", User(0, 0, (), "/root")),
        ("app", User(10, 11, (20, 21), "/home/app")),
        ("10", User(10, 11, (20, 21), "/home/app")),
        ("app:web", User(10, 20, (), "/home/app")),
        ("app:33", User(10, 33, (), "/home/app")),
        ("4000", User(4000, 0, (), "/")),
        ("4000:4001", User(4000, 4001, (), "/")),
    ],
)
def test_users(text: str, expected: User) -> None:
    assert resolve_user(text, PASSWD, GROUP) == expected


@pytest.mark.parametrize("text", ["nobody", "app:", "app:nogroup", "bad", "-1", "4294967296"])
def test_users_that_are_not_there(text: str) -> None:
    with pytest.raises(UsageError, match=r"user|group"):
        resolve_user(text, PASSWD, GROUP)


def test_users_without_files() -> None:
    assert resolve_user("", b"", b"") == User(0, 0, (), "/")
    assert resolve_user("1:2", b"\xff\xfe:\n", b"") == User(1, 2, (), "/")


def test_capabilities() -> None:
    bounds = frozenset(capabilities.ALL)

    def chosen(add: str = "", drop: str = "") -> set[str]:
        return {one[4:] for one in capabilities.chosen(add.split(), drop.split(), bounds)}

    usual = {one[4:] for one in capabilities.DEFAULT}
    assert chosen() == usual
    assert chosen("net_admin,CAP_SYS_TIME", "chown") == usual - {"CHOWN"} | {
        "NET_ADMIN",
        "SYS_TIME",
    }
    assert chosen("KILL", "ALL") == {"KILL"}
    assert chosen("all", "KILL") == {one[4:] for one in capabilities.ALL} - {"KILL"}
    with pytest.raises(UsageError, match="FLY"):
        chosen("FLY")
    fewer = bounds - {"CAP_CHOWN"}
    assert "CAP_CHOWN" not in capabilities.chosen((), (), fewer)
    with pytest.raises(UsageError, match="CAP_CHOWN"):
        capabilities.chosen(("CHOWN",), (), fewer)
