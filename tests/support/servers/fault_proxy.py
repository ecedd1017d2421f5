"""A reverse proxy that passes requests on, but for those that a fault strikes."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass

from tests.support.servers.actions import Action, pass_on
from tests.support.servers.ca import KeyPair
from tests.support.servers.exchange import Exchange, Gone, Seen
from tests.support.servers.server import Request, Server


@dataclass(frozen=True)
class Fault:
    """What happens to some requests.

    `path` is a regular expression searched for in path and query, `method` one for the whole method.
    The first `skip` requests that match pass, the next `times` are struck; None means all of them.
    """

    action: Action
    path: str = ""
    method: str = ".*"
    times: int | None = None
    skip: int = 0

    def matches(self, method: str, path: str) -> bool:
        return bool(re.fullmatch(self.method, method) and re.search(self.path, path))


class FaultProxy(Server):
    """Stands before the server at `upstream`, HOST:PORT, which speaks plain HTTP.

    The first fault that strikes a request has it to itself. `log` has all requests, in the order of
    their arrival.
    """

    def __init__(self, upstream: str, *faults: Fault, tls: KeyPair | None = None) -> None:
        self.log: list[Seen] = []
        self._upstream = upstream
        self._lock = threading.Lock()
        self._faults = [_Armed(fault) for fault in faults]
        super().__init__(tls)

    def add(self, *faults: Fault) -> None:
        """Adds faults, behind those that are there."""
        with self._lock:
            self._faults += [_Armed(fault) for fault in faults]

    def clear(self) -> None:
        """Forgets all faults and the log."""
        with self._lock:
            self._faults.clear()
            self.log.clear()

    def seen(self, method: str = ".*", path: str = "") -> list[Seen]:
        """The requests of the log that match, as a `Fault` would."""
        wanted = Fault(_pass, path, method)
        return [seen for seen in self.log if wanted.matches(seen.method, seen.path)]

    def serve(self, request: Request) -> None:
        exchange = Exchange(request, self._upstream, request.path, self.stopping)
        with self._lock:
            self.log.append(exchange.seen)
            action = self._strike(exchange)
        try:
            action(exchange)
        except Gone:
            request.close_connection = True

    def _strike(self, exchange: Exchange) -> Action:
        for armed in self._faults:
            if armed.fault.matches(exchange.method, exchange.path) and armed.strikes():
                return armed.fault.action
        return _pass


class _Armed:
    """A fault and how often it has matched."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._matched = 0

    def strikes(self) -> bool:
        """Counts a request that matches; whether it is struck."""
        number = self._matched - self.fault.skip
        self._matched += 1
        return number >= 0 and (self.fault.times is None or number < self.fault.times)


def _pass(exchange: Exchange) -> None:
    pass_on(exchange, exchange.ask())
