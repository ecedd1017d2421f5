"""The `soci` command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the command line and exits."""
    from soci_cli.commands import run

    status = run(sys.argv[1:])
    # Not before: the process of a mount starts while the command line's modules are imported.
    from soci_cli.commands.status import flush_output

    try:
        flush_output()
    except OSError:
        status = status or 1
    # Every file and thread of the command has been ended. Python would take apart what it imported, which
    # is a tenth of the time of a short command.
    os._exit(status)


if __name__ == "__main__":
    main()
