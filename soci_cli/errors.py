"""The one error family.

Every error that a user can cause, or that bad input can cause, is a `SociError`. Its text is one line
that says what happened, to which image, layer or file, and what to do. The command line prints that
line and exits with `exit_code`; everything else is a defect and shows as a traceback with --debug.
"""

from __future__ import annotations


class SociError(Exception):
    """Base of all errors that this package raises on purpose."""

    exit_code = 1


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
    """A layer that is valid but cannot be indexed, such as one with a sparse file."""


class StorageError(SociError):
    """The disk, a folder or the local store refused: full, not writable, locked."""


class RegistryError(SociError):
    """A registry refused, answered nonsense, or could not be reached.

    `status` is HTTP's, if any, and `retry_after` the seconds that it asked to wait.
    """

    def __init__(
        self, message: str, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class LostUploadError(RegistryError):
    """A registry forgot an unfinished upload; the blob must be sent again from its start."""


class MountError(SociError):
    """A folder cannot be mounted on or unmounted: no permission, nothing mounted there."""


class BusyError(MountError):
    """A mounted folder is in use."""
