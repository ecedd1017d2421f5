"""The one error family.

Every error that a user can cause, or that bad input can cause, is a `SociError`: what happened and what to
do as `message`, and where as fields. Its text, which the command line prints, is one line of both; the
exit status is `exit_code`. Everything else is a defect, which shows as a traceback with --debug. Code that
must tell errors apart goes by class and fields, never by the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypedDict, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Unpack  # of typing from Python 3.11 on

_Error = TypeVar("_Error", bound="SociError")


class Where(TypedDict, total=False):
    """Where an error happened, as far as that is known.

    `place` is the place as users write it, `image` a reference, `layer` a digest, `span` the number of a
    span, from 0, and `file` a path, in the image or on the disk, fit to be shown.
    """

    place: str
    image: str
    layer: str
    span: int | None
    file: str


class SociError(Exception):
    """Base of all errors that this package raises on purpose; the fields are those of `Where`."""

    exit_code = 1
    place: str = ""
    image: str = ""
    layer: str = ""
    span: int | None = None
    file: str = ""
    _names_url = False  # whether the message itself says which server was asked

    def __init__(self, message: str, **where: Unpack[Where]) -> None:
        super().__init__(message)
        self.message = message
        self._fill(where)

    def at(self: _Error, **where: Unpack[Where]) -> _Error:
        """This error once more, of the same class, with fields that it lacked.

        What is known keeps its value: the code next to the cause knows best. A copy, because threads that
        wait for the same thing are given the same error.
        """
        copy = type(self).__new__(type(self))
        copy.args = self.args
        copy.__dict__.update(self.__dict__)
        copy._fill(where)
        return copy

    def explained(self: _Error, text: str) -> _Error:
        """This error once more, of the same class, with what it means to the caller before its message."""
        copy = self.at()
        copy.message = f"{text}: {self.message}"
        return copy

    def _fill(self, where: Where) -> None:
        for name, value in where.items():
            if getattr(self, name) in ("", None):
                setattr(self, name, value)

    def __str__(self) -> str:
        """The line: where, as far as the message does not say it itself, and what happened."""
        layer = f"layer {self.layer}" if self.layer and self.layer not in self.message else ""
        span = "" if self.span is None else f"span {self.span}"
        part = ", ".join(filter(None, (self.file, " of ".join(filter(None, (span, layer))))))
        names = [self.image] if self.image not in self.place else []
        if part or not self._names_url:
            names.append(self.place)
        place = ", ".join(name for name in names if name and name not in self.message)
        where = " in ".join(filter(None, (part, place)))
        return f"{where}: {self.message}" if where else self.message


@contextmanager
def explaining(text: str) -> Iterator[None]:
    """Every SociError that leaves the block is `explained`."""
    try:
        yield
    except SociError as error:
        raise error.explained(text) from error


@contextmanager
def errors_at(**where: Unpack[Where]) -> Iterator[None]:
    """Every SociError that leaves the block has these fields; see `SociError.at`."""
    try:
        yield
    except SociError as error:
        raise error.at(**where) from error


class UsageError(SociError):
    """The caller asked for something that cannot be meant: a bad size, platform, reference or place."""

    exit_code = 2


class ConfigError(SociError):
    """A settings file cannot be read, or a key in it has the wrong type."""


class NotFoundError(SociError):
    """A reference, blob, platform or file that was asked for does not exist."""


class IntegrityError(SociError):
    """Bytes do not have the digest or the size that their descriptor promised."""


class InvalidDataError(SociError):
    """Data from outside breaks its format: a manifest, a gzip stream, a tar archive, a zTOC."""


class UnsupportedLayerError(InvalidDataError):
    """A layer that is valid, but not in a form that what is to be done with it can take."""


class AlreadyExistsError(SociError):
    """Something of this name is there already."""


class StateError(SociError):
    """What was asked for is there, but not in a state in which it can be done."""


class UnavailableError(SociError):
    """It cannot be had just now; the same may succeed later."""


class StorageError(SociError):
    """The disk, a folder or the local store refused: full, not writable, locked."""


class RegistryError(SociError):
    """A registry refused, answered nonsense, or could not be reached.

    `status` is HTTP's, if any, `retry_after` the seconds that it asked to wait, `codes` are those of the
    distribution specification that it gave, such as `BLOB_UNKNOWN`, and `transient` says whether the same
    request may succeed later. `media_types` are those in a manifest that was not taken.
    """

    media_types: frozenset[str] = frozenset()

    _names_url = True

    def __init__(
        self,
        message: str,
        status: int | None = None,
        retry_after: float | None = None,
        codes: tuple[str, ...] = (),
        *,
        transient: bool = False,
        **where: Unpack[Where],
    ) -> None:
        super().__init__(message, **where)
        self.status = status
        self.retry_after = retry_after
        self.codes = codes
        self.transient = transient


class UnreachableError(RegistryError):
    """A registry gave no answer, or not all of it.

    `refused`: nothing listens there. `attempts` is how often it was tried.
    """

    attempts = 1

    def __init__(self, message: str, *, transient: bool = True, refused: bool = False) -> None:
        super().__init__(message, transient=transient)
        self.refused = refused

    def __str__(self) -> str:
        tried = f" ({self.attempts} attempts)" if self.attempts > 1 else ""
        return super().__str__() + tried


class NotInRegistryError(NotFoundError, RegistryError):
    """A registry answered 404."""


class LostUploadError(RegistryError):
    """A registry forgot an unfinished upload; the blob must be sent again from its start."""


class MountError(SociError):
    """A folder cannot be mounted on or unmounted: no permission, nothing mounted there."""


class BusyError(MountError):
    """A mounted folder is in use."""


class CoveredError(MountError):
    """Another mount lies on or in a mounted folder."""


class NotMountedError(MountError):
    """What was mounted at a folder is not there any more."""


class EndedError(MountError):
    """A mount was told to end before it was there."""

    exit_code = 143
