"""A small OCI registry over an OCI image layout, for local trials, demos and tests."""

from soci_cli.server._connection import RequestObserver
from soci_cli.server.server import RegistryServer

__all__ = ["RegistryServer", "RequestObserver"]
