"""The process that serves mounts, started by `processes.spawn`."""

import gc
import os
import sys


def main() -> None:
    """Serves the request that comes over stdin, and those that come later; ends with its last mount."""
    gc.disable()  # until there is a mount: what is imported stays
    # Run as a file: this package is not among what is imported from yet.
    sys.path.insert(0, os.path.abspath(f"{__file__}/../../../.."))  # noqa: PTH100 - imports nothing
    from soci_cli.processes.spawn import accept_start, keep_output

    arguments, connection = accept_start("soci-mounts")
    import faulthandler
    from pathlib import Path

    from soci_cli.lazy.mounts.host import Host, import_ahead

    with Host(Path(arguments["state"]), arguments["key"]) as host:
        keep_output(host.folder.log)
        faulthandler.enable()
        host.serve(connection)
        import_ahead()
        host.run()


if __name__ == "__main__":
    try:
        main()
    except BaseException:  # noqa: BLE001 - this process ends here
        sys.excepthook(*sys.exc_info())  # to who started it, or into the log
        os._exit(1)
    # No thread that hangs in the network holds this process.
    os._exit(0)
