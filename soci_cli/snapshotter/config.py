"""config.toml: the reference's file with all its keys, and the table `soci` with ours.

The names, kinds and defaults are those of soci-snapshotter 0.16 where nothing else is said. A key that this
program does without is read, and a warning says what happens instead.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import tomli

from soci_cli.errors import ConfigError
from soci_cli.oci.values import describe
from soci_cli.text import quote

DEFAULT_FILE = Path("/etc/soci-snapshotter-grpc/config.toml")
_MAX_FILE = 1 << 20
_MAX_NUMBER = 1 << 53
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REFUSED_HEADERS = (
    "accept accept-encoding authorization content-length content-type range referer user-agent host cookie "
    "connection keep-alive te trailer transfer-encoding upgrade"
)
_REFUSED_PREFIXES = ("if-", "proxy-")

_CACHE = "spans are kept in a cache of their own, see [soci] cache_size"
_FUSE = "what the kernel learns of an image it may keep, as that never changes"
_ONE_LIMIT = "max_concurrent_downloads counts for all, and a layer is unpacked while it is fetched"
_NO_KEYCHAIN = "credentials come from Docker's config.json"
_NO_MIRRORS = "mirrors come from containerd's hosts.toml files"


def _key(
    default: Any, *, name: str = "", zero: Any = None, instead: str = "", one_of: Any = ()
) -> Any:
    """A key: `zero` is what 0 or "" stands for, `instead` what happens where the key has no effect."""
    about = {"name": name, "zero": zero, "instead": instead, "one_of": tuple(one_of)}
    return field(default=default, metadata=about)


@dataclass(frozen=True)
class Http:
    """How requests are made; times in milliseconds."""

    dial_timeout: int = _key(3000, name="DialTimeoutMsec", zero=3000)
    header_timeout: int = _key(3000, name="ResponseHeaderTimeoutMsec", zero=3000)
    request_timeout: int = _key(
        300_000,
        name="RequestTimeoutMsec",
        zero=300_000,
        instead="a request may take as long as bytes come, see [soci] reader_deadline_sec",
    )
    max_retries: int = _key(8, name="MaxRetries", zero=8)
    min_wait: int = _key(30, name="MinWaitMsec", zero=30)
    max_wait: int = _key(300_000, name="MaxWaitMsec", zero=300_000)


@dataclass(frozen=True)
class Blob:
    """How spans are fetched."""

    valid_interval: int = _key(60, zero=60, instead="no layer is probed: reads find out")
    check_always: bool = _key(False, instead="no layer is probed: reads find out")
    fetching_timeout_sec: int = _key(300, zero=300, instead="see [soci] reader_deadline_sec")
    max_retries: int = _key(8, zero=8, instead="[http] MaxRetries counts for all requests")
    min_wait_msec: int = _key(30, zero=30, instead="[http] MinWaitMsec counts for all requests")
    max_wait_msec: int = _key(300_000, zero=300_000, instead="[http] MaxWaitMsec counts for all")
    force_single_range_mode: bool = _key(False, instead="a request is always for one range")
    max_span_verification_retries: int = _key(0, instead="a damaged span is fetched once more")


@dataclass(frozen=True)
class DirectoryCache:
    """Without effect in the reference, too."""

    max_lru_cache_entry: int = _key(10, zero=10, instead=_CACHE)
    max_cache_fds: int = _key(10, zero=10, instead=_CACHE)
    sync_add: bool = _key(False, instead=_CACHE)
    direct: bool = _key(True, instead=_CACHE)


@dataclass(frozen=True)
class Fuse:
    """How long the kernel may keep what it learns, in seconds."""

    attr_timeout: int = _key(1, zero=1, instead=_FUSE)
    entry_timeout: int = _key(1, zero=1, instead=_FUSE)
    negative_timeout: int = _key(1, zero=1, instead=_FUSE)
    log_fuse_operations: bool = _key(
        False, instead="no names of files are logged but of failed reads"
    )


@dataclass(frozen=True)
class BackgroundFetch:
    """Fetching what nobody asked for yet."""

    disable: bool = False
    silence_period_msec: int = _key(30_000, zero=30_000)
    fetch_period_msec: int = _key(500, zero=500)
    max_queue_size: int = _key(300, zero=300)
    drop_policy: str = _key(
        "newest", one_of=("newest", "oldest"), instead="each layer fetches by itself"
    )
    emit_metric_period_sec: int = _key(
        10, zero=10, instead="metrics are counted when they are asked for"
    )


@dataclass(frozen=True)
class ContentStore:
    """Where containerd is; its content store is asked first for what it may have."""

    type: str = _key(
        "soci",
        one_of=("soci", "containerd"),
        instead="what containerd has is taken from there, and the rest is kept in the cache",
    )
    containerd_address: str = _key(
        "/run/containerd/containerd.sock", zero="/run/containerd/containerd.sock"
    )


@dataclass(frozen=True)
class Prefetch:
    """Fetching what prefetch artifacts name as soon as a layer is mounted."""

    enable: bool = True  # false in the reference
    max_concurrency: int = _key(0, instead="a layer has two requests for that at a time")


@dataclass(frozen=True)
class Enabled:
    """A mode that is on or off."""

    enable: bool = False


@dataclass(frozen=True)
class DecompressStream:
    """A program that inflates."""

    path: str = _key("", instead="layers are inflated by zlib-ng and zstandard")
    args: tuple[str, ...] = ()


@dataclass(frozen=True)
class ParallelPullUnpack:
    """How layers are fetched whole."""

    enable: bool = False
    experimental_parallel_pull_as_fallback: bool = False
    max_concurrent_downloads: int = -1
    max_concurrent_downloads_per_image: int = _key(3, instead=_ONE_LIMIT)
    concurrent_download_chunk_size: str = _key("", instead="a layer comes in one request")
    max_concurrent_unpacks: int = _key(-1, instead=_ONE_LIMIT)
    max_concurrent_unpacks_per_image: int = _key(1, instead=_ONE_LIMIT)
    discard_unpacked_layers: bool = _key(False, instead="compressed layers are never kept")
    decompress_streams: Mapping[str, DecompressStream] = field(default_factory=dict)


@dataclass(frozen=True)
class PullModes:
    """Which SOCI indexes are looked for."""

    soci_v1: Enabled = Enabled(False)
    soci_v2: Enabled = Enabled(True)
    parallel_pull_unpack: ParallelPullUnpack = ParallelPullUnpack()


@dataclass(frozen=True)
class KubeconfigKeychain:
    """Credentials in Kubernetes."""

    enable_keychain: bool = _key(False, instead=_NO_KEYCHAIN)
    kubeconfig_path: str = _key("", instead=_NO_KEYCHAIN)


@dataclass(frozen=True)
class CriKeychain:
    """Credentials that kubelet sends."""

    enable_keychain: bool = _key(False, instead=_NO_KEYCHAIN)
    image_service_path: str = _key(
        "/run/containerd/containerd.sock", zero="/run/containerd/containerd.sock"
    )


@dataclass(frozen=True)
class Mirror:
    """One of the servers that answer for a registry."""

    host: str = _key("", instead=_NO_MIRRORS)
    insecure: bool = _key(False, instead=_NO_MIRRORS)
    request_timeout_sec: int = _key(0, instead=_NO_MIRRORS)


@dataclass(frozen=True)
class ResolverHost:
    """A registry."""

    mirrors: tuple[Mirror, ...] = ()


@dataclass(frozen=True)
class Resolver:
    """How registries are talked to."""

    host: Mapping[str, ResolverHost] = field(default_factory=dict)
    auth_client_ttl_sec: int = _key(3600, zero=3600, instead="credentials are read for each image")
    enable_auth_client_sharing: bool = _key(False, instead="credentials are read for each image")
    custom_headers: tuple[str, ...] = _key((), instead="no labels become request headers")


@dataclass(frozen=True)
class Snapshots:
    """The table `snapshotter`."""

    min_layer_size: int = 0
    allow_invalid_mounts_on_restart: bool = _key(
        False, instead="it always starts, and tries again in the background"
    )


@dataclass(frozen=True)
class Soci:
    """What only this program has settings for: seconds, and a size such as "20GiB", "" for the default.

    With `verify` "trusted-indexes" zTOCs are taken from the repositories `trusted` alone.
    """

    engine: str = _key("auto", zero="auto", one_of=("auto", "erofs", "fuse"))
    reader_deadline_sec: int = _key(30, zero=30)
    cache_size: str = ""
    verify: str = _key("", one_of=("", "trusted-indexes"))
    trusted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Config:
    """The whole file."""

    http_cache_type: str = _key("", instead=_CACHE)
    filesystem_cache_type: str = _key("", instead=_CACHE)
    resolve_result_entry: int = _key(
        30, zero=30, instead="layers stay open as long as they are mounted"
    )
    debug: bool = _key(False, instead="use --log-level debug")
    disable_verification: bool = _key(False, instead="everything is checked by its digest")
    max_concurrency: int = _key(100, zero=100, instead="zTOCs are fetched four at a time")
    no_prometheus: bool = False
    mount_timeout_sec: int = _key(30, zero=30)
    fuse_metrics_emit_wait_duration_sec: int = _key(
        60, zero=60, instead="operations of FUSE are not counted"
    )
    metrics_address: str = ""
    metrics_network: str = _key("tcp", zero="tcp", one_of=("tcp", "unix"))
    debug_address: str = _key("", instead="there is no profile of this program to ask for")
    metadata_store: str = _key(
        "db", zero="db", one_of=("db", "db-multi"), instead="zTOCs are read as they are"
    )
    metadata_db_no_sync: bool = _key(False, instead="zTOCs are read as they are")
    metadata_insertion_chunk_size: int = _key(5000, zero=5000, instead="zTOCs are read as they are")
    skip_check_snapshotter_supported: bool = False
    http: Http = Http()
    blob: Blob = Blob()
    directory_cache: DirectoryCache = DirectoryCache()
    fuse: Fuse = Fuse()
    background_fetch: BackgroundFetch = BackgroundFetch()
    content_store: ContentStore = ContentStore()
    prefetch: Prefetch = Prefetch()
    pull_modes: PullModes = PullModes()
    kubeconfig_keychain: KubeconfigKeychain = KubeconfigKeychain()
    cri_keychain: CriKeychain = CriKeychain()
    resolver: Resolver = Resolver()
    snapshotter: Snapshots = Snapshots()
    soci: Soci = Soci()


def load_config(path: Path) -> tuple[Config, list[str]]:
    """The configuration, and a line of warning for each key that is unknown or has no effect.

    There may be no file at the default path. Raises ConfigError for a file that cannot be read or is not
    TOML, and for a value of the wrong kind.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_FILE + 1)
    except FileNotFoundError:
        if path == DEFAULT_FILE:
            return Config(), []
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE:
        raise ConfigError(f"{path}: more than {_MAX_FILE} bytes is no configuration")
    try:
        document = tomli.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    warnings: list[str] = []
    config: Config = _read_table(Config, document, str(path), "", warnings)
    _check_headers(config, str(path))
    return config, warnings


