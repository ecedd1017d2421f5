"""What happens to the errors of a command: one line, and an exit status."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click

from soci_cli.commands.app import App
from soci_cli.errors import SociError


class ReaderIsGone(Exception):
    """Who read our output went away. Not an OSError, which click would turn into exit status 1."""


def status_of(app: App, command: Callable[[], Any]) -> int:
    """Runs a command; the exit status, with what went wrong said on stderr.

    0 for success, 1 for what went wrong, 2 for a command line that cannot be meant, 130 for Ctrl-C.
    """
    try:
        try:
            status = command()
        finally:
            app.output.close()
        flush_output()
        return status if isinstance(status, int) else 0
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        app.output.error("interrupted")
        return 130
    except (BrokenPipeError, ReaderIsGone):
        _drop_output()
        return 141
    except SociError as error:
        report(app, f"{error}{_crashed(error)}")
        return error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        report(app, f"{where}{error.strerror or error}{_crashed(error)}")
        try:
            flush_output()
        except OSError:
            _drop_output()
        return 1
    except MemoryError:
        report(app, "not enough memory")
        return 1
    except Exception as error:  # noqa: BLE001 - a defect, of which a user should see one line too
        if app.debug:
            traceback.print_exc()
        said = f"{type(error).__name__}: {error}"
        report(app, f"internal error: {said}; --debug shows where, please report it")
        return 1


_OF_CRASHES = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)  # by FUSE, and by EROFS


def _crashed(error: BaseException | None) -> str:
    """What to say of mounts whose server crashed, where an error comes from such a folder."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OF_CRASHES:
            from soci_cli.lazy.mounts.records import Mounts, is_well, state_root

            with suppress(SociError):
                mounts = Mounts(state_root(os.environ)).of(None)
                crashed = [one[1].target for one in mounts if not is_well(one)]
                if error.errno == errno.EIO:  # which may have other causes
                    file = os.path.abspath(os.fsdecode(error.filename or ""))  # noqa: PTH100
                    crashed = [target for target in crashed if file.startswith(f"{target}/")]
                if crashed:
                    return f"; the mount at {', '.join(crashed)} crashed: soci umount takes it away"
        error = error.__cause__
    return ""


def flush_output() -> None:
    """Writes what is left of the output, where there is any: stdout may be closed. OSError."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _drop_output() -> None:
    """Keep Python from trying again, at its end, to write what cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report(app: App, message: str) -> None:
    """Says on stderr what went wrong."""
    app.output.error(message)
