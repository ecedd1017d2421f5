"""Errors carry where they happened as fields; wrapping adds to them and never changes the class."""

from __future__ import annotations

import pytest

from soci_cli.errors import (
    IntegrityError,
    LostUploadError,
    NotFoundError,
    NotInRegistryError,
    RegistryError,
    SociError,
    StorageError,
    UnreachableError,
    errors_at,
    explaining,
)

_LAYER = "sha256:" + "4f" * 32


def test_the_line_says_where_and_what() -> None:
    error = StorageError(
        "no space", place="oci:/images", image="app:1", layer=_LAYER, span=3, file="/bin/sh"
    )
    assert str(error) == f"/bin/sh, span 3 of layer {_LAYER} in app:1, oci:/images: no space"
    assert str(StorageError("no space")) == "no space"


def test_the_line_says_nothing_twice() -> None:
    place = "docker://reg.example/app:1"
    error = RegistryError(f"GET http://reg.example/v2/app/blobs/{_LAYER}: 403 Forbidden", 403)
    located = error.at(place=place, image="reg.example/app:1", layer=_LAYER, span=0)
    assert str(located) == f"span 0 in {place}: {error.message}"
    assert str(error.at(place=place)) == error.message, "which says which registry it is"


def test_an_explanation_comes_before_the_message() -> None:
    cause = RegistryError("503", 503, transient=True)
    with pytest.raises(RegistryError) as caught, errors_at(layer=_LAYER), explaining("not pulled"):
        raise cause
    assert str(caught.value) == f"layer {_LAYER}: not pulled: 503"
    assert caught.value.transient and caught.value.status == 503 and str(cause) == "503"


def test_a_field_keeps_its_first_value_and_the_error_its_class() -> None:
    cause = RegistryError("slow down", 429, 7.0, ("TOOMANYREQUESTS",))
    located = cause.at(layer=_LAYER, span=0).at(span=2, file="/bin/sh")
    assert type(located) is RegistryError
    assert (located.status, located.retry_after, located.codes) == (429, 7.0, ("TOOMANYREQUESTS",))
    assert (located.layer, located.span, located.file) == (_LAYER, 0, "/bin/sh")
    assert located.args == cause.args and cause.layer == ""  # the first one may be told to others


def test_every_class_can_be_located() -> None:
    class Odd(LostUploadError):
        def __init__(self) -> None:
            super().__init__("odd", 500)

    with pytest.raises(Odd, match=r"^app:1: odd$") as caught, errors_at(image="app:1"):
        raise Odd
    assert caught.value.status == 500 and isinstance(caught.value.__cause__, Odd)
    with pytest.raises(ValueError, match=r"^mine$"), errors_at(place="oci:/images"):
        raise ValueError("mine")


def test_what_a_registry_lacks_and_a_registry_that_is_silent_are_two_things() -> None:
    missing = NotInRegistryError("404", 404)
    assert isinstance(missing, NotFoundError) and isinstance(missing, RegistryError)
    assert not isinstance(UnreachableError("refused"), NotFoundError)
    assert issubclass(IntegrityError, SociError)
