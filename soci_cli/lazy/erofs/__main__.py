"""The process that makes one EROFS image, started by `making.Images.make_apart`."""

import gc
import os
import sys

if __name__ == "__main__":
    gc.disable()  # what is made stays until the end
    # Run as a file: this package is not among what is imported from yet.
    sys.path.insert(0, os.path.abspath(f"{__file__}/../../../.."))  # noqa: PTH100 - imports nothing
    from soci_cli.processes.spawn import accept_start

    arguments, connection = accept_start("soci-erofs")
    from soci_cli.lazy.erofs.making import answer

    answer(arguments["layers"], connection)
