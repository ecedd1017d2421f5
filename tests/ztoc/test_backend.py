"""Which library inflates, and what happens when it is not the one that it seems to be."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterator

import pytest

from soci_cli.errors import SociError
from soci_cli.ztoc import inflate
from soci_cli.ztoc.inflate import backend


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("SOCI_ZLIB", raising=False)
    backend.cache_clear()
    yield
    backend.cache_clear()


def test_the_known_stream() -> None:
    assert gzip.decompress(inflate._KNOWN) == inflate._KNOWN_DATA
    for name in ("zlib", "zlib-ng"):
        inflate._check(backend(name))


def test_the_fast_one_is_taken_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    assert backend().name.startswith("zlib-ng ")
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_KNOWN_STOPS", ((10, 0, 128),)),
        ("_KNOWN_DATA", b"x" * 300),
        ("_KNOWN", b"\x1f\x8b\x00" * 50),
    ],
)
def test_one_that_does_not_do_as_it_must(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, value: object
) -> None:
    """The slow one is taken, with one warning; who insists gets an error."""
    caplog.set_level(logging.WARNING, "soci_cli.ztoc")
    monkeypatch.setattr(inflate, name, value)
    for _ in range(2):
        assert backend().name.startswith("zlib ")
    (record,) = caplog.records
    assert "zlib-ng cannot be used" in record.getMessage()
    assert "a known stream" in record.getMessage()
    with pytest.raises(SociError, match="a known stream"):
        backend("zlib-ng")


def test_one_without_its_symbols(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        inflate, "_bind", lambda *_: (_ for _ in ()).throw(AttributeError("zng_inflate"))
    )
    with pytest.raises(SociError, match="no library to inflate with"):
        backend()
    assert len(caplog.records) == 2
