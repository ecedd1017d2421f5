"""Challenges of registries, and Amazon ECR's way to log in."""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.errors import RegistryError
from soci_cli.targets.registry.auth import Challenge, RegistryAuth, parse_challenge
from soci_cli.targets.registry.client import Client
from soci_cli.targets.registry.request import Request
from tests.support.servers.actions import Reply
from tests.support.servers.fault_proxy import Fault, FaultProxy
from tests.targets.registry.tools import (
    LOGIN,
    fails,
    options,
)

# Amazon ECR


ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
AWS_PAIR = base64.b64encode(b"AWS:SECRET-of-aws").decode()


@pytest.fixture
def boto3(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Modules that look like the AWS SDK; `regions` are those that were asked for."""
    fake, core, errors = (ModuleType(n) for n in ("boto3", "botocore", "botocore.exceptions"))

    class BotoCoreError(Exception):
        pass

    class ClientError(Exception):
        pass

    class Ecr:
        def get_authorization_token(self) -> dict[str, Any]:
            if fake.fails:
                raise ClientError("no\ncredentials")
            return {"authorizationData": [{"authorizationToken": AWS_PAIR}]}

    def client(name: str, region_name: str) -> Ecr:
        assert name == "ecr"
        fake.regions.append(region_name)
        return Ecr()

    for module, name, value in [
        (fake, "client", client),
        (fake, "regions", []),
        (fake, "fails", False),
        (errors, "BotoCoreError", BotoCoreError),
        (errors, "ClientError", ClientError),
        (core, "exceptions", errors),
    ]:
        setattr(module, name, value)
    for module in fake, core, errors:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    yield fake


def ecr_challenge(host: str) -> requests.Response:
    response = requests.Response()
    response.status_code = 401
    value = f'Basic realm="https://{host}/",service="ecr.amazonaws.com"'
    response.headers["WWW-Authenticate"] = value
    return response


def no_token(*_: object) -> bytes:
    raise AssertionError("no token is to be asked for")


@pytest.mark.parametrize(
    ("host", "region"),
    [
        (ECR, "eu-west-1"),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("123456789012.dkr-ecr.us-east-2.on.aws", "us-east-2"),
    ],
)
def test_ecr(boto3: ModuleType, host: str, region: str) -> None:
    auth = RegistryAuth(host, lambda: None, no_token)
    header = auth.answer(ecr_challenge(host), "repository:app:pull", None)
    assert header == f"Basic {AWS_PAIR}"
    assert auth.authorization("repository:app:pull") == header
    assert boto3.regions == [region]
    assert auth.answer(ecr_challenge(host), "repository:app:pull", header) is None
    boto3.fails = True  # type: ignore[attr-defined]
    with fails("AWS gave no credentials", host, kind=RegistryError):
        RegistryAuth(host, lambda: None, no_token).answer(ecr_challenge(host), "", None)


def test_ecr_only_for_ecr(boto3: ModuleType) -> None:
    for host in ECR + ".evil.invalid", "evil.invalid", "", f"x{ECR}", f"{ECR}:8443":
        auth = RegistryAuth(host, lambda: None, no_token)
        assert auth.answer(ecr_challenge(ECR), "", None) is None
    assert not boto3.regions
    auth = RegistryAuth(ECR, lambda: LOGIN, no_token)
    assert auth.answer(ecr_challenge(ECR), "", None) != f"Basic {AWS_PAIR}", "what is stored first"


def test_ecr_sends_nothing_elsewhere(boto3: ModuleType) -> None:
    """Neither a mirror nor a server that an upload is sent to gets what AWS gave."""
    client = Client(ECR, options(redirect_hosts=("127.0.0.1",)), {})
    challenge = dict(ecr_challenge(ECR).headers)
    with FaultProxy("127.0.0.1:1", Fault(Reply(401, challenge))) as other:
        with fails("401"):
            scope = "repository:app:pull,push"
            client.call(Request("PUT", f"{other.url}/x", scope=scope, body=b"1"))
        assert all("authorization" not in seen.headers for seen in other.log)
    assert not boto3.regions


def test_ecr_without_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert RegistryAuth(ECR, lambda: None, no_token).answer(ecr_challenge(ECR), "", None) is None


# Challenges


@pytest.mark.parametrize(
    ("header", "challenge"),
    [
        ("", None),
        ("Negotiate", None),
        ("Basic", Challenge("basic")),
        ('basic realm="a, b"', Challenge("basic", "a, b")),
        (
            'Bearer realm="https://a/t",service=s,scope="repository:a:pull,push"',
            Challenge("bearer", "https://a/t", "s", "repository:a:pull,push"),
        ),
        ('Basic realm="x", Bearer realm="y"', Challenge("bearer", "y")),
        ('Bearer realm="y", Basic realm="x"', Challenge("bearer", "y")),
        ('BEARER REALM = "q\\"uote"', Challenge("bearer", 'q"uote')),
        ("Bearer", Challenge("bearer")),
    ],
)
def test_parse_challenge(header: str, challenge: Challenge | None) -> None:
    assert parse_challenge(header) == challenge


_TEXT = st.text(st.characters(codec="latin-1", exclude_characters='"\\'), max_size=20)


@given(realm=_TEXT, service=_TEXT, scope=_TEXT)
def test_challenges_round_trip(realm: str, service: str, scope: str) -> None:
    header = f'Bearer realm="{realm}", service="{service}",scope="{scope}"'
    wrong = [word for word in ("basic", "bearer") if word in (realm + service + scope).lower()]
    if not wrong:
        assert parse_challenge(header) == Challenge("bearer", realm, service, scope)


_PARTS = st.sampled_from(["Bearer ", "Basic", "realm", "=", '"', ",", "\\", "scope", " ", "\x00"])


@given(st.lists(_PARTS | st.text(max_size=3), max_size=40).map("".join))
def test_any_challenge_is_read(header: str) -> None:
    found = parse_challenge(header)
    assert found is None or found.scheme in ("basic", "bearer")


def test_challenges_are_read_quickly() -> None:
    for text in '"' * 60_000, "a=" * 30_000, ', Basic a="' * 5_000, "Bearer " + '\\"' * 30_000:
        begun = time.monotonic()
        parse_challenge("Bearer " + text)
        assert time.monotonic() - begun < 0.5
