"""Which process it is, and whether it lives."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from soci_cli.processes.identity import is_dying, this_process
from tests.support.machine import PROJECT


def test_signals_reach_only_the_process_that_is_meant() -> None:
    code = (
        "from soci_cli.processes.identity import this_process\n"
        "this = this_process(); print(this.pid, this.started, this.boot_id, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT
    ) as started:
        assert started.stdout is not None
        pid, ticks, boot = started.stdout.readline().decode().split()
        other = replace(this_process(), pid=int(pid), started=int(ticks))
        assert boot == other.boot_id
        assert not replace(other, started=other.started + 1).send_signal(signal.SIGKILL)
        assert not replace(other, boot_id="another").send_signal(signal.SIGKILL)
        assert not is_dying(started.pid)
        assert other.send_signal(signal.SIGKILL)
        assert started.wait(60) == -signal.SIGKILL
    assert not other.send_signal(signal.SIGTERM)
    assert is_dying(started.pid)


def test_who_is_hidden_is_not_dead(tmp_path: Path) -> None:
    """/proc with hidepid=2 shows others' processes to nobody but root."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("needs root to become another user")
    code = (PROJECT / "soci_cli/processes/identity.py").read_text()
    code += "\nimport sys; print(is_dying(int(sys.argv[1])), is_dying(2**22 - 1))"
    script = tmp_path / "script"
    script.write_text(code)
    inside = (
        "mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid=65534 --regid=65534 "
        f"--clear-groups /usr/bin/python3 - {os.getpid()} < {script}"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", inside], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr
