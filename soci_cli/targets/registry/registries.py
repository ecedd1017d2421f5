"""The registries that a command talks to. Nothing that takes a while to import is needed before one is."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from soci_cli.closing import Closing
from soci_cli.oci.references import Reference
from soci_cli.targets.registry.options import RegistryOptions

if TYPE_CHECKING:
    from soci_cli.targets.registry.client import Client
    from soci_cli.targets.registry.place import RegistrySource, RegistryTarget


class Registries(Closing):
    """The registries that a command talks to: one client each, made when it is first needed."""

    def __init__(self, options: RegistryOptions, environ: Mapping[str, str]) -> None:
        self._options = options
        self._environ = environ
        self._clients: dict[str, Client] = {}
        self._mutex = threading.Lock()

    def client(self, domain: str) -> Client:
        """The client of a registry, such as `docker.io`."""
        # requests and oras take a while to import: only who talks to a registry pays.
        from soci_cli.targets.registry.client import Client

        with self._mutex:
            if domain not in self._clients:
                self._clients[domain] = Client(domain, self._options, self._environ)
            return self._clients[domain]

    def source(self, reference: Reference, name: str) -> RegistrySource:
        """An image to read. Nothing is sent yet."""
        from soci_cli.targets.registry.place import RegistrySource

        return RegistrySource(self.client(reference.domain), reference, name)

    def target(self, reference: Reference, name: str) -> RegistryTarget:
        """An image to write. Nothing is sent yet."""
        from soci_cli.targets.registry.place import RegistryTarget

        return RegistryTarget(self.client(reference.domain), reference, name)

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            client.close()
