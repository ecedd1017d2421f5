"""`docker-soci`: the same commands as `docker soci ...`, as a plugin of the Docker command line.

Docker finds plugins in its own folders, such as ~/.docker/cli-plugins. It asks a plugin for a document
about itself, and later runs it with all its arguments (docker/cli, "cli-plugins/manager").
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

_METADATA = "docker-cli-plugin-metadata"
_NAME = "soci"


def main() -> None:
    """Runs the plugin and exits."""
    sys.exit(run_plugin(sys.argv[1:]))


def run_plugin(arguments: Sequence[str]) -> int:
    """Runs what Docker asks for; returns the exit status."""
    if list(arguments[:1]) == [_METADATA]:
        from soci_cli import __version__

        print(
            json.dumps(
                {
                    "SchemaVersion": "0.1.0",
                    "Vendor": "soci-cli",
                    "Version": __version__,
                    "ShortDescription": "Make container images start before they are downloaded",
                }
            )
        )
        return 0
    from soci_cli.commands.cli import run

    # Flags of docker itself stand before the plugin's name.
    after = arguments.index(_NAME) + 1 if _NAME in arguments else 0
    return run(arguments[after:])
