"""Where a registry may lead: not to this machine, nor to its link, whatever the address is written like."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.errors import RegistryError
from soci_cli.targets.copy import read_blob
from soci_cli.targets.registry.locations import Guard, kind_of_address, led_to
from tests.support.places import describe
from tests.support.servers import ForwardProxy
from tests.support.servers.actions import Redirect, Reply
from tests.support.servers.fault_proxy import Fault, FaultProxy
from tests.targets.registry.tools import LOGIN, fails, source_at, target_at

METADATA = "169.254.169.254"
BLOB = describe(b"a blob")


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("169.254.169.254", "link-local"),
        ("169.254.0.1", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("febf:ffff::1", "link-local"),
        ("::ffff:169.254.169.254", "link-local"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("2002:a9fe:a9fe::1", "link-local"),
        ("fd00:ec2::254", "link-local"),
        ("127.0.0.1", "loopback"),
        ("127.255.0.9", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("0.0.0.0", "loopback"),
        ("::", "loopback"),
        ("10.0.0.1", ""),
        ("169.253.255.255", ""),
        ("fec0::1", ""),
        ("2001:db8::1", ""),
        ("64:ff9b::808:808", ""),
    ],
)
def test_kinds_of_addresses(address: str, kind: str) -> None:
    assert kind_of_address(address) == kind


@given(st.ip_addresses())
def test_any_address_has_a_kind(address: object) -> None:
    assert kind_of_address(str(address)) in ("link-local", "loopback", "")


@given(
    st.text(max_size=40) | st.from_regex(r"(https?:)?//[\[\]a-z0-9.:@/?%-]{0,20}", fullmatch=True)
)
def test_any_location_is_whole_or_refused(location: str) -> None:
    try:
        url = led_to("https://registry.invalid/v2/x", location, "redirected")
    except RegistryError as error:
        assert str(error).isprintable()
    else:
        assert url.startswith("https://")


# As an address, IPv4 in IPv6, the ways of inet_aton(3), and a name.
WRITTEN = [
    METADATA,
    f"{METADATA}:80",
    "[fe80::1]",
    f"[::ffff:{METADATA}]",
    "2852039166",
    "0xa9.254.43518",
    "metadata.test",
]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two names in the DNS of this test, and a list of addresses where one is wrong."""
    known = {"metadata.test": ["93.184.215.14", METADATA], "registry.test": ["127.0.0.1"]}
    ask = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        return [one for name in known.get(host, [host]) for one in ask(name, port, *rest, **more)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("host", WRITTEN)
def test_link_local_is_refused_to_every_registry(host: str, names: None) -> None:
    location = f"http://{host}/latest/meta-data?sig=SECRET"
    challenge = {"WWW-Authenticate": f'Bearer realm="{location}",service="s"'}

    with FaultProxy("127.0.0.1:1") as registry:

        def refused(work: Callable[[], object]) -> None:
            count = len(registry.log)
            with fails("leads to", "link-local", "redirect_hosts", kind=RegistryError) as said:
                work()
            assert "attempts" not in said() and len(registry.log) == count + 1, "tried once"

        registry.add(Fault(Redirect(location), path="/blobs/sha256"))
        refused(lambda: read_blob(source_at(registry.host, "x:1"), BLOB))
        registry.add(Fault(Reply(202, {"Location": location}), method="POST"))
        with target_at(registry.host, "x:1") as target:
            writer = target.open_writer(BLOB)
            writer.write(b"a blob")
            refused(writer.commit)
        registry.add(Fault(Reply(401, challenge), path="/manifests/"))
        refused(source_at(registry.host, "x:1", credentials={registry.host: LOGIN}).resolve)


def test_loopback_is_refused_to_a_registry_elsewhere(names: None) -> None:
    with FaultProxy("127.0.0.1:1") as registry, FaultProxy("127.0.0.1:1") as local:
        local.add(Fault(Reply(200, body=b"a blob")))
        registry.add(Fault(Redirect(f"{local.url}/x"), path="/blobs/"))
        port = registry.host.partition(":")[2]
        public = f"registry.test:{port}"
        with fails("registry.test", "loopback", kind=RegistryError):
            read_blob(source_at(public, "x:1", plain_http=True), BLOB)
        assert not local.log
        for allowed in local.host, "127.0.0.1":
            source = source_at(public, "x:1", plain_http=True, redirect_hosts=(allowed,))
            assert read_blob(source, BLOB) == b"a blob"
        # A registry on loopback may lead there, and the registry itself may be anywhere.
        assert read_blob(source_at(registry.host, "x:1"), BLOB) == b"a blob"


def test_a_proxy_is_asked_for_no_address_that_is_refused(
    names: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        FaultProxy("127.0.0.1:1") as registry,
        ForwardProxy({"registry.test": registry.host}) as proxy,
    ):
        monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
        for host in "2852039166", f"[::ffff:{METADATA}]":
            registry.add(Fault(Redirect(f"http://{host}/x"), path="/blobs/"))
            with fails("link-local", kind=RegistryError):
                read_blob(source_at("registry.test", "x:1", plain_http=True), BLOB)
        assert all("registry.test" in seen.target for seen in proxy.log)


def test_all_addresses_of_a_name_are_checked(names: None) -> None:
    guard = Guard("registry.test")
    with fails("metadata.test", METADATA, kind=RegistryError):
        guard.addresses("metadata.test", 80)
    with fails("loopback", kind=RegistryError):
        guard.addresses("registry.test", 80)
    assert Guard("localhost", on_loopback=True).addresses("registry.test", 80) == ["127.0.0.1"]
    assert Guard("x", allowed=("METADATA.test",)).addresses("metadata.test", 80)
    assert Guard("x", allowed=("metadata.test:80",)).addresses("metadata.test", 80)
    with fails("link-local", kind=RegistryError):
        Guard("x", allowed=("metadata.test:80",)).addresses("metadata.test", 81)
