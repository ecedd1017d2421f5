"""The capabilities of a container (capabilities(7)): Docker's fourteen, and what flags add and drop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from soci_cli.errors import UsageError
from soci_cli.text import quote

_PREFIX = "CAP_"
_DEFAULT = (
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE "
    "SYS_CHROOT KILL AUDIT_WRITE"
)
# By number, linux/capability.h.
_NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
    "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
    "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
    "PERFMON BPF CHECKPOINT_RESTORE"
)
ALL = tuple(_PREFIX + name for name in _NAMES.split())
DEFAULT = tuple(_PREFIX + name for name in _DEFAULT.split())


def own_bounds() -> frozenset[str]:
    """Those that a program of this process can get at most."""
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("CapBnd:"):
            mask = int(line.split()[1], 16)
            return frozenset(name for bit, name in enumerate(ALL) if mask >> bit & 1)
    return frozenset(ALL)


def chosen(add: Sequence[str], drop: Sequence[str], bounds: frozenset[str]) -> tuple[str, ...]:
    """The capabilities of a container, as Docker reads the flags. UsageError.

    Of the fourteen those that are not in `bounds` are left out; an added one must be there.
    """
    added, dropped = set(_names("--cap-add", add)), set(_names("--cap-drop", drop))
    missing = sorted(added - {"ALL"} - bounds)
    if missing:
        raise UsageError(f"--cap-add: this process may not give {missing[0]} away")
    found = set(ALL) if "ALL" in added else set() if "ALL" in dropped else set(DEFAULT)
    found = ((found & bounds) - dropped) | (added - {"ALL"})
    return tuple(name for name in ALL if name in found)


def _names(flag: str, texts: Sequence[str]) -> Iterable[str]:
    for text in (word for one in texts for word in one.split(",")):
        name = text.upper().removeprefix(_PREFIX)
        if name != "ALL" and _PREFIX + name not in ALL:
            raise UsageError(f"{flag}: there is no capability {quote(text)}; see capabilities(7)")
        yield name if name == "ALL" else _PREFIX + name
