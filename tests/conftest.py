"""What all tests share: no settings and no store of the machine's user are read or changed."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

pytest_plugins = ("tests.support.servers.fixtures",)


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home, so that neither settings nor images of the user count."""
    for name in (
        "SOCI_CONFIG",
        "SOCI_ROOT",
        "SOCI_STATE",
        "XDG_CONFIG_HOME",
        "XDG_DATA_HOME",
        "XDG_STATE_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With SOCI_TESTS_NO_SKIP a test that would be skipped fails, so that nothing goes unnoticed."""
    report = yield
    if report.skipped and os.environ.get("SOCI_TESTS_NO_SKIP"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which SOCI_TESTS_NO_SKIP forbids: {report.longrepr}"
    return report
