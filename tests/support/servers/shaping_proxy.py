"""A TCP proxy that makes a server look as if it were behind a slow, long line.

All connections share one line of a fixed rate in each direction, and every byte arrives a fixed time
after it was sent; opening a connection costs a round trip. What a line does beyond that (lost packets,
TCP's slow start) is not played. It runs in a process of its own, so that its work and that of the
process that measures do not wait for one interpreter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass

from soci_cli.closing import Closing

_PIECE = 128 << 10
_AHEAD = 0.02  # seconds of the line that may be sold before they come, against late wake-ups
_FAST = 1e9  # bytes a second that a line without a rate holds on the way
_START_SECONDS = 15.0
_STOP_SECONDS = 5.0


@dataclass(frozen=True)
class Carried:
    """What went through so far: bytes from clients (`up`) and to them (`down`), headers included."""

    connections: int
    up: int
    down: int


class ShapingProxy(Closing):
    """A proxy at `host`, 127.0.0.1 and a port that it picks, before the server at `upstream`, HOST:PORT.

    `rate` is in bytes a second each way, all connections together, None for as fast as it goes; `delay`
    is the seconds each way.
    """

    def __init__(self, upstream: str, rate: float | None = None, delay: float = 0.0) -> None:
        command = [sys.executable, __file__, upstream, str(rate or 0), str(delay)]
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            self.host = self._line()
        except BaseException:
            self.close()
            raise
        self.url = f"http://{self.host}"

    def carried(self) -> Carried:
        """What went through so far."""
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            return Carried(**json.loads(self._line()))

    def close(self) -> None:
        """Stops and breaks all connections."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        timer = threading.Timer(_START_SECONDS, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise AssertionError("the shaping proxy ended")
        return line.strip()


# The process.


class _Line:
    """One direction of the line: who takes a piece is told when its last byte is sent."""

    def __init__(self, rate: float) -> None:
        self.carried = 0
        self._rate = rate
        self._free = 0.0

    async def room(self) -> None:
        """Waits until the line is sold for less than a moment ahead."""
        loop = asyncio.get_running_loop()
        while (ahead := self._free - loop.time() - _AHEAD) > 0:
            await asyncio.sleep(ahead)

    def take(self, size: int) -> float:
        """Takes the line for so many bytes; when they are sent, by the loop's clock."""
        now = asyncio.get_running_loop().time()
        self.carried += size
        if not self._rate:
            return now
        self._free = max(now, self._free) + size / self._rate
        return self._free


class _Proxy:
    def __init__(self, upstream: str, rate: float, delay: float) -> None:
        host, _, port = upstream.rpartition(":")
        self._address = host, int(port)
        self._up, self._down = _Line(rate), _Line(rate)
        self._rate = rate
        self._delay = delay
        self._connections = 0

    def carried(self) -> Carried:
        return Carried(self._connections, self._up.carried, self._down.carried)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        pumps: list[asyncio.Task[None]] = []
        ends = [writer]
        try:
            await asyncio.sleep(2 * self._delay)
            answers, requests = await asyncio.open_connection(*self._address, limit=_PIECE)
            ends.append(requests)
            for source, target, line in (
                (reader, requests, self._up),
                (answers, writer, self._down),
            ):
                pumps.append(asyncio.ensure_future(self._pump(source, target, line)))
            await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
        except OSError:
            pass  # nobody listens there
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in ends:
                end.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: _Line
    ) -> None:
        """Passes on until the end; the end comes as late as the bytes do."""
        on_the_way: deque[tuple[float, bytes]] = deque()
        more, less = asyncio.Event(), asyncio.Event()
        # As much as the line holds, and what is sold ahead.
        room = int((self._rate or _FAST) * (self._delay + 3 * _AHEAD)) + 2 * _PIECE

        async def deliver() -> None:
            loop = asyncio.get_running_loop()
            while True:
                while not on_the_way:
                    more.clear()
                    await more.wait()
                due, piece = on_the_way[0]
                if (early := due - loop.time()) > 0:
                    await asyncio.sleep(early)
                if piece:
                    writer.write(piece)
                    await writer.drain()
                on_the_way.popleft()
                less.set()
                if not piece:
                    return

        delivering = asyncio.ensure_future(deliver())
        try:
            while True:
                await line.room()
                piece = await reader.read(_PIECE)
                on_the_way.append((line.take(len(piece)) + self._delay, piece))
                more.set()
                if not piece:
                    break
                while sum(len(one) for _, one in on_the_way) > room and not delivering.done():
                    less.clear()
                    await less.wait()
                if delivering.done():
                    break
            await delivering
            writer.write_eof()
        finally:
            delivering.cancel()
            await asyncio.gather(delivering, return_exceptions=True)


async def _main(upstream: str, rate: float, delay: float) -> None:
    proxy = _Proxy(upstream, rate, delay)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=_PIECE)
    host, port = server.sockets[0].getsockname()
    _say(f"{host}:{port}")
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    while await commands.readline():
        _say(json.dumps(asdict(proxy.carried())))
    os._exit(0)  # connections that are open break


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("upstream")
    parser.add_argument("rate", type=float)
    parser.add_argument("delay", type=float)
    given = parser.parse_args()
    asyncio.run(_main(given.upstream, given.rate, given.delay))
