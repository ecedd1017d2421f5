"""The tests' own environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support.machine import PROJECT

SHOW = """
import os, subprocess, sys
from tests.support.machine import clean_environment, give_children_signals
clean_environment()
give_children_signals()
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""


def seen_by_a_child(
    program: str,
    env: Mapping[str, str] = os.environ,
    before: Callable[[], None] | None = None,
) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SHOW, program],
        cwd=PROJECT,
        env=dict(env),
        preexec_fn=before,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["SIGINT", "SIGQUIT", "SIGHUP", "SIGTERM"])
def test_signals_that_a_shell_ignores_for_us_reach_children(name: str) -> None:
    def ignored() -> None:
        signal.signal(signal.Signals[name], signal.SIG_IGN)

    program = f"import signal; print(signal.getsignal(signal.{name}) is signal.SIG_IGN)"
    assert seen_by_a_child(program, before=ignored) == "False"


def test_what_a_user_has_set_does_not_count() -> None:
    theirs = {
        "SOCI_CACHE": "/mine",
        "SOCI_ZLIB": "zlib",
        "XDG_CACHE_HOME": "/mine",
        "XDG_RUNTIME_DIR": "/mine",
        "CONTAINERD_ADDRESS": "/mine",
        "DOCKER_CONFIG": "/mine",
        "AWS_PROFILE": "mine",
        "https_proxy": "http://mine",
        "SSL_CERT_FILE": "/mine",
    }
    ours = {"SOCI_TESTS_SCALE": "2", "LC_ALL": "C.UTF-8"}
    program = "import os; print(*sorted(os.environ))"
    seen = set(seen_by_a_child(program, env={**os.environ, **theirs, **ours}).split())
    assert not seen & set(theirs)
    assert seen >= {*ours, "PATH"}


@pytest.mark.root
def test_what_is_mounted_here_is_not_seen_outside(small_disk: Callable[[str], Path]) -> None:
    mounted = str(small_disk("1m"))
    assert mounted in Path("/proc/self/mountinfo").read_text()
    assert mounted not in Path("/proc/1/mountinfo").read_text()