def dump_config(config: Config) -> str:
    """All keys with their values, as TOML."""
    return "\n".join(_lines(config, ())) + "\n"


def _check_headers(config: Config, file: str) -> None:
    for name in config.resolver.custom_headers:
        lower = name.lower()
        if not _HEADER.fullmatch(name):
            raise ConfigError(
                f"{file}: key 'resolver.custom_headers': {quote(name)} is no header's name"
            )
        if lower in _REFUSED_HEADERS.split() or lower.startswith(_REFUSED_PREFIXES):
            raise ConfigError(
                f"{file}: key 'resolver.custom_headers': {name} cannot be set by a label"
            )


def _name(one: dataclasses.Field[Any]) -> str:
    return str(one.metadata.get("name") or one.name)


def _read_table(kind: Any, table: object, file: str, path: str, warnings: list[str]) -> Any:
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: key '{path}' must be a table, not {describe(table)}")
    by_name = {_name(one): one for one in dataclasses.fields(kind)}
    by_lower = {name.lower(): one for name, one in by_name.items()}
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        one = by_name.get(key) or by_lower.get(key.lower())
        where = f"{path}.{key}" if path else key
        if one is None:
            near = difflib.get_close_matches(key, by_name, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            warnings.append(f"{file}: unknown key {quote(where)}, which is left out{hint}")
            continue
        read = _read_value(hints[one.name], value, file, where, warnings)
        zero = one.metadata.get("zero")
        if zero is not None and not read:
            read = zero
        allowed = one.metadata.get("one_of")
        if allowed and read not in allowed:
            names = ", ".join(f'"{name}"' for name in allowed)
            raise ConfigError(
                f"{file}: key '{where}' must be one of {names}, not {quote(str(read))}"
            )
        instead = one.metadata.get("instead")
        if instead and read != one.default:
            warnings.append(f"{file}: key '{where}' has no effect: {instead}")
        values[one.name] = read
    return kind(**values)


def _read_value(kind: Any, value: object, file: str, where: str, warnings: list[str]) -> Any:
    if dataclasses.is_dataclass(kind):
        return _read_table(kind, value, file, where, warnings)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{file}: key '{where}' must be a list, not {describe(value)}")
        return tuple(_read_value(inner[0], one, file, where, warnings) for one in value)
    if origin is not None and origin is not UnionType:
        if not isinstance(value, dict):
            raise ConfigError(f"{file}: key '{where}' must be a table, not {describe(value)}")
        return {
            name: _read_value(inner[1], one, file, f"{where}.{name}", warnings)
            for name, one in value.items()
        }
    if type(value) is not kind:
        wanted = {bool: "true or false", int: "a whole number", str: "a text"}[kind]
        raise ConfigError(f"{file}: key '{where}' must be {wanted}, not {describe(value)}")
    if isinstance(value, int) and abs(value) > _MAX_NUMBER:
        raise ConfigError(f"{file}: key '{where}' is too large")
    return value


def _lines(table: Any, path: tuple[str, ...]) -> Iterator[str]:
    tables: list[tuple[tuple[str, ...], Any]] = []
    for one in dataclasses.fields(table):
        value = getattr(table, one.name)
        if dataclasses.is_dataclass(value):
            tables.append(((*path, _name(one)), value))
        elif isinstance(value, Mapping):
            tables += [((*path, _name(one), name), inner) for name, inner in value.items()]
        else:
            yield f"{_name(one)} = {_toml(value)}"
    for inner_path, inner in tables:
        yield ""
        yield f"[{'.'.join(_bare(part) for part in inner_path)}]"
        yield from _lines(inner, inner_path)


def _toml(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        pairs = (
            f"{_name(one)} = {_toml(getattr(value, one.name))}" for one in dataclasses.fields(value)
        )
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)  # whose strings are TOML's, too


def _bare(part: str) -> str:
    return part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part)
