"""How registries are talked to: what the flags of every command that talks to one say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from soci_cli.targets.registry.retry import RetryPolicy

DEFAULT_DOWNLOADS = 3
DEFAULT_UPLOADS = 5


@dataclass(frozen=True)
class Credentials:
    """Who one is to a registry: name and password, or an identity token (an OAuth2 refresh token)."""

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)


@dataclass(frozen=True)
class RegistryOptions:
    """How registries are talked to.

    `credentials`, by registry such as `example.com:5000`, go before Docker's config.json. `tls_ca`
    stands in place of the system's authorities. `hosts_dirs` are folders of hosts.toml files; None
    means the usual ones. `redirect_hosts` are hosts, with or without a port, to which a registry may
    lead although they are on loopback or link-local. `timeout` are the seconds that a peer may be silent.
    """

    credentials: Mapping[str, Credentials] = field(default_factory=dict)
    plain_http: bool = False
    skip_verify: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    hosts_dirs: tuple[Path, ...] | None = None
    redirect_hosts: tuple[str, ...] = ()
    max_downloads: int = DEFAULT_DOWNLOADS
    max_uploads: int = DEFAULT_UPLOADS
    timeout: float = 60.0
    retries: RetryPolicy = field(default_factory=RetryPolicy)
