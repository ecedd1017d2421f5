"""Where a user's files belong: the XDG Base Directory Specification."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from soci_cli.errors import ConfigError

Kind = Literal["CACHE", "CONFIG", "DATA", "STATE"]

_BELOW_HOME = {
    "CACHE": ".cache",
    "CONFIG": ".config",
    "DATA": ".local/share",
    "STATE": ".local/state",
}


def base_folder(environ: Mapping[str, str], kind: Kind) -> Path | None:
    """`$XDG_…_HOME`, which counts only when it is absolute, else its usual place; None without HOME."""
    base = Path(environ.get(f"XDG_{kind}_HOME", ""))
    if base.is_absolute():
        return base
    home = environ.get("HOME", "")
    return Path(home, _BELOW_HOME[kind]) if home else None


def own_folder(environ: Mapping[str, str], kind: Kind, variable: str, what: str) -> Path:
    """`$variable`, else `soci` in the base folder. ConfigError that names `what` where none applies."""
    if environ.get(variable):
        return Path(environ[variable])
    base = base_folder(environ, kind)
    if base is None:
        raise ConfigError(f"no place for {what}: set {variable}, or HOME")
    return base / "soci"


def cache_root(environ: Mapping[str, str]) -> Path:
    """`$SOCI_CACHE`, else `$XDG_CACHE_HOME/soci`, else `~/.cache/soci`. ConfigError without any."""
    return own_folder(environ, "CACHE", "SOCI_CACHE", "the cache")
