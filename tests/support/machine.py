"""What tests take from the machine: tools, rights, signals, and an environment without its user."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import pytest

from soci_cli.kernel import calls
from soci_cli.lazy.erofs.mounting import probe

PROJECT = Path(__file__).parent.parent.parent

# Where programs of other people's packages are that an ordinary PATH may lack.
_MORE_PATH = ("/usr/local/go/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")
_KEPT = {"PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TERM", "TMPDIR", "USER", "LOGNAME", "SHELL"}
_KEPT_PREFIXES = ("LC_", "PYTEST_", "PYTHON", "COVERAGE_", "SOCI_TESTS_", "GO", "CGO_")
_NEW_MOUNTS = 0x20000  # CLONE_NEWNS
_PRIVATE = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE
_IGNORABLE = ("SIGINT", "SIGQUIT", "SIGHUP", "SIGTERM")


def clean_environment() -> None:
    """Takes out of this process's environment what a user may have set: settings, proxies, secrets."""
    os.environ.setdefault("SOCI_TESTS_TOOLS", str(installed_tools()))
    for name in set(os.environ) - _KEPT:
        if not name.startswith(_KEPT_PREFIXES):
            del os.environ[name]
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join([*path, *(one for one in _MORE_PATH if one not in path)])


def installed_tools() -> Path:
    """Where tests/install-tools.sh puts what it builds."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache, "soci-cli-tests")


def give_children_signals() -> None:
    """Lets children react to signals that this process ignores, as in the background of a shell.

    What is ignored stays so in a program that is started; what has a handler does not. This process
    itself goes on to ignore them.
    """
    for name in _IGNORABLE:
        number = signal.Signals[name]
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def leave_mounts_of_others() -> None:
    """Gives this process, where it may, mounts of its own: what it mounts is seen by its children alone.

    Else every program that leaves the mounts of the machine at that moment, in another test or another
    checkout, would keep what is mounted here, and it could not be unmounted for good. What a test leaves
    mounted ends with this process.
    """
    if os.geteuid() == 0 and sys.platform == "linux":
        with suppress(OSError):
            calls.unshare(_NEW_MOUNTS)
            calls.mount("none", "none", Path("/"), _PRIVATE, "")


def need(tool: str) -> str:
    """The path of a tool; the test is skipped where it is not installed."""
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"{tool} is not installed")
    return path


def need_root() -> None:
    """Skips the test for ordinary users."""
    if os.geteuid() != 0:
        pytest.skip("this test needs root")


def need_erofs() -> None:
    """Skips the test where no EROFS can be mounted."""
    need_root()
    reason = _lacks_erofs()
    if reason:
        pytest.skip(reason)


@lru_cache(maxsize=1)
def _lacks_erofs() -> str:
    with tempfile.TemporaryDirectory() as folder:
        found = probe(Path(folder))
    return "" if found.way else found.reason
