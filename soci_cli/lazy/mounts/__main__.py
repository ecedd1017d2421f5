"""The process that serves mounts, started by `processes.spawn`."""

from __future__ import annotations

import gc
import os
import sys

TYPE_CHECKING = False  # as in typing, which takes a while
if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping


def main() -> None:
    """Serves the request that comes over stdin, and those that come later; ends with its last mount."""
    gc.disable()  # until there is a mount: what is imported stays
    # Run as a file: this package is not among what is imported from yet.
    sys.path.insert(0, os.path.abspath(f"{__file__}/../../../.."))  # noqa: PTH100 - imports nothing
    from soci_cli.processes.spawn import accept_start, keep_output

    arguments, connection = accept_start("soci-mounts")
    import faulthandler
    from pathlib import Path

    if "folder" in arguments:
        _succeed(arguments, connection)
        return
    from soci_cli.lazy.mounts.host import Host, import_ahead

    with Host(Path(arguments["state"]), arguments["key"]) as host:
        keep_output(host.folder.log)
        faulthandler.enable()
        host.serve(connection)
        import_ahead()
        host.keep()
        host.run()


def _succeed(arguments: Mapping[str, str], connection: socket.socket) -> None:
    """Serves the mounts that a holder gives over the connection, for a process that served them before."""
    import faulthandler
    from pathlib import Path

    from soci_cli.lazy.mounts.host import Host
    from soci_cli.lazy.mounts.resuming import receive
    from soci_cli.lazy.mounts.sharing import host_key

    faulthandler.enable()
    inheritance = receive(connection)
    owners = [one.state.record.owner for one in inheritance.mounts]
    # As of the processes that are started now: this may be the code of another version.
    key = host_key(os.environ, owners[0]) if arguments["key"] and owners else arguments["key"]
    with Host(Path(arguments["state"]), key, None, inheritance, arguments["folder"]) as host:
        host.run()


if __name__ == "__main__":
    try:
        main()
    except BaseException:  # noqa: BLE001 - this process ends here
        sys.excepthook(*sys.exc_info())  # to who started it, or into the log
        os._exit(1)
    # No thread that hangs in the network holds this process.
    os._exit(0)
