"""What all tests share: nothing of the machine's user is read or changed, and nothing is skipped unseen."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.machine import (
    clean_environment,
    give_children_signals,
    leave_mounts_of_others,
    need_root,
)
from tests.support.scale import examples
from tests.support.scanning import release_the_lock_while_scanning

TESTS = Path(__file__).parent
SOAK = f"{TESTS}/soak/"
SLOW = tuple(
    f"{TESTS}/{name}"
    for name in (
        "bench",
        "commands/containerd",
        "commands/registries",
        "commands/test_everywhere.py",
        "commands/test_login.py",
        "commands/test_mount",
        "commands/test_remarks.py",
        "docs",
        "examples",
        "fuzz",
        "integration",
        "processes/test_tree.py",
        "snapshotter/test_containerd.py",
        "snapshotter/test_daemon.py",
        "snapshotter/test_faults.py",
        "snapshotter/test_kills.py",
        "snapshotter/test_unlabelled.py",
        "snapshotter/test_whole_layers.py",
        "soak",
        "targets/containerd",
        "targets/registry/test_referrers.py",
        "targets/registry/test_servers.py",
        "targets/registry/test_uploads.py",
        "targets/test_processes.py",
        "trial_registry/test_command.py",
        "ztoc/test_build_memory.py",
    )
)

pytest_plugins = ("tests.support.fixtures", "tests.support.servers.fixtures")

clean_environment()
give_children_signals()
leave_mounts_of_others()
release_the_lock_while_scanning()
settings.register_profile("soci", examples(100))
settings.load_profile("soci")


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home, so that neither settings nor images of the user count."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp() / "home"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests whose fixtures need root, and those of the packages that take long."""
    for item in items:
        if "need_root" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.root)
        if str(item.path).startswith(SOAK):
            item.add_marker(pytest.mark.soak)
        if str(item.path).startswith(SLOW):
            item.add_marker(pytest.mark.slow)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests that need root for everybody else."""
    if item.get_closest_marker("root"):
        need_root()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With SOCI_TESTS_NO_SKIP a test that would be skipped fails, so that nothing goes unnoticed."""
    report = yield
    if report.skipped and os.environ.get("SOCI_TESTS_NO_SKIP"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which SOCI_TESTS_NO_SKIP forbids: {report.longrepr}"
    return report
