"""Which process it is: pids are used again."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_FATAL = 1 << 8  # SIGKILL, which the kernel makes of every signal that ends a process


@dataclass(frozen=True)
class Process:
    """A process: its pid, its start in clock ticks after the boot, and which boot that was."""

    pid: int
    started: int
    boot_id: str

    def is_alive(self) -> bool:
        """Whether it is there, as far as can be seen from here."""
        fields = _fields(self.pid)
        is_same = self.boot_id == boot_id() and _started(self.pid) == self.started
        return is_same and fields[:1] not in ([b"Z"], [b"X"])  # which ended

    def send_signal(self, number: signal.Signals) -> bool:
        """Sends a signal; False where the process is gone or cannot be reached."""
        if self.boot_id != boot_id() or not self.started:
            return False
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return False
        try:
            # From now on the pid is nobody else's.
            if _started(self.pid) != self.started:
                return False
            signal.pidfd_send_signal(fd, number)
        except OSError:
            return False
        finally:
            os.close(fd)
        return True


def this_process() -> Process:
    """The process that asks."""
    return process_of(os.getpid())


def process_of(pid: int) -> Process:
    """The process that has this pid now."""
    return Process(pid, _started(pid) or 0, boot_id())


def boot_id() -> str:
    """The boot of this machine; "" where /proc does not say it."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return ""


def is_dying(thread: int) -> bool:
    """Whether a thread has been killed (proc_pid_status(5)), or is gone.

    One of another user may be hidden (mount option hidepid): it counts as alive.
    """
    try:
        lines = Path(f"/proc/{thread}/status").read_bytes().splitlines()
    except OSError:
        return not _is_there(thread)
    masks = [line.split()[1] for line in lines if line.startswith((b"SigPnd:", b"ShdPnd:"))]
    return any(int(mask, 16) & _FATAL for mask in masks)


def _is_there(thread: int) -> bool:
    try:
        os.kill(thread, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _started(pid: int) -> int | None:
    """When a process was started, in clock ticks after the boot; None when there is none."""
    with suppress(ValueError, IndexError):
        return int(_fields(pid)[19])
    return None


def _fields(pid: int) -> list[bytes]:
    """What /proc says of a process after its name, from the state on; nothing when there is none."""
    with suppress(OSError):
        # The name, in parentheses, may hold anything.
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return []
