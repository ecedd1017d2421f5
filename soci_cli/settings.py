"""Settings from TOML files, and where the local store is.

Two files are read. Of the reference snapshotter's own file the tables pull_modes, background_fetch and
prefetch mean the same for this program (its max_concurrency is about fetching spans, its min_layer_size
about mounting); the other keys that it knows are passed over. The user's file holds the keys of `Settings`
and goes before it.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import tomli

from soci_cli import defaults
from soci_cli.errors import ConfigError, SociError, UsageError, explaining
from soci_cli.oci import platforms
from soci_cli.oci.values import describe
from soci_cli.text import quote
from soci_cli.user_folders import base_folder, own_folder

SYSTEM_FILE = Path("/etc/soci-snapshotter-grpc/config.toml")

_MAX_FILE = 1 << 20
_MAX_SIZE = 2**62
_MAX_NUMBER = 2**31
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:b|([kmg])(?:i?b)?)?\s*", re.IGNORECASE)
_GO_NUMBER = re.compile(
    r"0[xX](?:_?[0-9a-fA-F])+|0[oO](?:_?[0-7])+|0[bB](?:_?[01])+|[1-9](?:_?[0-9])*"
)  # integer literals of the Go specification
_SIZE_LENGTH = 40
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_ZSTD_LAYERS = ("skip", "recompress")
# Of blobs at a time; the old name means requests at a time where the reference has it.
_OLD_NAME, _NEW_NAME = "max_concurrent_downloads", "max_concurrent_blobs"
_PER_IMAGE, _CHUNK_SIZE = "max_concurrent_downloads_per_image", "concurrent_download_chunk_size"
_OPTIMIZATIONS = ("xattr",)
ENGINES = ("auto", "erofs", "fuse")
"""What can be asked to serve mounts; auto is the best that there is."""

# The reference snapshotter's keys by table; "" is the top level, and a table that is not listed
# here, such as resolver.host, holds names of the user's choice. Its reader ignores case.
_REFERENCE_KEYS = {
    "": "http_cache_type filesystem_cache_type resolve_result_entry debug disable_verification "
    "max_concurrency no_prometheus mount_timeout_sec fuse_metrics_emit_wait_duration_sec "
    "metrics_address metrics_network debug_address metadata_store metadata_db_no_sync "
    "metadata_insertion_chunk_size skip_check_snapshotter_supported http blob directory_cache fuse "
    "background_fetch content_store prefetch pull_modes kubeconfig_keychain cri_keychain resolver "
    "snapshotter soci",
    "http": "dialtimeoutmsec responseheadertimeoutmsec requesttimeoutmsec maxretries minwaitmsec "
    "maxwaitmsec",
    "blob": "valid_interval fetching_timeout_sec max_retries min_wait_msec max_wait_msec "
    "check_always force_single_range_mode max_span_verification_retries",
    "directory_cache": "max_lru_cache_entry max_cache_fds sync_add direct",
    "fuse": "attr_timeout entry_timeout negative_timeout log_fuse_operations",
    "background_fetch": "disable silence_period_msec fetch_period_msec max_queue_size drop_policy "
    "emit_metric_period_sec",
    "content_store": "type containerd_address",
    "prefetch": "enable max_concurrency",
    "pull_modes": "soci_v1 soci_v2 parallel_pull_unpack",
    "pull_modes.soci_v1": "enable",
    "pull_modes.soci_v2": "enable",
    "pull_modes.parallel_pull_unpack": "enable experimental_parallel_pull_as_fallback "
    "max_concurrent_downloads max_concurrent_downloads_per_image concurrent_download_chunk_size "
    "max_concurrent_unpacks max_concurrent_unpacks_per_image decompress_streams "
    "discard_unpacked_layers",
    "kubeconfig_keychain": "enable_keychain kubeconfig_path",
    "cri_keychain": "enable_keychain image_service_path",
    "resolver": "host auth_client_ttl_sec enable_auth_client_sharing",
    "snapshotter": "min_layer_size allow_invalid_mounts_on_restart",
    "soci": "reader_deadline_sec engine",  # ours
}


@dataclass(frozen=True, slots=True)
class ParallelPull:
    """How layers are cut into requests that run side by side.

    So many of them at once in all and for an image, -1 is no limit; `concurrent_download_chunk_size`
    compressed bytes each, 0 is what suits.
    """

    max_concurrent_downloads: int = -1
    max_concurrent_downloads_per_image: int = 3
    concurrent_download_chunk_size: int = 0


@dataclass(frozen=True, slots=True)
class PullModes:
    """Which SOCI indexes a pull looks for: v1, which refer to an image, and v2, which are in it."""

    soci_v1: bool = False
    soci_v2: bool = True
    parallel_pull_unpack: ParallelPull = field(default_factory=ParallelPull)


@dataclass(frozen=True, slots=True)
class BackgroundFetch:
    """How a mount fetches what nobody asked for yet. Times are in milliseconds.

    Of layers that wait for it there are at most `max_queue_size`; -1 is no limit.
    """

    disable: bool = False
    silence_period_msec: int = 30_000
    fetch_period_msec: int = 500
    max_queue_size: int = 300


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Whether a mount fetches at once what the image's prefetch artifacts name."""

    enable: bool = True


