"""Who is served by the same process."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from soci_cli.kernel.namespaces import process_namespaces
from soci_cli.lazy.mounts.records import PERSON

# What the libraries and programs that are used read themselves.
_PROCESS_WIDE = re.compile(
    r"HOME|LANG|PATH|TMPDIR|TZ|SOCI_ZLIB|CURL_CA_BUNDLE|(AWS|LC|LD|REQUESTS|SSL)_.*|.*_PROXY", re.I
)


def host_key(environ: Mapping[str, str], owner: str = PERSON, *, debug: bool = False) -> str:
    """The same for those that one process may serve: user, owner, namespaces, cgroup and surroundings.

    What ends a process, such as a session or a service, ends all that it serves. "" with `debug`: it
    serves nobody else, because the library's log is that of a process.
    """
    if debug:
        return ""
    root, script = os.stat("/"), os.stat(__file__)  # noqa: PTH116 - pathlib takes longer
    facts = (
        owner,
        (os.geteuid(), os.getegid(), sorted(os.getgroups()), _umask()),
        (root.st_dev, root.st_ino, process_namespaces(), _cgroup()),
        (sys.executable, sys.getfilesystemencoding(), __file__, script.st_mtime_ns),
        sorted(item for item in environ.items() if _PROCESS_WIDE.fullmatch(item[0])),
    )
    return sha256(repr(facts).encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _cgroup() -> bytes:
    with suppress(OSError):
        return Path("/proc/self/cgroup").read_bytes()
    return b""
