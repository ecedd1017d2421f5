"""Credentials: where they are found, how helpers are run, what storing and erasing change."""

from __future__ import annotations

import base64
import json
import os
import stat
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.errors import ConfigError, SociError, StorageError, UsageError
from soci_cli.targets.registry import credentials as module
from soci_cli.targets.registry.credentials import (
    credential_helper,
    erase_credentials,
    find_credentials,
    registry_domain,
    store_credentials,
)
from soci_cli.targets.registry.options import Credentials

HUB_KEY = "https://index.docker.io/v1/"
ALICE = Credentials("alice", "s3cret")

# A helper that keeps everything in a JSON file, and notes how it was called.
HELPER = """#!{python}
import json, os, pathlib, sys
kept = pathlib.Path({kept!r})
store = json.loads(kept.read_text()) if kept.exists() else {{}}
text = sys.stdin.read()
with open({log!r}, "a") as log:
    log.write(sys.argv[1] + " " + (text if sys.argv[1] != "store" else "") + "\\n")
if sys.argv[1] == "get":
    if text not in store:
        print("credentials not found in native keychain")
        sys.exit(1)
    print(json.dumps(store[text]))
elif sys.argv[1] == "store":
    entry = json.loads(text)
    store[entry["ServerURL"]] = entry
elif sys.argv[1] == "erase":
    del store[text]
kept.write_text(json.dumps(store))
"""