@dataclass(frozen=True, slots=True)
class SociTable:
    """What this program alone has settings for, in a table of its own in either file.

    Who reads a file of an image gets an error `reader_deadline_sec` seconds after the last byte that came.
    `engine` is what serves mounts: "auto", "erofs" or "fuse".
    """

    reader_deadline_sec: int = 30
    engine: str = "auto"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a user can set once for all commands. Sizes are in bytes."""

    root: Path | None = None
    span_size: int = defaults.SPAN_SIZE
    min_layer_size: int = defaults.MIN_LAYER_SIZE
    build_tool_identifier: str = defaults.BUILD_TOOL_IDENTIFIER
    zstd_layers: str = "skip"
    optimizations: tuple[str, ...] = ()
    max_concurrency: int | None = None
    max_concurrent_blobs: int = 3
    max_concurrent_uploads: int = 5
    pull_modes: PullModes = field(default_factory=PullModes)
    platforms: tuple[str, ...] = ()
    background_fetch: BackgroundFetch = field(default_factory=BackgroundFetch)
    prefetch: Prefetch = field(default_factory=Prefetch)
    redirect_hosts: tuple[str, ...] = ()
    soci: SociTable = field(default_factory=SociTable)


def load_settings(
    environ: Mapping[str, str], system_file: Path = SYSTEM_FILE
) -> tuple[Settings, list[str]]:
    """The settings, and one line of warning for each key that means nothing.

    The user's file is `$SOCI_CONFIG`, else `$XDG_CONFIG_HOME/soci/config.toml`, else
    `~/.config/soci/config.toml`. An absent file is no error, unless SOCI_CONFIG names it. Raises
    ConfigError for a file that cannot be read or is not TOML, and for a value of the wrong kind.
    """
    warnings: list[str] = []
    settings = Settings()
    try:
        system = _read(system_file)
    except PermissionError:
        # Often readable by root only; nobody else should fail over a file that sets nothing.
        warnings.append(f"{system_file}: cannot be read: permission denied; left out")
    else:
        warnings += _unknown_reference_keys(system or {}, str(system_file))
        for with_table in _SHARED_TABLES.values():
            settings = with_table(settings, system or {}, str(system_file))

    chosen = environ.get("SOCI_CONFIG", "")
    base = base_folder(environ, "CONFIG")
    if not chosen and base is None:
        return settings, warnings
    path = Path(chosen) if chosen or base is None else base / "soci" / "config.toml"
    try:
        document = _read(path)
    except PermissionError as error:
        raise ConfigError(f"{path}: cannot be read: permission denied") from error
    if document is None:
        if chosen:
            raise ConfigError(f"{path}: no such file, but SOCI_CONFIG names it")
        return settings, warnings
    known = [one.name for one in dataclasses.fields(Settings)]
    if _OLD_NAME in document:
        known.append(_OLD_NAME)
        warnings.append(f"{path}: the key '{_OLD_NAME}' is called '{_NEW_NAME}' now")
    warnings += [_unknown_key(str(path), key, "", known) for key in document if key not in known]
    return _settings(settings, document, str(path), environ), warnings


def parse_size(text: str, kind: type[SociError] = UsageError) -> int:
    """Bytes from text such as "4194304", "4MiB", "4M" or "1.5g".

    K, M and G, with or without B or iB, in any case, are powers of 1024, as for docker and nerdctl. Bytes
    alone may be written as Go writes numbers: 0x400000, 0o17, 0b1, 4_194_304.
    Raises `kind` for anything else, for parts of a byte, and past 2**62.
    """
    match = _SIZE.fullmatch(text) if len(text) <= _SIZE_LENGTH else None
    if match is None and len(text) <= _SIZE_LENGTH and _GO_NUMBER.fullmatch(text):
        match = _SIZE.fullmatch(str(int(text, 0)))
    if match is None:
        raise kind(f"not a size: {quote(text)}; expected bytes, or a number such as 4MiB")
    size = Fraction(match[1]) * _UNITS[(match[2] or "").lower()]
    if size.denominator != 1:
        raise kind(f"not a size: {quote(text)} is not a whole number of bytes")
    if size > _MAX_SIZE:
        raise kind(f"not a size: {quote(text)} is more than 2**62 bytes")
    return int(size)


def store_root(settings: Settings, environ: Mapping[str, str], flag: str | None) -> Path:
    """The folder of the local store, which need not exist yet.

    The first of: the flag, `$SOCI_ROOT`, the setting `root`, `$XDG_DATA_HOME/soci`,
    `~/.local/share/soci`. Raises UsageError for an empty flag, ConfigError where none applies.
    """
    if flag is not None:
        if not flag:
            raise UsageError("the store folder is empty; give a path")
        return Path(flag)
    if environ.get("SOCI_ROOT"):
        return Path(environ["SOCI_ROOT"])
    if settings.root is not None:
        return settings.root
    return own_folder(environ, "DATA", "SOCI_ROOT", "the local store")


def _read(path: Path) -> dict[str, object] | None:
    """The decoded file; None when there is none. PermissionError is the caller's."""
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
    if len(data) > _MAX_FILE:
        raise ConfigError(f"{path}: more than {_MAX_FILE} bytes is no settings file")
    try:
        return tomli.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text at byte {error.start}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: not valid TOML: nested too deep") from error


