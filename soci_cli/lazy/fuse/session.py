"""One FUSE connection: requests from the kernel are read by one thread, which waits for nothing else.

What can be answered at once is. A read of bytes that are not here is answered by the thread that gets them,
so a layer that hangs holds up nothing but reads of itself.
"""

from __future__ import annotations

import errno
import os
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path

from soci_cli.errors import SociError
from soci_cli.lazy.fuse import wire
from soci_cli.lazy.fuse.filesystem import Tree
from soci_cli.lazy.fuse.journal import Journal, new_file
from soci_cli.lazy.layer_bytes import Name
from soci_cli.processes.identity import is_dying
from soci_cli.text import brief

_WANTED = (
    wire.ASYNC_READ
    | wire.DO_READDIRPLUS
    | wire.NO_OPEN_SUPPORT
    | wire.PARALLEL_DIROPS
    | wire.MAX_PAGES
    | wire.CACHE_SYMLINKS
    | wire.NO_OPENDIR_SUPPORT
    | wire.EXPLICIT_INVAL_DATA
)
_COPIED = 4096  # up to here, joining is quicker than writing in parts
_WATCH_PAUSE = 0.5
_DOTS = 2  # names in every folder: itself and the one above
_MAX_LISTINGS = 64
_MAX_LISTED = 50_000
_WITHOUT, _RESEND = "SOCI_WITHOUT", "resend"  # as if the kernel did not have it

Log = Callable[[str], None]
OnRead = Callable[[int, int], None]


