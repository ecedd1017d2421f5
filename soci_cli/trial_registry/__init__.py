"""A small OCI registry over an OCI image layout, for local trials, demos and tests."""

from soci_cli.trial_registry._connection import RequestObserver
from soci_cli.trial_registry.server import RegistryServer

__all__ = ["RegistryServer", "RequestObserver"]