def _settings(
    settings: Settings, document: Mapping[str, object], file: str, environ: Mapping[str, str]
) -> Settings:
    for key, value in document.items():
        where = f"{file}: key '{key}'"
        if key == "root":
            settings = dataclasses.replace(settings, root=_root(value, where, environ))
        elif key == "span_size":
            settings = dataclasses.replace(settings, span_size=_size(value, where, 1))
        elif key == "min_layer_size":
            settings = dataclasses.replace(settings, min_layer_size=_size(value, where, 0))
        elif key == "build_tool_identifier":
            if not isinstance(value, str):
                raise _wrong(where, "a string", value)
            settings = dataclasses.replace(settings, build_tool_identifier=value)
        elif key == "zstd_layers":
            if not isinstance(value, str) or value not in _ZSTD_LAYERS:
                raise _wrong(where, _one_of(_ZSTD_LAYERS), value)
            settings = dataclasses.replace(settings, zstd_layers=value)
        elif key == "optimizations":
            names = _texts(value, where)
            for name in names:
                if name not in _OPTIMIZATIONS:
                    raise _wrong(where, f"a list of {_one_of(_OPTIMIZATIONS)}", name)
            settings = dataclasses.replace(settings, optimizations=names)
        elif key == "max_concurrency":
            settings = dataclasses.replace(settings, max_concurrency=_number(value, where))
        elif key == _NEW_NAME or (key == _OLD_NAME and _NEW_NAME not in document):
            settings = dataclasses.replace(settings, max_concurrent_blobs=_number(value, where))
        elif key == "max_concurrent_uploads":
            settings = dataclasses.replace(settings, max_concurrent_uploads=_number(value, where))
        elif key == "redirect_hosts":
            settings = dataclasses.replace(settings, redirect_hosts=_texts(value, where))
        elif key in _SHARED_TABLES:
            settings = _SHARED_TABLES[key](settings, document, file)
        elif key == "platforms":
            specifiers = _texts(value, where)
            for specifier in specifiers:
                with explaining(where):
                    platforms.parse(specifier, ConfigError)
            settings = dataclasses.replace(settings, platforms=specifiers)
    return settings