class Place:
    """A home with a config.json, and helpers on the PATH."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / ".docker" / "config.json"
        self.kept = root / "kept.json"
        self.log = root / "calls"
        self.environ = {
            "HOME": str(root),
            "PATH": f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}",
        }

    def write(self, document: Any, path: Path | None = None) -> None:
        path = path or self.config
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document if isinstance(document, str) else json.dumps(document))

    def read(self) -> Any:
        return json.loads(self.config.read_text())

    def script(self, name: str, text: str) -> None:
        path = self.root / "bin" / f"docker-credential-{name}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def helper(self, name: str, **kept: tuple[str, str]) -> None:
        texts = {"kept": str(self.kept), "log": str(self.log), "python": sys.executable}
        self.script(name, HELPER.format(**texts))
        entries = {key: {"Username": user, "Secret": word} for key, (user, word) in kept.items()}
        self.kept.write_text(json.dumps(entries))

    def find(self, domain: str, repository: str = "app") -> Credentials | None:
        return find_credentials(domain, repository, self.environ)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def basic(username: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


def fails(call: Callable[[], object], *parts: str) -> None:
    """The call raises a ConfigError of one line with these parts, and no secret is anywhere."""
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    for line in traceback.format_exception(caught.value):
        if not line.startswith("  File "):  # which shows lines of this file
            assert "s3cret" not in line


# Finding


@pytest.mark.parametrize("key", ["example.com", "https://example.com", "http://example.com/v1/"])
def test_key_of_a_registry(key: str, place: Place) -> None:
    place.write({"auths": {"other.com": basic("x", "y"), key: basic("alice", "s3cret")}})
    assert place.find("example.com") == ALICE
    assert place.find("example.com:5000") is None
    assert place.find("sub.example.com") is None


@pytest.mark.parametrize("domain", ["docker.io", "index.docker.io", "registry-1.docker.io"])
@pytest.mark.parametrize("key", [HUB_KEY, "docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub(domain: str, key: str, place: Place) -> None:
    place.write({"auths": {key: basic("alice", "s3cret")}})
    assert place.find(domain) == ALICE


def test_port_and_default_port(place: Place) -> None:
    place.write({"auths": {"a.com:5000": basic("alice", "s3cret"), "b.com:443": basic("b", "c")}})
    assert place.find("a.com:5000") == ALICE
    assert place.find("a.com") is None
    assert place.find("b.com") == Credentials("b", "c")


def test_most_specific_key_wins(place: Place) -> None:
    keys = ["example.com", "example.com/team", "example.com/team/app", "example.com/teams"]
    place.write({"auths": {key: basic(key, "p") for key in keys}})
    for repository, key in [
        ("app", "example.com"),
        ("team", "example.com/team"),
        ("team/other", "example.com/team"),
        ("team/app", "example.com/team/app"),
        ("team/app/part", "example.com/team/app"),
        ("team/application", "example.com/team"),
    ]:
        assert place.find("example.com", repository) == Credentials(key, "p")


def test_exact_key_goes_before_urls(place: Place) -> None:
    place.write({"auths": {"https://a.com": basic("old", "p"), "a.com": basic("new", "p")}})
    assert place.find("a.com") == Credentials("new", "p")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (basic("alice", "a:b:c"), Credentials("alice", "a:b:c")),
        (basic("alice", "s3cret\0\0"), ALICE),
        (basic("älice", "ß"), Credentials("älice", "ß")),
        ({"username": "alice", "password": "s3cret"}, ALICE),
        ({**basic("alice", ""), "identitytoken": "t"}, Credentials("alice", "", "t")),
        ({"identitytoken": "t"}, Credentials("", "", "t")),
        ({"auth": None, "email": "a@example.com"}, None),
        ({}, None),
        (None, None),
    ],
)
def test_entries(entry: object, expected: Credentials | None, place: Place) -> None:
    place.write({"auths": {"example.com": entry}})
    assert place.find("example.com") == expected


def test_files_in_turn(place: Place, tmp_path: Path) -> None:
    run, file, docker = tmp_path / "run", tmp_path / "file.json", tmp_path / "docker"
    assert place.find("a.com") is None
    assert find_credentials("a.com", "app", {}) is None
    place.write({"auths": {"a.com": basic("run", "p")}}, run / "containers" / "auth.json")
    place.environ["XDG_RUNTIME_DIR"] = str(run)
    assert place.find("a.com") == Credentials("run", "p")
    place.write({"auths": {"a.com": basic("file", "p")}}, file)
    place.environ["REGISTRY_AUTH_FILE"] = str(file)
    assert place.find("a.com") == Credentials("file", "p")
    place.write({"auths": {"a.com": basic("home", "p")}})
    assert place.find("a.com") == Credentials("home", "p")
    place.environ["DOCKER_CONFIG"] = str(docker)
    assert place.find("a.com") == Credentials("file", "p")
    place.write({"auths": {"a.com": basic("docker", "p")}}, docker / "config.json")
    assert place.find("a.com") == Credentials("docker", "p")


@pytest.mark.parametrize(
    ("document", "parts"),
    [
        ("{", ["not valid JSON", "line 1"]),
        ("[]", ["expected a JSON object"]),
        ('{"auths": "s3cret"}', ["auths: expected an object"]),
        ('{"auths": {"a.com": "s3cret"}}', ["auths['a.com']", "expected an object"]),
        ('{"auths": {"a.com": {"auth": ["s3cret"]}}}', ["auths['a.com']: auth: expected a string"]),
        ('{"auths": {"a.com": {"auth": "s3cret"}}}', ["auth: expected base64", "soci login"]),
        ('{"auths": {"a.com": {"auth": "czNjcmV0"}}}', ["auth: expected base64"]),
        ('{"auths": {"a.com": {"auth": "//8="}}}', ["auth: expected base64"]),
        ('{"auths": {"a.com": {"password": 1}}}', ["password: expected a string"]),
        ('{"credHelpers": []}', ["credHelpers: expected an object"]),
        ('{"credHelpers": {"a.com": 1}}', ["not the name of a helper"]),
        ('{"credsStore": "../../bin/x"}', ["not the name of a helper"]),
        ('{"credsStore": true}', ["not the name of a helper"]),
    ],
)
def test_broken_files(document: str, parts: list[str], place: Place) -> None:
    place.write(document)
    fails(lambda: place.find("a.com"), str(place.config), *parts)


def test_an_entry_of_another_registry_may_be_broken(place: Place) -> None:
    place.write({"auths": {"b.com": {"auth": "?"}, "a.com": basic("alice", "s3cret")}})
    assert place.find("a.com") == ALICE


def test_empty_file(place: Place) -> None:
    place.write(" \n")
    assert place.find("a.com") is None


def test_unreadable_file(place: Place) -> None:
    place.config.mkdir(parents=True)
    fails(lambda: place.find("a.com"), str(place.config), "Is a directory")


_keys = st.sampled_from(
    ["auths", "a.com", "https://a.com/v1/", "a.com/app", "auth", "username", "identitytoken"]
) | st.text(max_size=8)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.binary(max_size=60)
    | st.dictionaries(st.just("auths") | _keys, _json, max_size=3).map(json.dumps).map(str.encode)
)
def test_any_file_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    place = Place(tmp_path)
    place.write("")
    place.config.write_bytes(data)
    for call in (
        lambda: place.find("a.com"),
        lambda: store_credentials("a.com", ALICE, place.environ),
        lambda: erase_credentials("a.com", place.environ),
    ):
        try:
            call()
        except SociError as error:
            assert "\n" not in str(error)


def test_credentials_hide_secrets() -> None:
    assert "s3cret" not in repr(Credentials("alice", "s3cret", "s3cret"))


# Helpers


def test_helper_of_a_registry_and_of_all(place: Place) -> None:
    place.helper("one", **{"a.com": ("alice", "s3cret"), HUB_KEY: ("hub", "p")})
    place.script("two", '#!/bin/sh\necho \'{"Username": "two", "Secret": "p"}\'')
    place.write({"credsStore": "one", "credHelpers": {"b.com": "two", "c.com": ""}})
    assert place.find("a.com") == ALICE
    assert place.find("docker.io") == Credentials("hub", "p")
    assert place.find("b.com") == Credentials("two", "p")
    assert place.find("c.com") is None
    assert place.find("d.com") is None
    assert place.log.read_text() == f"get a.com\nget {HUB_KEY}\nget d.com\n"


def test_identity_token_of_a_helper(place: Place) -> None:
    place.helper("one", **{"a.com": ("<token>", "s3cret")})
    place.write({"credsStore": "one"})
    assert place.find("a.com") == Credentials("", "", "s3cret")


def test_helper_goes_before_entries_of_the_registry_only(place: Place) -> None:
    place.helper("one", **{"a.com": ("alice", "s3cret")})
    auths = {key: basic(key, "p") for key in ("a.com", "a.com/team", "b.com")}
    place.write({"credsStore": "one", "auths": auths})
    assert place.find("a.com") == ALICE
    assert place.find("a.com", "team/app") == Credentials("a.com/team", "p")
    assert place.find("b.com") == Credentials("b.com", "p")


def test_helper_without_credentials_leaves_it_to_podman(place: Place, tmp_path: Path) -> None:
    place.helper("one")
    place.write({"credsStore": "one", "auths": {"a.com": {}}})
    place.write({"auths": {"a.com": basic("alice", "s3cret")}}, tmp_path / "auth.json")
    place.environ["REGISTRY_AUTH_FILE"] = str(tmp_path / "auth.json")
    assert place.find("a.com") == ALICE


def test_helper_is_missing(place: Place) -> None:
    place.write({"credsStore": "absent"})
    fails(lambda: place.find("a.com"), "docker-credential-absent is not installed", "config.json")


@pytest.mark.parametrize(
    ("script", "parts"),
    [
        ("echo s3cret; echo s3cret >&2; exit 3", ["get failed with status 3"]),
        ("echo s3cret", ["gave no JSON", "try: echo a.com | docker-credential-bad get"]),
        ("echo '[\"s3cret\"]'", ["gave no Username and Secret"]),
        ('echo \'{"Username": "s3cret"}\'', ["gave no Username and Secret"]),
        ('echo \'{"Username": 1, "Secret": "s3cret"}\'', ["gave no Username and Secret"]),
        ("printf '\\377'", ["gave no JSON"]),
        ("kill -9 $$", ["failed with status -9"]),
        ("exec <&-; exit 1", ["failed with status 1"]),
    ],
)
def test_helper_that_fails(script: str, parts: list[str], place: Place) -> None:
    place.script("bad", f"#!/bin/sh\n{script}\n")
    place.write({"credsStore": "bad"})
    fails(lambda: place.find("a.com"), "docker-credential-bad", *parts)


def test_helper_that_cannot_be_run(place: Place) -> None:
    place.script("bad", "#!/absent/shell\n")
    place.write({"credsStore": "bad"})
    fails(lambda: place.find("a.com"), "docker-credential-bad cannot be run")


def test_helper_that_hangs(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HELPER_SECONDS", 0.2)
    place.script("slow", "#!/bin/sh\nexec sleep 20\n")
    place.write({"credsStore": "slow"})
    fails(lambda: place.find("a.com"), "docker-credential-slow get gave no answer in 0.2 seconds")


# Storing and erasing


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("domain", "key"), [("a.com:5000", "a.com:5000"), ("docker.io", HUB_KEY)])
def test_store_in_a_new_file(domain: str, key: str, place: Place) -> None:
    assert credential_helper(domain, place.environ) == ""
    assert store_credentials(domain, ALICE, place.environ) == str(place.config)
    assert place.read() == {"auths": {key: basic("alice", "s3cret")}}
    assert mode(place.config) == 0o600
    assert mode(place.config.parent) == 0o700
    assert place.find(domain) == ALICE
    assert erase_credentials(domain, place.environ)
    assert place.find(domain) is None
    assert not erase_credentials(domain, place.environ)
    assert [path.name for path in place.config.parent.iterdir()] == ["config.json"]


def test_store_an_identity_token(place: Place) -> None:
    store_credentials("a.com", Credentials("alice", "s3cret", "t"), place.environ)
    assert place.read() == {"auths": {"a.com": {**basic("alice", ""), "identitytoken": "t"}}}
    assert place.find("a.com") == Credentials("alice", "", "t")


def test_store_keeps_the_rest(place: Place) -> None:
    rest: dict[str, object] = {
        "HttpHeaders": {"x": "ü"},
        "new": [1, 2.5, None, {"deep": True}],
        "psFormat": "table",
    }
    others: dict[str, object] = {
        "b.com": {**basic("b", "c"), "email": "e"},
        "a.com/team": basic("d", "e"),
    }
    place.write({**rest, "auths": {**others, "a.com": basic("old", "p")}})
    place.config.chmod(0o644)
    store_credentials("a.com", ALICE, place.environ)
    assert place.read() == {**rest, "auths": {**others, "a.com": basic("alice", "s3cret")}}
    assert list(place.read()) == [*rest, "auths"]
    assert mode(place.config) == 0o600
    assert erase_credentials("a.com", place.environ)
    assert place.read() == {**rest, "auths": others}


def test_stricter_mode_stays(place: Place) -> None:
    place.write({})
    place.config.chmod(0o400)
    store_credentials("a.com", ALICE, place.environ)
    assert mode(place.config) == 0o400


@pytest.mark.parametrize("target_exists", [True, False])
def test_symbolic_link_stays(target_exists: bool, place: Place, tmp_path: Path) -> None:
    target = tmp_path / "dotfiles" / "docker.json"
    if target_exists:
        place.write({"a": 1}, target)
    place.config.parent.mkdir()
    place.config.symlink_to(target)
    store_credentials("a.com", ALICE, place.environ)
    assert place.config.is_symlink()
    assert not target.is_symlink()
    assert place.find("a.com") == ALICE
    assert mode(target) == 0o600


def test_broken_file_is_not_overwritten(place: Place) -> None:
    place.write("{")
    fails(lambda: store_credentials("a.com", ALICE, place.environ), str(place.config))
    fails(lambda: erase_credentials("a.com", place.environ), str(place.config))
    assert place.config.read_text() == "{"


def test_file_that_cannot_be_written(place: Place, tmp_path: Path) -> None:
    (tmp_path / ".docker").touch()
    with pytest.raises(StorageError, match=r"cannot write .*config\.json"):
        store_credentials("a.com", ALICE, place.environ)


def test_nowhere_to_store() -> None:
    fails(lambda: store_credentials("a.com", ALICE, {}), "DOCKER_CONFIG")


@pytest.mark.parametrize(
    ("credentials", "kept"),
    [
        (ALICE, {"Username": "alice", "Secret": "s3cret"}),
        (Credentials("alice", "p", "s3cret"), {"Username": "<token>", "Secret": "s3cret"}),
    ],
)
def test_store_in_a_helper(credentials: Credentials, kept: dict[str, str], place: Place) -> None:
    place.helper("one")
    auths = {"b.com": basic("b", "c")}
    before = {"credHelpers": {"a.com": "one"}, "auths": auths}
    place.write({**before, "auths": {**auths, "https://a.com": basic("old", "p")}})
    assert credential_helper("a.com", place.environ) == "docker-credential-one"
    assert store_credentials("a.com", credentials, place.environ) == "docker-credential-one"
    assert json.loads(place.kept.read_text()) == {"a.com": {"ServerURL": "a.com", **kept}}
    assert place.read() == before
    found = place.find("a.com")
    assert found is not None
    assert "s3cret" in (found.password, found.identity_token)
    assert erase_credentials("a.com", place.environ)
    assert json.loads(place.kept.read_text()) == {}
    assert not erase_credentials("a.com", place.environ)
    calls = ["store ", "get a.com", "get a.com", "erase a.com", "get a.com"]
    assert place.log.read_text().splitlines() == calls


def test_helper_that_does_not_store(place: Place) -> None:
    place.script("bad", "#!/bin/sh\ncat; echo credentials not found in native keychain; exit 1\n")
    place.write({"credsStore": "bad"})
    fails(
        lambda: store_credentials("a.com", ALICE, place.environ),
        "docker-credential-bad store failed",
    )


# Names of registries


@pytest.mark.parametrize(
    ("server", "domain"),
    [
        ("docker.io", "docker.io"),
        (HUB_KEY, "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("Index.Docker.io", "docker.io"),
        ("example.com", "example.com"),
        ("http://example.com:5000/", "example.com:5000"),
        ("https://example.com/v2/", "example.com"),
        ("localhost", "localhost"),
        ("[::1]:5000", "[::1]:5000"),
    ],
)
def test_registry_domain(server: str, domain: str) -> None:
    assert registry_domain(server) == domain


@pytest.mark.parametrize(
    "server",
    ["", "name", "a.com/team", "https://", "../a.com", "a b.com", "a.com:x", "u@a.com", "\n"],
)
def test_no_registry(server: str) -> None:
    with pytest.raises(UsageError, match="not a registry") as caught:
        registry_domain(server)
    assert "\n" not in str(caught.value)
