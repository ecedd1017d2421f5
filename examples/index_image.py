"""Make a SOCI index v1 for an image in a layout. The image itself stays as it is, digest included.

    python examples/index_image.py oci:app:1.0

An index v1 names its image as its subject. In a layout it is an entry of index.json beside the image, here
with the image's tag and `-soci-v1`; `soci image inspect` finds it there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from soci_cli import SociError, index_image, open_source, open_target, parse_place

STORE = Path.home() / ".local/share/soci"


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or parse_place(arguments[0]).kind != "oci":
        print("usage: index_image.py oci:DIR:TAG", file=sys.stderr)
        return 2
    image = arguments[0]
    try:
        with (
            open_source(parse_place(image), STORE) as source,
            open_target(parse_place(f"{image}-soci-v1"), STORE) as target,
        ):
            # Without options this is the one platform that this machine runs.
            (report,) = index_image(source, target)
            assert report.index is not None, "index_image raises where nothing can be indexed"
            target.tag(report.index)
    except SociError as error:
        print(f"index_image.py: {error}", file=sys.stderr)
        return error.exit_code
    for layer in report.layers:
        print(f"layer {layer.layer.digest[:19]}: {layer.outcome} {layer.reason}".rstrip())
    print(f"{report.index.digest} is the index of {image}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