def _with_pull_modes(settings: Settings, document: Mapping[str, object], file: str) -> Settings:
    """The settings with what the table pull_modes says; its keys are read as the reference does."""
    modes = settings.pull_modes
    table = _table(document, "pull_modes", f"{file}: key 'pull_modes'")
    for name in ("soci_v1", "soci_v2"):
        where = f"{file}: key 'pull_modes.{name}'"
        for key, value in _table(table, name, where).items():
            if key.lower() == "enable":
                enable = _truth(value, f"{file}: key 'pull_modes.{name}.enable'")
                changed: dict[str, Any] = {name: enable}
                modes = dataclasses.replace(modes, **changed)
    where = f"{file}: key 'pull_modes.parallel_pull_unpack'"
    parallel = _table(table, "parallel_pull_unpack", where)
    if parallel:
        before = modes.parallel_pull_unpack
        modes = dataclasses.replace(
            modes, parallel_pull_unpack=_parallel_pull(before, parallel, where)
        )
    return dataclasses.replace(settings, pull_modes=modes)


def _parallel_pull(before: ParallelPull, table: Mapping[str, object], where: str) -> ParallelPull:
    """The settings `before` with what the table parallel_pull_unpack says."""
    found = {key.lower(): value for key, value in table.items()}
    limits = []
    for name, default in (
        (_OLD_NAME, before.max_concurrent_downloads),
        (_PER_IMAGE, before.max_concurrent_downloads_per_image),
    ):
        value = _number(found.get(name, default), f"{where[:-1]}.{name}'", -1)
        if not value:
            raise _wrong(f"{where[:-1]}.{name}'", "a whole number from 1, or -1", value)
        limits.append(value)
    most, per_image = limits
    if 0 < most < per_image:
        if _PER_IMAGE in found:
            raise ConfigError(f"{where[:-1]}.{_PER_IMAGE}': {per_image} is more than {most} in all")
        per_image = most
    where = f"{where[:-1]}.{_CHUNK_SIZE}'"
    size = found.get(_CHUNK_SIZE)
    if size is None:
        return ParallelPull(most, per_image, before.concurrent_download_chunk_size)
    if not isinstance(size, str):
        raise _wrong(where, "text such as '8MiB', or ''", size)
    return ParallelPull(most, per_image, _size(size, where, 0) if size else 0)


def _with_background_fetch(
    settings: Settings, document: Mapping[str, object], file: str
) -> Settings:
    """The settings with what the table background_fetch says. As in the reference, 0 is the default."""
    found, default = settings.background_fetch, BackgroundFetch()
    table = _table(document, "background_fetch", f"{file}: key 'background_fetch'")
    for key, value in table.items():
        name = key.lower()
        where = f"{file}: key 'background_fetch.{name}'"
        if name == "disable":
            found = dataclasses.replace(found, disable=_truth(value, where))
        elif name == "silence_period_msec":
            period = _number(value, where, 0) or default.silence_period_msec
            found = dataclasses.replace(found, silence_period_msec=period)
        elif name == "fetch_period_msec":
            period = _number(value, where, 0) or default.fetch_period_msec
            found = dataclasses.replace(found, fetch_period_msec=period)
        elif name == "max_queue_size":
            size = _number(value, where, -1) or default.max_queue_size
            found = dataclasses.replace(found, max_queue_size=size)
    return dataclasses.replace(settings, background_fetch=found)


