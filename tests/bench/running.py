"""Running a task of tasks.py in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]


class BenchError(Exception):
    """A measurement that did not work out."""


def run_task(task: str, *arguments: str) -> dict[str, Any]:
    """Runs a task of tasks.py in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.tasks", task, *arguments],
        cwd=_ROOT,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        shown = done.stderr.decode(errors="replace").strip()
        raise BenchError(f"{task} ended with {done.returncode}\n{shown}".strip())
    result: dict[str, Any] = json.loads(done.stdout)
    return result
