"""A command that is asked to end does so, whatever it waits for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.machine import PROJECT

_SCRIPT = """
import os, signal, threading
from soci_cli.commands import cli

taken = threading.Lock()
taken.acquire()
cli._FAREWELL = 0.5
cli.App.close = lambda self: {close}
cli.status_of = lambda app, main: os.kill(os.getpid(), signal.SIGTERM) or taken.acquire()
cli.run([])
"""


@pytest.mark.parametrize("close", ["None", "taken.acquire()"], ids=["closes", "hangs"])
def test_sigterm(close: str) -> None:
    """Also where a lock was taken just before the signal came, and closing needs it."""
    script = _SCRIPT.format(close=close)
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, timeout=60, check=False)
    assert done.returncode == 143