def _with_prefetch(settings: Settings, document: Mapping[str, object], file: str) -> Settings:
    """The settings with what the table prefetch says."""
    table = _table(document, "prefetch", f"{file}: key 'prefetch'")
    for key, value in table.items():
        if key.lower() == "enable":
            enable = _truth(value, f"{file}: key 'prefetch.enable'")
            settings = dataclasses.replace(settings, prefetch=Prefetch(enable))
    return settings


def _with_soci(settings: Settings, document: Mapping[str, object], file: str) -> Settings:
    """The settings with what the table soci says."""
    found = settings.soci
    table = _table(document, "soci", f"{file}: key 'soci'")
    for key, value in table.items():
        name = key.lower()
        where = f"{file}: key 'soci.{name}'"
        if name == "reader_deadline_sec":
            found = dataclasses.replace(found, reader_deadline_sec=_number(value, where))
        elif name == "engine":
            if not isinstance(value, str) or value not in ENGINES:
                raise _wrong(where, _one_of(ENGINES), value)
            found = dataclasses.replace(found, engine=value)
    return dataclasses.replace(settings, soci=found)


_SHARED_TABLES = {
    "pull_modes": _with_pull_modes,
    "background_fetch": _with_background_fetch,
    "prefetch": _with_prefetch,
    "soci": _with_soci,
}
"""The tables that the reference's file and the user's have alike."""


def _table(document: Mapping[str, object], name: str, where: str) -> Mapping[str, object]:
    for key, value in document.items():
        if key.lower() == name:
            if not isinstance(value, dict):
                raise _wrong(where, "a table", value)
            return value
    return {}


def _truth(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, "true or false", value)
    return value


def _number(value: object, where: str, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < _MAX_NUMBER:
        raise _wrong(where, f"a whole number from {least}", value)
    return value


def _size(value: object, where: str, least: int) -> int:
    if isinstance(value, str):
        with explaining(where):
            size = parse_size(value, ConfigError)
    elif isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        raise _wrong(where, "bytes, or text such as '4MiB'", value)
    if not least <= size <= _MAX_SIZE:
        raise _wrong(where, f"a size from {least} to 2**62 bytes", value)
    return size


def _root(value: object, where: str, environ: Mapping[str, str]) -> Path:
    if isinstance(value, str) and "\0" not in value:
        home = environ.get("HOME", "")
        if home and (value == "~" or value.startswith("~/")):
            return Path(home, value[2:])
        if Path(value).is_absolute():
            return Path(value)
    raise _wrong(where, "an absolute path, or one that starts with ~/", value)


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(where, "a list of strings", value)
    return tuple(value)


def _wrong(where: str, expected: str, value: object) -> ConfigError:
    return ConfigError(f"{where}: expected {expected}, got {describe(value)}")


def _one_of(names: Iterable[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _unknown_reference_keys(table: Mapping[str, object], file: str, name: str = "") -> list[str]:
    known = _REFERENCE_KEYS[name].split()
    prefix = f"{name}." if name else ""
    warnings = []
    for key, value in table.items():
        folded = key.lower()
        if folded not in known:
            warnings.append(_unknown_key(file, key, prefix, known))
        elif isinstance(value, dict) and prefix + folded in _REFERENCE_KEYS:
            warnings += _unknown_reference_keys(value, file, prefix + folded)
    return warnings


def _unknown_key(file: str, key: str, prefix: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key.lower(), known, n=1)
    hint = f"; did you mean '{prefix}{close[0]}'?" if close else ""
    return f"{file}: unknown key {quote(prefix + key)}{hint}"
