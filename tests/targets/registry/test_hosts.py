"""Which servers answer for a registry: flags, hosts.toml, Docker's folders."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.errors import ConfigError, SociError, UsageError
from soci_cli.targets.registry import hosts
from soci_cli.targets.registry.hosts import (
    CAPABILITIES,
    Endpoint,
    TlsSettings,
    endpoints,
    is_loopback,
)
from soci_cli.targets.registry.options import RegistryOptions
from tests.support.servers.ca import Ca, make_ca

NO_FOLDERS = RegistryOptions(hosts_dirs=())


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Ca:
    return make_ca(tmp_path_factory.mktemp("ca"))


def own(domain: str, options: RegistryOptions = NO_FOLDERS) -> Endpoint:
    """The only endpoint of a registry."""
    (endpoint,) = endpoints(domain, options, {})
    return endpoint


def with_toml(root: Path, text: str, name: str = "example.com") -> RegistryOptions:
    (root / name).mkdir(parents=True, exist_ok=True)
    (root / name / "hosts.toml").write_text(text)
    return RegistryOptions(hosts_dirs=(root,))


# Without folders


@pytest.mark.parametrize(
    ("domain", "url", "assumed"),
    [
        ("example.com", "https://example.com/v2", False),
        ("example.com:5000", "https://example.com:5000/v2", False),
        ("docker.io", "https://registry-1.docker.io/v2", False),
        ("localhost", "http://localhost/v2", True),
        ("localhost:5000", "http://localhost:5000/v2", True),
        ("127.0.0.1:5000", "http://127.0.0.1:5000/v2", True),
        ("127.8.0.1", "http://127.8.0.1/v2", True),
        ("[::1]:5000", "http://[::1]:5000/v2", True),
        ("app.localhost:5000", "https://app.localhost:5000/v2", False),
        ("10.0.0.1:5000", "https://10.0.0.1:5000/v2", False),
    ],
)
def test_defaults(domain: str, url: str, assumed: bool) -> None:
    assert own(domain) == Endpoint(url, CAPABILITIES, {}, TlsSettings(), assumed_http=assumed)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "::1", "[::1]", "[::1]:1"]
)
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "example.com", "::2", "[::2]:1", "localhost.example.com", "1:2"]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


def test_flags(ca: Ca) -> None:
    cert, key = ca.issue_client("me")
    flags = replace(NO_FOLDERS, skip_verify=True, tls_ca=ca.cert, tls_cert=cert, tls_key=key)
    endpoint = own("localhost:5000", flags)
    assert endpoint.url == "https://localhost:5000/v2"
    assert not endpoint.assumed_http
    assert endpoint.tls == TlsSettings(True, (), ca.cert, ((cert, key),))
    plain = own("example.com", replace(flags, plain_http=True))
    assert plain.url == "http://example.com/v2"
    assert not plain.assumed_http


@pytest.mark.parametrize("flag", ["tls_cert", "tls_key"])
def test_certificate_without_key(flag: str, ca: Ca) -> None:
    with pytest.raises(UsageError, match="both --tlscert and --tlskey"):
        own("example.com", replace(NO_FOLDERS, **{flag: ca.cert}))  # type: ignore[arg-type]


def test_files_of_flags_that_are_missing(ca: Ca, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--tlscacert .*no such file"):
        own("example.com", replace(NO_FOLDERS, tls_ca=tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"--tlskey .*no such file"):
        own("example.com", replace(NO_FOLDERS, tls_cert=ca.cert, tls_key=tmp_path / "none"))


# Folders


def test_hosts_toml(tmp_path: Path) -> None:
    options = with_toml(
        tmp_path,
        """
        server = "https://upstream.example.com/"
        capabilities = ["pull", "resolve"]
        unknown = 1
        skip_verify = true
        [header]
          x-top = "t"
        [host."https://b.example.com"]
          capabilities = ["PULL"]
          ca = "b.pem"
          dial_timeout = "1m2.5s"
          [host."https://b.example.com".header]
            x-one = "1"
            x-two = ["2", "3"]
        [host."a.example.com:5000/sub/"]
          ca = ["a.pem", "/etc/a.pem"]
          client = "c.pem"
          skip_verify = false
        [host."http://c.example.com/v2/mirror"]
          override_path = true
          client = [["c.cert", "c.key"], ["d.pem", ""]]
        [host."http://d.example.com"]
          client = ["e.pem", "f.pem"]
          something = "new"
        """,
    )
    here = tmp_path / "example.com"
    b, a, c, d, server = endpoints("example.com", options, {})
    assert b == Endpoint(
        "https://b.example.com/v2",
        frozenset({"pull"}),
        {"x-one": "1", "x-two": "2, 3"},
        TlsSettings(authorities=(here / "b.pem",)),
        "example.com",
        dial_timeout=62.5,
    )
    assert (a.url, a.capabilities) == ("https://a.example.com:5000/sub/v2", CAPABILITIES)
    assert a.tls.authorities == (here / "a.pem", Path("/etc/a.pem"))
    assert a.tls.clients == ((here / "c.pem", None),)
    assert c.url == "http://c.example.com/v2/mirror"
    assert c.tls.clients == ((here / "c.cert", here / "c.key"), (here / "d.pem", None))
    assert c.assumed_http
    assert d.tls.clients == ((here / "e.pem", None), (here / "f.pem", None))
    assert server == Endpoint(
        "https://upstream.example.com/v2",
        frozenset({"pull", "resolve"}),
        {"x-top": "t"},
        TlsSettings(skip_verify=True),
        "example.com",
    )


def test_secrets_in_headers_are_not_shown(tmp_path: Path) -> None:
    options = with_toml(tmp_path, '[header]\nauthorization = "secret"')
    assert "secret" not in repr(endpoints("example.com", options, {}))


def test_mirror_before_the_registry_itself(tmp_path: Path) -> None:
    options = with_toml(tmp_path, '[host."https://mirror.example.com"]', "_default")
    for domain, own_url in [
        ("docker.io", "https://registry-1.docker.io/v2"),
        ("example.com", "https://example.com/v2"),
        ("localhost:5000", "http://localhost:5000/v2"),
    ]:
        mirror, itself = endpoints(domain, options, {})
        assert (mirror.url, mirror.namespace) == ("https://mirror.example.com/v2", domain)
        assert (itself.url, itself.namespace) == (own_url, "")


def test_docker_hub_itself_as_a_host_is_no_mirror(tmp_path: Path) -> None:
    options = with_toml(tmp_path, '[host."https://registry-1.docker.io"]', "docker.io")
    assert [one.namespace for one in endpoints("docker.io", options, {})] == ["", ""]


def test_top_level_capabilities_need_a_server(tmp_path: Path) -> None:
    options = with_toml(tmp_path, 'capabilities = ["pull"]')
    assert own("example.com", options).capabilities == CAPABILITIES


@pytest.mark.parametrize(
    ("text", "url", "assumed"),
    [
        ('server = "https://localhost:5000"', "https://localhost:5000/v2", False),
        ('server = "http://localhost:5000"', "http://localhost:5000/v2", False),
        ('server = "http://localhost:5000"\nca = "x"', "http://localhost:5000/v2", True),
        ("skip_verify = true", "https://localhost:5000/v2", False),
        ('ca = "x"', "https://localhost:5000/v2", False),
        ("# nothing", "http://localhost:5000/v2", True),
    ],
)
def test_loopback_with_a_folder(text: str, url: str, assumed: bool, tmp_path: Path) -> None:
    endpoint = own("localhost:5000", with_toml(tmp_path, text, "localhost:5000"))
    assert (endpoint.url, endpoint.assumed_http) == (url, assumed)


def test_flags_go_before_the_file_for_the_registry_only(tmp_path: Path, ca: Ca) -> None:
    options = with_toml(
        tmp_path,
        'server = "https://example.com"\nca = "file.pem"\nclient = "c.pem"\nskip_verify = false\n'
        '[host."https://mirror.example.com"]\nca = "mirror.pem"',
    )
    cert, key = ca.issue_client("me")
    flags = replace(options, tls_ca=ca.cert, tls_cert=cert, tls_key=key, skip_verify=True)
    mirror, itself = endpoints("example.com", flags, {})
    assert itself.tls == TlsSettings(True, (), ca.cert, ((cert, key),))
    assert mirror.tls == TlsSettings(authorities=(tmp_path / "example.com" / "mirror.pem",))
    mirror, itself = endpoints("example.com", replace(options, plain_http=True), {})
    assert mirror.url.startswith("https:")
    assert itself.url == "http://example.com/v2"


@pytest.mark.parametrize(
    ("domain", "names", "found"),
    [
        ("example.com:5000", ["example.com:5000", "_default"], "example.com:5000"),
        ("example.com:5000", ["example.com_5000_", "example.com:5000"], "example.com_5000_"),
        ("example.com:5000", ["example.com", "_default"], "_default"),
        ("example.com:5000", ["example.com"], None),
        ("example.com:443", ["example.com", "_default"], "example.com"),
        ("example.com", ["_default", "example.com"], "example.com"),
        ("[::1]:5000", ["[::1]_5000_"], "[::1]_5000_"),
        ("[::1]", ["[::1]"], "[::1]"),
    ],
)
def test_names_of_folders(domain: str, names: list[str], found: str | None, tmp_path: Path) -> None:
    for name in names:
        options = with_toml(tmp_path, f'[header]\nname = "{name}"', name)
    expected = {} if found is None else {"name": found}
    assert own(domain, options).headers == expected


def test_first_root_with_a_folder_counts(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with_toml(tmp_path / "one", '[header]\nname = "one"', "_default")
    with_toml(tmp_path / "two", '[header]\nname = "two"')
    roots = tuple(tmp_path / name for name in ("empty", "one", "two"))
    assert own("example.com", RegistryOptions(hosts_dirs=roots)).headers == {"name": "one"}


def test_usual_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_SYSTEM_DIRS", (tmp_path / "etc",))
    with_toml(tmp_path / "etc", '[header]\nname = "etc"')
    with_toml(tmp_path / "home/.config/docker/certs.d", '[header]\nname = "home"')
    with_toml(tmp_path / "xdg/containerd/certs.d", '[header]\nname = "xdg"')
    for user, variables, name in [
        (1000, {"HOME": "home"}, "home"),
        (1000, {"HOME": "home", "XDG_CONFIG_HOME": "xdg"}, "xdg"),
        (1000, {"HOME": "other"}, "etc"),
        (1000, {}, "etc"),
        (0, {"HOME": "home"}, "etc"),
    ]:
        environ = {key: str(tmp_path / value) for key, value in variables.items()}
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        (endpoint,) = endpoints("example.com", RegistryOptions(), environ)
        assert endpoint.headers == {"name": name}


def test_folder_of_the_flag_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        own("example.com", RegistryOptions(hosts_dirs=(tmp_path / "none",)))


@pytest.mark.parametrize("empty_toml", [False, True])
def test_docker_layout(empty_toml: bool, tmp_path: Path) -> None:
    folder = tmp_path / "localhost:5000"
    folder.mkdir()
    for name in ("b.crt", "a.crt", "me.cert", "me.key", "all.cert", "other.txt"):
        (folder / name).touch()
    (folder / "dir.crt").mkdir()
    if empty_toml:
        (folder / "hosts.toml").touch()
    endpoint = own("localhost:5000", RegistryOptions(hosts_dirs=(tmp_path,)))
    assert endpoint.url == "https://localhost:5000/v2"
    assert endpoint.tls.authorities == (folder / "a.crt", folder / "b.crt")
    assert endpoint.tls.clients == (
        (folder / "all.cert", None),
        (folder / "me.cert", folder / "me.key"),
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("server = 1", ["server", "expected a URL"]),
        ('server = "ftp://example.com"', ["expected a URL", "ftp://example.com"]),
        ('server = "https://"', ["expected a URL"]),
        ('server = "https://a b"', ["expected a URL"]),
        ('server = "https://example.com:99999"', ["expected a URL"]),
        ('server = "https://[::zz]"', ["expected a URL"]),
        ("host = 1", ["host", "expected tables"]),
        ("[host]\nx = 1", ["host.'x'", "expected a table"]),
        ('[host.""]', ["host.''", "a table that is named by a URL"]),
        ('[host."https://m.test"]\ncapabilities = ["pul"]', ["m.test", "capabilities", "'pul'"]),
        ('[host."https://m.test"]\ncapabilities = "pull"', ["m.test", "capabilities"]),
        ("ca = 1", ["ca", "expected a list of strings"]),
        ('ca = ""', ["ca", "the path of a file"]),
        ("client = 1", ["client", "expected a file"]),
        ('client = [["a"]]', ["client", "pairs"]),
        ("client = [1]", ["client"]),
        ('skip_verify = "yes"', ["skip_verify", "true or false"]),
        ("override_path = 1", ["override_path", "true or false"]),
        ('dial_timeout = "soon"', ["dial_timeout", "'soon'"]),
        ("dial_timeout = 3", ["dial_timeout", "3"]),
        ("header = 1", ["header"]),
        ('[header]\n"a b" = "x"', ["header", "'a b'"]),
        ('[header]\nx = "a\\r\\nb: c"', ["header.x", "one line"]),
        ("[header]\nx = 1", ["header.x"]),
        ("a = ", ["not valid TOML", "end of document"]),
        ("a = " + "[" * 5000, ["not valid TOML"]),
    ],
)
def test_broken_hosts_toml(text: str, parts: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        own("example.com", with_toml(tmp_path, text))
    message = str(caught.value)
    assert "\n" not in message
    for part in [str(tmp_path / "example.com" / "hosts.toml"), *parts]:
        assert part in message


def test_passwords_in_urls_are_not_shown(tmp_path: Path) -> None:
    options = with_toml(tmp_path, '[host."https://me:secret@example.com"]\nca = 1')
    with pytest.raises(ConfigError) as caught:
        own("example.com", options)
    assert "secret" not in str(caught.value)
    options = with_toml(tmp_path, 'server = "https://me:secret@example.com"')
    with pytest.raises(ConfigError) as caught:
        own("example.com", options)
    assert "secret" not in str(caught.value)


def test_unreadable_hosts_toml(tmp_path: Path) -> None:
    (tmp_path / "example.com" / "hosts.toml").mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot be read: is a directory"):
        own("example.com", RegistryOptions(hosts_dirs=(tmp_path,)))
    (tmp_path / "b.example.com").touch()
    with pytest.raises(ConfigError, match="cannot be read: not a directory"):
        own("b.example.com", RegistryOptions(hosts_dirs=(tmp_path,)))


def test_hosts_toml_that_is_too_large(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no hosts\.toml"):
        own("example.com", with_toml(tmp_path, "#" * (1 << 20) + "\n"))


_KEYS = ["server", "capabilities", "ca", "client", "skip_verify", "override_path", "dial_timeout"]
_VALUES = [
    "1",
    '""',
    '"x"',
    "[]",
    '["pull"]',
    '[["a","b"]]',
    "{}",
    '{x = "y"}',
    "true",
    "1979-05-27",
]


@given(
    st.binary(max_size=200)
    | st.lists(st.tuples(st.sampled_from([*_KEYS, "header", "host"]), st.sampled_from(_VALUES)))
    .map(lambda pairs: "\n".join(f"{key} = {value}" for key, value in dict(pairs).items()))
    .map(str.encode)
    | st.tuples(st.text(max_size=30), st.sampled_from(_KEYS), st.sampled_from(_VALUES)).map(
        lambda parts: f'[host."{parts[0]}"]\n{parts[1]} = {parts[2]}'.encode("utf-8", "replace")
    )
)
def test_any_hosts_toml_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "example.com"
    folder.mkdir(exist_ok=True)
    (folder / "hosts.toml").write_bytes(data)
    try:
        found = endpoints("example.com", RegistryOptions(hosts_dirs=(tmp_path,)), {})
    except SociError as error:
        assert "\n" not in str(error)
    else:
        assert found
        for endpoint in found:
            assert endpoint.url.startswith(("http://", "https://"))
            assert not endpoint.url.endswith("/")
            assert endpoint.capabilities
