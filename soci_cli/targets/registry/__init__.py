"""Images in a registry: `docker://HOST/REPO[:TAG|@DIGEST]`.

`place` is where to begin. It is imported by who talks to a registry only, because requests and oras-py
take a while to import; what is here does not need them.
"""

from soci_cli.targets.registry.options import Credentials, RegistryOptions
from soci_cli.targets.registry.retry import RetryPolicy

__all__ = ["Credentials", "RegistryOptions", "RetryPolicy"]
