"""Where a registry may lead a client: redirects, token realms, upload locations.

A registry that is hostile, or broken into, can name the metadata service of a cloud (169.254.169.254) or a
service of this machine, so that a client asks them in its place. What a registry names must be a URL that
can be used, never plain HTTP after HTTPS, and no address of this machine or its link; the servers that the
user named (the registry itself, mirrors of hosts.toml, `redirect_hosts` of the settings) may be anywhere.
Addresses are checked when a connection is made, so that a name that resolves to such an address is no way
around it. go-containerregistry checks the same places, by literal addresses (`validateRealmURL` and
`checkRedirectSSRF`).
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import SplitResult, urljoin, urlsplit

from soci_cli.errors import RegistryError
from soci_cli.targets.registry.messages import redacted
from soci_cli.text import brief

_MAX_URL = 16_000
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052
_AWS_METADATA = IPv6Address("fd00:ec2::254")  # the same service as 169.254.169.254


def led_to(url: str, location: str, what: str, *, plain: bool = False) -> str:
    """The URL that the server of `url` leads to, as a whole. RegistryError for one that is not followed.

    `what` is the message's beginning, such as "redirected". `plain`: also from HTTPS to plain HTTP.
    """
    try:
        new = urljoin(url, location)
        parts = urlsplit(new)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and len(new) < _MAX_URL
        _ = parts.port  # a ValueError when it is none
    except ValueError:
        usable = False
    if not usable:
        raise RegistryError(f"{redacted(url)}: {what} to a URL that cannot be used")
    if url.startswith("https:") and parts.scheme == "http" and not plain:
        raise RegistryError(
            f"{redacted(url)}: {what} from HTTPS to plain HTTP ({redacted(new)}), not followed"
        )
    return new


def same_server(one: str, other: str) -> bool:
    """Whether two URLs have scheme, host and port in common, so that credentials may go along."""
    first, second = urlsplit(one), urlsplit(other)
    return (first.scheme, first.hostname, _port(first)) == (
        second.scheme,
        second.hostname,
        _port(second),
    )


def _port(parts: SplitResult) -> int | None:
    try:
        return parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None


def kind_of_address(address: str) -> str:
    """ "link-local", "loopback", or "" for all other addresses.

    IPv6 addresses that stand for an IPv4 address are what that is: mapped, 6to4 and NAT64.
    """
    ip: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        if ip == _AWS_METADATA:
            return "link-local"
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = IPv4Address(int(ip) & 0xFFFF_FFFF)
        ip = inner or ip
    if ip.is_link_local:
        return "link-local"
    # A connection to 0.0.0.0 or :: goes to this machine.
    return "loopback" if ip.is_loopback or ip.is_unspecified else ""


@dataclass(frozen=True)
class Guard:
    """What addresses the servers may have that the registry `domain` leads to.

    A registry on loopback may lead to loopback. `allowed` are hosts, with or without a port, that may have
    any address.
    """

    domain: str
    on_loopback: bool = False
    allowed: Collection[str] = ()

    def addresses(self, host: str, port: int | None) -> list[str]:
        """The addresses of a host that may be connected to. RegistryError when one may not be.

        OSError and UnicodeError when the host cannot be found.
        """
        found = [str(one[4][0]) for one in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)]
        for address in found:
            self._check(host, port, address)
        return list(dict.fromkeys(found))

    def check_literal(self, host: str, port: int | None) -> None:
        """RegistryError for a host that is an address, in any way of writing it, and may not be led to.

        For requests by way of a proxy, which alone knows what a name stands for.
        """
        try:
            found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
        except (OSError, UnicodeError):
            return
        for one in found:
            self._check(host, port, str(one[4][0]))

    def _check(self, host: str, port: int | None, address: str) -> None:
        kind = kind_of_address(address)
        if not kind or (kind == "loopback" and self.on_loopback):
            return
        name = host.strip("[]").lower()
        if {name, f"{name}:{port}", f"[{name}]:{port}"} & {one.lower() for one in self.allowed}:
            return
        alias = "" if name == address else f" of {brief(host)}"
        raise RegistryError(
            f"{self.domain} leads to the {kind} address {address}{alias}; this is not followed, unless the "
            "setting redirect_hosts names the host"
        )
