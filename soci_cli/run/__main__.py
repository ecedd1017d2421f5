"""The monitor of a container in the background, started by `running.run_detached`."""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress


def main() -> None:
    """Starts the container that comes over stdin, says so, and waits for its end."""
    # Run as a file: this package is not among what is imported from yet.
    sys.path.insert(0, os.path.abspath(f"{__file__}/../../.."))  # noqa: PTH100 - imports nothing
    from soci_cli.processes.spawn import accept_start, keep_output

    arguments, connection = accept_start("soci-container")
    from pathlib import Path

    from soci_cli.errors import SociError
    from soci_cli.processes.encoding import decode
    from soci_cli.run.bundle import Prepared, Start
    from soci_cli.run.containers import Containers
    from soci_cli.run.running import watch

    def tell(**news: object) -> None:
        with suppress(OSError):  # who started it is gone
            connection.sendall(json.dumps(news).encode("ascii") + b"\n")
            if "started" in news:
                connection.shutdown(socket.SHUT_RDWR)

    lock = socket.recv_fds(connection, 1, 1)[1][0]
    os.set_inheritable(lock, False)
    containers = Containers(Path(arguments["state"]))
    folder = containers.adopt(arguments["name"], lock)
    keep_output(folder.log)
    try:
        watch(containers, Prepared(folder, decode(Start, arguments["start"], "a container")), tell)
    except SociError as error:
        tell(error=str(error), kind=type(error).__name__)
    except OSError as error:
        tell(error=error.strerror or str(error), kind="")


if __name__ == "__main__":
    try:
        main()
    except BaseException:  # noqa: BLE001 - this process ends here
        sys.excepthook(*sys.exc_info())  # to who started it, or into the log
        os._exit(1)
    os._exit(0)
