"""The process that keeps what must outlive a server of mounts, and starts a successor when it ends.

For each mount it has descriptors: first the mount's state in a file in memory, which it does not read, then
the lock of its folder, then the FUSE connection, then more. It runs as a file and imports next to nothing,
so it stays small. Messages are packets, a word and a name, with the descriptors:

    server to holder   start HOW         how a successor is started: program, file, arguments, between NULs
                       keep NAME         what belongs to a mount, or to the server itself
                       drop NAME         it is over
                       replace HOW       start a successor now
                       ready             a successor serves all
                       end               all is over, whatever is left
    holder to server   give NAME         to a successor: what was kept
                       all               to a successor: that was it; "all replacing" while one serves
                       leave             to the one before: a successor is ready
                       failed            to the one before: there is none
                       alone             to a successor: the one before has ended
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress

MAX_PACKET = 1 << 16
MAX_DESCRIPTORS = 250
"""In one packet; the kernel takes 253."""

_RESEND = (16).to_bytes(4, sys.byteorder) + (7).to_bytes(4, sys.byteorder) + bytes(8)
_FUSE = 2  # which descriptor of a mount is its connection
_DIGITS = 8  # of `processes.spawn`
_SOON = 0.3  # seconds after it was ready: a server that ends so soon may always do so
_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_MOST_FAILURES = 10
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # the server ends all when it is told to


class Server:
    """A server at the other end of a socket; `pid` is 0 for one that this process did not start."""

    def __init__(self, connection: socket.socket, pid: int = 0) -> None:
        self.connection = connection
        self.pid = pid

    def tell(self, text: bytes, fds: list[int] | None = None) -> None:
        """Sends a packet. One that is gone shows itself at the next look."""
        with suppress(OSError):
            socket.send_fds(self.connection, [text], fds or [])

    def hear(self) -> tuple[bytes, bytes, list[int]]:
        """The word, the rest and the descriptors of the next packet; no word at the end."""
        try:
            packet, fds, _, _ = socket.recv_fds(
                self.connection, MAX_PACKET, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            packet, fds = b"", []
        word, _, rest = packet.partition(b" ")
        return word, rest, list(fds)


class Holder:
    """What is kept, and who serves it."""

    def __init__(self, server: Server) -> None:
        self._kept: dict[bytes, list[int]] = {}
        self._how = b""
        self._server: Server | None = server
        self._leaving: Server | None = None
        self._next: Server | None = None
        self._since = time.monotonic()
        self._failures = 0
        self._begin_at: float | None = None

    def run(self) -> None:
        """Until there is nothing to keep."""
        while self._server or self._next or self._leaving or self._begin_at is not None:
            poll = select.poll()
            servers = [one for one in (self._server, self._leaving, self._next) if one]
            for one in servers:
                poll.register(one.connection, select.POLLIN)
            left = None
            if self._begin_at is not None:
                left = max(0.0, self._begin_at - time.monotonic()) * 1000
            ready = {fd for fd, _ in poll.poll(left)}
            for one in servers:
                if one.connection.fileno() in ready:
                    self._listen(one)
            if self._begin_at is not None and time.monotonic() >= self._begin_at:
                self._begin_at = None
                self._begin(self._how)
            _reap()

    def _listen(self, server: Server) -> None:
        word, rest, fds = server.hear()
        if server is self._server:
            self._listen_to_server(word, rest, fds)
            return
        for fd in fds:
            os.close(fd)
        if server is self._next and word == b"ready":
            self._leaving, self._server, self._next = self._server, server, None
            self._since = time.monotonic()
            if self._leaving:
                self._leaving.tell(b"leave")
            else:
                server.tell(b"alone")
        elif not word:
            server.connection.close()
            if server is self._leaving:
                self._leaving = None
                self._resend()
                if self._server:
                    self._server.tell(b"alone")
            else:
                self._next = None
                self._missing(server)

    def _listen_to_server(self, word: bytes, rest: bytes, fds: list[int]) -> None:
        if word == b"keep":
            self._drop(rest)
            self._kept[rest] = fds
        elif word == b"drop":
            self._drop(rest)
        elif word == b"start":
            self._how = rest
        elif word == b"replace" and self._next is None:
            self._begin(rest)
        elif word == b"end" or not word:
            if word:
                for name in list(self._kept):
                    self._drop(name)
            self._gone()

    def _gone(self) -> None:
        """The server has ended: by itself, with nothing left, or not."""
        server, self._server = self._server, None
        if server is not None:
            server.connection.close()
        if not any(len(fds) > _FUSE for fds in self._kept.values()):
            if self._next:
                self._next.connection.close()
            self._next = self._begin_at = None
            return
        self._resend()
        how = _how_ended(server.pid) if server else ""
        _say(f"the server ended{how}; another one takes over its mounts")
        soon = time.monotonic() - self._since < _SOON
        self._failures = self._failures + 1 if soon else 0
        if self._next is None:
            self._later()

    def _missing(self, successor: Server) -> None:
        """A successor ended before it was ready."""
        how = _how_ended(successor.pid)
        self._resend()
        if self._server:
            _say(f"the server that should have taken over ended{how}; the one before goes on")
            self._server.tell(b"failed")
            return
        _say(f"the server that should have taken over ended{how}")
        self._failures += 1
        self._later()

    def _later(self) -> None:
        """Sees to another successor, after a pause that grows, or ends all."""
        count = self._failures
        if count >= _MOST_FAILURES:
            _say(f"{count} servers ended at once, one after the other: these mounts are given up")
            for name in list(self._kept):
                self._drop(name)
            return
        pause = min(_LONGEST_PAUSE, _PAUSE * 2 ** (count - 2)) if count > 1 else 0.0
        self._begin_at = time.monotonic() + pause

    def _begin(self, how: bytes) -> None:
        """Starts a successor and gives it all that is kept."""
        self._how = how
        program, script, arguments = how.split(b"\0", 2)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = os.fork()  # there are no threads here
        except OSError as error:
            _say(f"no server can be started: {error.strerror}")
            theirs.close()
            pid = 0
        else:
            if not pid:
                _become(theirs.fileno(), [program, b"-I", b"-S", script])
            theirs.close()
        self._next = Server(ours, pid)
        self._next.tell(b"%0*d" % (_DIGITS, len(arguments)))
        self._next.tell(arguments)
        for name, fds in self._kept.items():
            self._next.tell(b"give " + name, fds)
        self._next.tell(b"all replacing" if self._server else b"all")

    def _resend(self) -> None:
        """Asks the kernel for the requests that a server took and did not answer (Linux 6.9)."""
        is_off = "resend" in os.environ.get("SOCI_WITHOUT", "").split()  # for tests
        for fds in self._kept.values():
            if len(fds) > _FUSE and not is_off:
                with suppress(OSError):  # it knows no such thing, or the mount is gone
                    os.write(fds[_FUSE], _RESEND)

    def _drop(self, name: bytes) -> None:
        for fd in self._kept.pop(name, []):
            os.close(fd)


def _become(connection: int, command: list[bytes]) -> None:
    """The child after a fork: a program with a connection as its stdin."""
    try:
        os.setsid()
        for number in _IGNORED:
            signal.signal(number, signal.SIG_DFL)
        os.dup2(connection, 0)
        os.execv(command[0], command)
    except OSError as error:
        _say(f"no server can be started: {error.strerror}")
    finally:
        os._exit(1)


def _how_ended(pid: int) -> str:
    """How a child ended, as the rest of a sentence."""
    deadline = time.monotonic() + 1
    while pid and time.monotonic() < deadline:
        try:
            done, status = os.waitpid(pid, os.WNOHANG)
        except OSError:
            break
        if done:
            number = os.waitstatus_to_exitcode(status)
            return f" by signal {-number}" if number < 0 else f" with status {number}"
        time.sleep(0.002)
    return ""


def _reap() -> None:
    """Lets children go that ended."""
    with suppress(OSError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _say(text: str) -> None:
    """A line in the server's log."""
    line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {text}\n"
    with suppress(OSError):
        os.write(2, line.encode())


def main() -> None:
    """Keeps what comes over stdin."""
    connection = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    with open("/proc/self/comm", "wb", 0) as comm:  # noqa: PTH123 - pathlib is large
        comm.write(b"soci-holder")
    Holder(Server(connection)).run()


if __name__ == "__main__":
    main()
