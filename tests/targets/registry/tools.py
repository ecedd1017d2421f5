"""Short ways to say things about registries in tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from soci_cli.errors import SociError
from soci_cli.oci.descriptor import Descriptor
from soci_cli.oci.references import parse_reference
from soci_cli.targets.layout import WritableLayout
from soci_cli.targets.protocol import Source
from soci_cli.targets.registry import Credentials, RegistryOptions, RetryPolicy
from soci_cli.targets.registry.place import Registries, RegistrySource, RegistryTarget
from soci_cli.targets.registry.upload import BlobUpload
from tests.support.places import copy, push_image
from tests.support.servers.exchange import Exchange
from tests.support.servers.fault_proxy import FaultProxy
from tests.support.servers.fixtures import PASSWORD, USER

QUICK = RetryPolicy(attempts=4, first=0.01, longest=0.02, patience=1.5)
LOGIN = Credentials(USER, PASSWORD)

Struck = Callable[..., FaultProxy]
"""Makes a proxy with faults before a registry."""


def options(**changes: Any) -> RegistryOptions:
    """Options with short pauses and no hosts.toml."""
    given: dict[str, Any] = {"retries": QUICK, "timeout": 2.0, "hosts_dirs": (), **changes}
    return RegistryOptions(**given)


def registries(environ: Mapping[str, str] | None = None, **changes: Any) -> Registries:
    return Registries(options(**changes), environ or {})


def source_at(where: Registries | str, name: str, **changes: Any) -> RegistrySource:
    """An image to read; `name` is HOST/REPO:TAG, or REPO:TAG behind the host `where`."""
    if isinstance(where, str):
        where, name = registries(**changes), f"{where}/{name}"
    return where.source(parse_reference(name), f"docker://{name}")


def target_at(where: Registries | str, name: str, **changes: Any) -> RegistryTarget:
    """As `source_at`, an image to write."""
    if isinstance(where, str):
        where, name = registries(**changes), f"{where}/{name}"
    return where.target(parse_reference(name), f"docker://{name}")


def push(host: str, name: str, seed: int = 0, size: int = 5000, **changes: Any) -> Descriptor:
    """Pushes an image of two layers and tags it."""
    with target_at(host, name, **changes) as target:
        root = push_image(target, seed=seed, size=size)
        target.tag(root)
    return root


def pull(source: Source, folder: Path) -> Descriptor:
    """Copies an image into a layout and tags it there."""
    with WritableLayout(folder, "1") as target:
        return copy(source, target)


@contextmanager
def fails(*words: str, kind: type[SociError] = SociError) -> Iterator[Callable[[], str]]:
    """The block ends with an error of one line, with these words in it and no secret."""
    with pytest.raises(kind) as caught:
        yield lambda: str(caught.value)
    check_message(str(caught.value))
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_code == 1


def check_message(text: str) -> None:
    """One line, not too long, and no password, token or query in it."""
    assert text.isprintable()
    assert 0 < len(text) < 1200
    for secret in (PASSWORD, "SECRET", "eyJ", "Bearer ", "Basic ", "?_state", "Traceback"):
        assert secret not in text, text


@contextmanager
def small_chunks(monkeypatch: pytest.MonkeyPatch, size: int) -> Iterator[None]:
    """Uploads of more than `size` bytes go in chunks."""
    begin = BlobUpload.__init__

    def smaller(self: BlobUpload, *args: Any, **more: Any) -> None:
        begin(self, *args, **{"chunk": size, **more})

    with monkeypatch.context() as patch:
        patch.setattr(BlobUpload, "__init__", smaller)
        yield


def answer_with(reply: Callable[[Exchange], Any]) -> Callable[[Exchange], None]:
    """An action that answers with what `reply` makes of the request."""

    def action(exchange: Exchange) -> None:
        exchange.drain()
        reply(exchange)(exchange)

    return action
