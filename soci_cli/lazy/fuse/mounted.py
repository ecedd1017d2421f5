"""An image that is mounted and served, by the process that mounted it or by one that took it over."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from soci_cli.closing import Closing
from soci_cli.errors import MountError, NotMountedError
from soci_cli.kernel.fuse_device import abort_connection, new_name
from soci_cli.kernel.namespaces import is_initial_user_namespace
from soci_cli.kernel.points import MountIdentity, identify
from soci_cli.kernel.unmount import check_uppermost, unmount
from soci_cli.lazy.fuse.filesystem import (
    TRUSTED_MARK,
    USER_MARK,
    LayersTree,
    MergedTree,
    Tree,
)
from soci_cli.lazy.fuse.journal import Journal
from soci_cli.lazy.fuse.owners import namespace_owners, same_owners
from soci_cli.lazy.fuse.session import Log, OnRead, Session
from soci_cli.lazy.merged import LazyImage

_FAREWELL = 1.0
JOURNAL = "journal"
"""The name of the descriptor of what is written down of requests, on kernels that do not resend them."""


@dataclass(frozen=True)
class Handover:
    """What another process must know to serve a mount on, besides its descriptors.

    `agreed` are the flags that INIT agreed on. `identity` is what is mounted at the target, `connection`
    is the number of the FUSE connection, if root mounted it; `layers` is where the FUSE file system is
    mounted, if that is not the target, and `below` its identity.
    """

    kind: str
    agreed: int
    identity: MountIdentity
    connection: int | None = None
    layers: Path | None = None
    below: MountIdentity | None = None


class Program(Protocol):
    """A program that joins layers."""

    def kill(self) -> None:
        """Ends it at once."""

    def wait(self) -> object:
        """Waits until it has ended."""


class MountedImage(Closing):
    """An image that is mounted and served. The image must be closed after this."""

    is_served = True
    """Whether it needs this process, or another one."""

    def __init__(
        self,
        kind: str,
        target: Path,
        session: Session,
        overlay: Program | None = None,
        layers: Path | None = None,
        connection: int | None = None,
        descriptors: Mapping[str, int] | None = None,
        identities: Sequence[MountIdentity] = (),
    ) -> None:
        """`layers` is where the FUSE file system is mounted, if that is not the target; `connection` is its
        number, if root mounted it. Of `descriptors`, by what they are, a successor needs copies; they are
        closed with this. `identities` are those of the target and of `layers`, if known.
        """
        self.kind = kind
        """Who joins the layers: "overlay", "fuse-overlayfs", or the server itself: "fuse", "erofs"."""
        self.target = target
        paths = [target, *([layers] if layers is not None else [])]
        self._mounts = dict(zip(paths, identities or map(identify, paths), strict=True))
        self.identity = self._mounts[target]
        """What is mounted at the target."""
        self.on_end: Callable[[], None] = lambda: None
        """Called before the connection is ended: nobody else may hold it then."""
        self._session = session
        self._overlay = overlay
        self._layers = layers
        self._connection = connection
        self._descriptors = dict(descriptors or {})

    def handover(self, patience: float) -> tuple[Handover, dict[str, int]]:
        """What a successor needs, and copies of the descriptors by what they are, the connection's first.

        OSError after the end, or where the kernel takes longer than `patience` seconds to begin.
        """
        below = self._mounts[self._layers] if self._layers is not None else None
        agreed = self._session.agreed(patience)
        handover = Handover(self.kind, agreed, self.identity, self._connection, self._layers, below)
        copies = {"connection": self._session.duplicate()}
        try:
            for name, fd in self._descriptors.items():
                copies[name] = os.dup(fd)
            if self._session.journal is not None:
                copies[JOURNAL] = os.dup(self._session.journal.fd)
        except OSError:
            for fd in copies.values():
                os.close(fd)
            raise
        return handover, copies

    def take_up(self, journal: int) -> None:
        """Answers what another server left in its journal, whose descriptor belongs to this now."""
        with suppress(OSError), Journal(journal) as left:
            self._session.replay(left)

    def serve(self) -> None:
        """Waits until the image is unmounted, by anyone, or `abort` was called."""
        self._session.wait()

    def unmount(self) -> None:
        """Unmounts, unless it is in use. Raises as `kernel.unmount` does."""
        unmount(self.target, self.identity)

    def abort(self) -> None:
        """Ends the connection, so that all who wait for something get an error, and unmounts.

        CoveredError, and nothing is done, where another mount lies on it.
        """
        with suppress(NotMountedError):  # others may have it still
            check_uppermost(self.target, self.identity)
        self._end()

    def close(self) -> None:
        """Unmounts, if that was not done: who still uses it gets errors."""
        if not self._session.wait(0):
            self._end()
        if self._overlay is not None:
            self._overlay.kill()
            self._overlay.wait()
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _end(self) -> None:
        self.on_end()
        end_connection(self._session, self._layers or self.target, self._connection)
        for path, identity in self._mounts.items():
            with suppress(MountError):
                unmount(path, identity, force=True)


def resume_image(
    tree: Tree,
    target: Path,
    handover: Handover,
    descriptors: Mapping[str, int],
    log: Log,
    on_read: OnRead | None = None,
) -> MountedImage:
    """Serves on what another process mounted and served. Asks nothing of the mount: nobody would answer.

    `descriptors` are those of `MountedImage.handover`, which belong to the mount from now on; `tree` is
    what is served. Raises MountError, and what opening a layer raises.
    """
    kept = dict(descriptors)
    program = _Inherited(kept["program"]) if "program" in kept else None
    journal = Journal(kept.pop(JOURNAL)) if JOURNAL in kept else None
    session = start_session(
        Session(kept.pop("connection"), tree, log, on_read, handover.agreed, journal), target
    )
    if program is not None and handover.layers and handover.below:
        follow_program(program, handover.layers, handover.below)
    identities = [one for one in (handover.identity, handover.below) if one is not None]
    return MountedImage(
        handover.kind,
        target,
        session,
        program,
        handover.layers,
        handover.connection,
        kept,
        identities,
    )


def start_session(session: Session, target: Path) -> Session:
    """Serves a session in a thread of its own. MountError."""
    try:
        threading.Thread(target=session.run, name="soci-fuse", daemon=True).start()
    except RuntimeError as error:
        session.drop()
        raise MountError(f"{target} cannot be served: {error}") from error
    return session


class _Inherited:
    """A program that another process started, by its pidfd. Implements `Program`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def kill(self) -> None:
        """See `Program.kill`."""
        with suppress(OSError):
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)

    def wait(self) -> None:
        """See `Program.wait`."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll()


def tree_of(kind: str, image: LazyImage) -> Tree:
    """What is served for a kind of mount by this user."""
    is_real = os.geteuid() != 0 or is_initial_user_namespace()
    owners = same_owners if is_real else namespace_owners()
    if kind == "fuse":
        return MergedTree(image, owners)
    mark = TRUSTED_MARK if kind == "overlay" and is_real else USER_MARK
    return LayersTree(image, mark, owners)


def follow_program(program: Program, layers: Path, below: MountIdentity) -> None:
    """When the target is unmounted, its program ends, and nobody needs the layers any more."""

    def follow() -> None:
        program.wait()
        with suppress(MountError):
            unmount(layers, below, force=True)

    threading.Thread(target=follow, name="soci-mount", daemon=True).start()


def end_connection(session: Session, path: Path, connection: int | None) -> None:
    """Ends a connection by its number, or by way of its file system, which is seen at `path`."""
    session.abort()
    if connection is not None and abort_connection(connection):
        session.wait(_FAREWELL)
        return

    def ask() -> None:
        # Its thread waits for a request, so it gets one.
        with suppress(OSError):
            new_name(path).lstat()

    threading.Thread(target=ask, name="soci-mount", daemon=True).start()
    session.wait(_FAREWELL)