class Session:
    """Serves a tree over the file descriptor of a FUSE connection, which it closes at its end."""

    def __init__(
        self,
        fd: int,
        tree: Tree,
        log: Log,
        on_read: OnRead | None = None,
        agreed: int | None = None,
        journal: Journal | None = None,
        wanted: int = 0,
    ) -> None:
        """`log` is given a line for each read that fails.

        `on_read` is called with layer and entry when a file is read, again only after another file was.
        `agreed` are the flags of INIT that an earlier server of the connection agreed on with the kernel,
        which does not ask twice, and `journal` what that server has left. `wanted` are flags of INIT beside
        those that are always asked for.
        """
        self._fd = fd
        self._tree = tree
        self._log = log
        self._on_read = on_read
        self._retries = tree.retries
        self._last_read = -1, -1
        self._wanted = _WANTED | wanted
        self._buffer = memoryview(bytearray(wire.MAX_READ))
        self._turn = threading.Lock()  # of what answers requests
        self.journal = journal
        """Where requests are written down, on kernels that do not give them out again."""
        self._listings: OrderedDict[int, list[tuple[bytes, int]]] = OrderedDict()
        self._listed = 0
        self._waiting: dict[
            int, int
        ] = {}  # threads by request, 0 for those that cannot be seen here
        self._interrupted: dict[int, int] = {}
        self._aborted = False
        self._ended = threading.Event()
        self._mutex = threading.Lock()  # of the descriptor, for all but the thread in `run`
        self._watcher: threading.Thread | None = None
        self._no_open: set[int] = set()
        self._agreed: Future[int] = Future()
        if agreed is not None:
            self._agree(agreed)
        self._handlers: dict[int, Callable[[int, memoryview], bytes]] = {
            wire.LOOKUP: self._lookup,
            wire.GETATTR: self._getattr,
            wire.READLINK: self._readlink,
            wire.STATFS: self._statfs,
            wire.READDIR: self._readdir,
            wire.READDIRPLUS: self._readdirplus,
            wire.GETXATTR: self._getxattr,
            wire.LISTXATTR: self._listxattr,
            wire.RELEASE: self._nothing,
            wire.RELEASEDIR: self._nothing,
            wire.DESTROY: self._nothing,
            **dict.fromkeys(wire.WRITING, self._refuse),
        }

    def run(self) -> None:
        """Serves until the file system is unmounted, or the connection aborted."""
        try:
            if self.journal is not None:
                self.replay(self.journal)
            view = memoryview(bytearray(wire.READ_BUFFER))
            while not self._aborted:
                if self.journal is not None:
                    view = self.journal.buffer
                try:
                    length = os.readv(self._fd, (view,))
                except InterruptedError:
                    continue
                except OSError as error:
                    # ENOENT: the request was interrupted before it could be read.
                    if error.errno in (errno.EAGAIN, errno.ENOENT):
                        continue
                    if error.errno not in (errno.ENODEV, errno.ECONNABORTED, errno.EBADF):
                        self._log(f"{self._tree.image.name}: the FUSE connection broke: {error}")
                    return
                if not length:
                    return
                with self._turn:
                    self._serve(view[:length])
        finally:
            self.abort()
            self.drop()

    def replay(self, journal: Journal) -> None:
        """Answers what another server left. Any thread may do so."""
        for request in journal.left():
            with self._turn:
                self._serve(request)

    def drop(self) -> None:
        """Closes the descriptor, at the end or where nobody runs it."""
        with self._mutex:
            fd, self._fd = self._fd, -1
            os.close(fd)
            if self.journal is not None:
                self.journal.close()
        self._ended.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the end; whether it came."""
        return self._ended.wait(timeout)

    def agreed(self, timeout: float) -> int:
        """The flags that were agreed on with the kernel. TimeoutError where it did not ask in time."""
        try:
            return self._agreed.result(timeout)
        except FutureTimeout:
            raise TimeoutError("the kernel did not begin") from None

    def duplicate(self) -> int:
        """Another descriptor of the connection. OSError after the end."""
        with self._mutex:
            return os.dup(self._fd)

    def abort(self) -> None:
        """Fails all reads that wait. The next request of any kind ends the connection."""
        self._aborted = True
        for unique in list(self._waiting):
            self._finish(unique, -errno.EIO, b"")

    # Requests.

    def _serve(self, request: memoryview) -> None:
        """Answers one request."""
        if len(request) < wire.IN_HEADER.size:
            return
        _, opcode, unique, node, _, _, thread, _, _ = wire.IN_HEADER.unpack_from(request)
        body = request[wire.IN_HEADER.size :]
        if opcode in (wire.FORGET, wire.BATCH_FORGET):
            return
        try:
            if opcode == wire.READ:
                self._read(unique, node, thread, request)
                return
            if opcode == wire.INTERRUPT:
                self._interrupt(body)
                return
            handler = self._handlers.get(opcode)
            if handler is not None:
                self._answer(unique, 0, handler(node, body))
            elif opcode == wire.INIT:
                self._answer(unique, 0, self._init(body))
            elif opcode in (wire.OPEN, wire.OPENDIR):
                self._answer(unique, 0, self._open(opcode))
            else:
                self._answer(unique, -errno.ENOSYS, b"")
        except OSError as error:
            self._answer(unique, -(error.errno or errno.EIO), b"")
        except SociError as error:
            self._log(f"{self._tree.image.name}: {error}")
            self._answer(unique, -errno.EIO, b"")
        except Exception as error:  # noqa: BLE001 - a defect must not take the mount with it
            self._log(f"{self._tree.image.name}: request {opcode} failed: {_last_line(error)}")
            self._answer(unique, -errno.EIO, b"")

    def _answer(self, unique: int, error: int, data: bytes | memoryview) -> None:
        header = wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(data), error, unique)
        try:
            if len(data) < _COPIED:
                os.write(self._fd, b"".join((header, data)))
            else:
                os.writev(self._fd, (header, data))
        except OSError as problem:
            # ENOENT: nobody waits any more. ENODEV and EBADF: the end, which the next read shows.
            if problem.errno not in (errno.ENOENT, errno.ENODEV, errno.EBADF):
                self._log(f"{self._tree.image.name}: an answer was refused: {problem}")

    def _init(self, body: memoryview) -> bytes:
        major, minor, _, _ = wire.INIT_IN.unpack_from(body)
        offered = wire.init_flags(body)
        if (major, minor) < (wire.MAJOR, wire.OLDEST_MINOR):
            self._log(
                f"FUSE {major}.{minor} of this kernel is too old; Linux 5.4 is needed at least"
            )
            raise OSError(errno.EPROTO, "the kernel is too old")
        flags = offered & self._wanted
        without = os.environ.get(_WITHOUT, "").split()
        if not offered & wire.HAS_RESEND or _RESEND in without:
            with suppress(OSError):
                self.journal = Journal(new_file())
        if not self._agreed.done():
            self._agree(flags)
        return wire.init_out(minor, flags)

    def _agree(self, flags: int) -> None:
        # The kernel opens without asking once it was answered ENOSYS.
        if flags & wire.NO_OPEN_SUPPORT:
            self._no_open.add(wire.OPEN)
        if flags & wire.NO_OPENDIR_SUPPORT:
            self._no_open.add(wire.OPENDIR)
        self._agreed.set_result(flags)

    def _open(self, opcode: int) -> bytes:
        if opcode == wire.OPEN and self._tree.is_direct:
            return wire.OPEN_OUT.pack(0, wire.DIRECT_IO, 0)
        if opcode in self._no_open:
            raise OSError(errno.ENOSYS, "opened without asking")
        return wire.OPEN_OUT.pack(0, wire.KEEP_CACHE | wire.CACHE_DIR * (opcode == wire.OPENDIR), 0)

    def _nothing(self, node: int, body: memoryview) -> bytes:
        return b""

    def _refuse(self, node: int, body: memoryview) -> bytes:
        raise OSError(errno.EROFS, "nothing can be written")

    def _lookup(self, parent: int, body: memoryview) -> bytes:
        name = _text(body)
        if len(name) > wire.MAX_NAME:
            raise OSError(errno.ENAMETOOLONG, "the name is too long")
        node = self._tree.lookup(parent, name)
        if not node:
            return wire.NO_ENTRY
        try:
            return wire.entry_out(node, self._tree.attr(node))
        except FileNotFoundError:  # it has a type that cannot be shown
            return wire.NO_ENTRY

    def _getattr(self, node: int, body: memoryview) -> bytes:
        return wire.attr_out(self._tree.attr(node))

    def _readlink(self, node: int, body: memoryview) -> bytes:
        target = self._tree.link(node)
        if len(target) > wire.MAX_LINK:
            raise OSError(errno.ENAMETOOLONG, "the link is too long")
        return target

    def _statfs(self, node: int, body: memoryview) -> bytes:
        return wire.statfs_out(sum(layer.descriptor.size for layer in self._tree.image.layers))

    def _getxattr(self, node: int, body: memoryview) -> bytes:
        size, _ = wire.XATTR_IN.unpack_from(body)
        value = self._tree.xattr(node, _text(body[wire.XATTR_IN.size :]))
        if value is None:
            raise OSError(errno.ENODATA, "no such attribute")
        return _sized(value, size)

    def _listxattr(self, node: int, body: memoryview) -> bytes:
        size, _ = wire.XATTR_IN.unpack_from(body)
        return _sized(b"".join(key + b"\0" for key, _ in self._tree.xattrs(node)), size)

    # Folders.

    def _readdir(self, node: int, body: memoryview) -> bytes:
        return self._list(node, body, self._plain, 0)

    def _readdirplus(self, node: int, body: memoryview) -> bytes:
        return self._list(node, body, self._plus, wire.PLUS_SIZE)

    def _list(
        self, node: int, body: memoryview, pack: Callable[[int, bytes, int], bytes], more: int
    ) -> bytes:
        """What of a folder fits into an answer. The offset is how many names were given before."""
        _, offset, size, _ = wire.READ_IN.unpack_from(body)
        listing = self._listing(node, offset)
        parts = []
        for number in range(offset, len(listing)):
            name, child = listing[number]
            needed = more + wire.dirent_size(name)
            if needed > size:
                break
            try:
                parts.append(pack(number + 1, name, child))
            except FileNotFoundError:  # it has a type that cannot be shown
                continue
            size -= needed
        return b"".join(parts)

    def _plain(self, offset: int, name: bytes, node: int) -> bytes:
        return wire.dirent(node, offset, wire.mode_of(self._tree.attr(node)), name)

    def _plus(self, offset: int, name: bytes, node: int) -> bytes:
        if offset <= _DOTS:
            return wire.dots_plus(node, offset, name)
        return wire.dirent_plus(node, offset, self._tree.attr(node), name)

    def _listing(self, node: int, offset: int) -> Sequence[tuple[bytes, int]]:
        """What is in a folder; kept for a while, because a long folder takes many requests."""
        listing = self._listings.pop(node, None)
        if listing is None:
            parent = self._tree.parent(node)
            listing = [(b".", node), (b"..", parent), *self._tree.children(node)]
            self._listed += len(listing)
        self._listings[node] = listing
        while len(self._listings) > 1 and (
            self._listed > _MAX_LISTED or len(self._listings) > _MAX_LISTINGS
        ):
            _, dropped = self._listings.popitem(last=False)
            self._listed -= len(dropped)
        return listing

    # Reading.

    def _read(self, unique: int, node: int, thread: int, request: memoryview) -> None:
        _, offset, size, _ = wire.READ_IN.unpack_from(request, wire.IN_HEADER.size)
        content = self._tree.content(node)
        if self._on_read is not None:
            read = content.layer, content.entry_at(offset)
            if read != self._last_read:
                self._last_read = read
                self._on_read(*read)
        length = max(0, min(size, content.size - offset))
        start = content.offset + offset
        name = content.name_at(offset)
        data = self._buffer[:length] if length <= wire.MAX_READ else memoryview(bytearray(length))
        try:
            if content.archive.read_now(start, data, name):
                self._answer(unique, 0, data)
                return
            known = self._retries and self._retries.error_of(thread, node, offset, size)
            if known:
                self._log_failure(content.layer, name, known)
                raise OSError(errno.EIO, "unreadable a moment ago")
            future = content.archive.submit(start, length, name)
        except SociError as error:
            self._log_failure(content.layer, name, error)
            raise OSError(errno.EIO, "unreadable") from None
        self._waiting[unique] = thread
        if self.journal is not None:
            self.journal.add(unique, request)

        def complete(future: Future[bytes]) -> None:
            """Answers a read that waited. In the thread that got its bytes."""
            error = future.exception()
            if error is None:
                self._finish(unique, 0, future.result())
                return
            if self._retries is not None:
                self._retries.failed(thread, node, offset, size, error)
            # First the log: who gets the error may look there.
            self._log_failure(content.layer, name, error)
            self._finish(unique, -errno.EIO, b"")

        future.add_done_callback(complete)

    def _finish(self, unique: int, status: int, data: bytes) -> None:
        """Answers a read that waited, unless that was done already."""
        if self._waiting.pop(unique, None) is None:
            return
        with self._mutex:
            if self._fd >= 0:
                self._answer(unique, status, data)
        if self.journal is not None:
            self.journal.remove(unique)

    def _log_failure(self, number: int, name: Name, error: BaseException) -> None:
        """A line about a read of a layer that failed."""
        if not isinstance(error, SociError):
            error = SociError(_last_line(error))
        image = self._tree.image
        layer = image.layers[number].descriptor.digest
        file = brief(b"/" + name())
        self._log(f"cannot read {error.at(image=image.name, layer=layer, file=file)}")

    # Interrupts. Only who is being killed is let go: others may not expect an interrupted read, and
    # for a page of a program that is run it would be fatal.

    def _interrupt(self, body: memoryview) -> None:
        (unique,) = wire.INTERRUPT_IN.unpack_from(body)
        thread = self._waiting.get(unique)
        if not thread:
            return
        if is_dying(thread):
            self._finish(unique, -errno.EINTR, b"")
            return
        # The kernel says it once only, and the signal that kills may come later.
        self._interrupted[unique] = thread
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, name="soci-watch", daemon=True)
            self._watcher.start()

    def _watch(self) -> None:
        """Lets those go that were interrupted and are killed now."""
        while not self._ended.wait(_WATCH_PAUSE):
            for unique, thread in list(self._interrupted.items()):
                if unique not in self._waiting:
                    del self._interrupted[unique]
                elif is_dying(thread):
                    self._finish(unique, -errno.EINTR, b"")


def _text(body: memoryview) -> bytes:
    """A name that ends with NUL."""
    return bytes(body).partition(b"\0")[0]


def _sized(value: bytes, size: int) -> bytes:
    """The answer about xattrs: the value, or only its size when no room was offered."""
    if not size:
        return wire.XATTR_OUT.pack(len(value), 0)
    if len(value) > size:
        raise OSError(errno.ERANGE, "too small")
    return value


def _last_line(error: BaseException) -> str:
    """What and where, for a defect."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = "".join(traceback.format_exception_only(error)).strip()
    return f"{' '.join(text.split())} ({Path(place.filename).name}:{place.lineno})"
