"""Programs that work for ever, to be killed: python -m tests.soak.programs NAME ARGUMENT..."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable
from pathlib import Path

from soci_cli import (
    Cache,
    Fetching,
    RegistryServer,
    convert,
    open_image,
    open_source,
    open_target,
    parse_place,
)
from tests.support.images import options
from tests.support.servers.actions import CutAnswer, Hang, Reset, error_reply
from tests.support.servers.fault_proxy import Fault, FaultProxy

PLACES = 7
FILES = 60


def converting(image: str, target: str, store: str) -> None:
    """Converts an image to PLACES places in turn, with another span size each time."""
    for number in itertools.count():
        place = parse_place(f"{target}{number % PLACES}")
        with (
            open_source(parse_place(image), Path(store)) as source,
            open_target(place, Path(store)) as made,
        ):
            convert(source, made, options(force=True, span_size=1 << 12 + number % 5))


def reading(image: str, cache: str, seed: str) -> None:
    """Reads files of an image through a cache that is too small for them."""
    choice = random.Random(seed)
    while True:
        read_some(image, Path(cache), choice.sample(range(FILES), 5))


FAULTS = {
    "none": None,
    "hang": Hang(),
    "reset": Reset(),
    "cut": CutAnswer(after=50_000),
    "busy": error_reply(503, "UNAVAILABLE"),
}


def serving(folder: str) -> None:
    """A registry that says where it is, and then fails for blobs as each line of stdin says."""
    with RegistryServer(Path(folder)) as server, FaultProxy(server.address) as proxy:
        print(proxy.host, flush=True)
        for line in sys.stdin:
            proxy.clear()
            fault = FAULTS[line.strip()]
            if fault is not None:
                proxy.add(Fault(fault, "/blobs/", "GET"))
            print("done", flush=True)


def read_some(image: str, cache: Path, numbers: list[int]) -> dict[int, bytes]:
    """Files of an image by their numbers."""
    with (
        open_source(parse_place(image), Path("none")) as source,
        Fetching(Cache(cache, 3_000_000)) as fetching,
        open_image(source, fetching) as opened,
    ):
        files = {number: opened.find(b"data/%d" % number) for number in numbers}
        return {number: b"".join(opened.pieces(file)) for number, file in files.items()}


if __name__ == "__main__":
    print("begun", flush=True)
    programs: dict[str, Callable[..., None]] = {
        "converting": converting,
        "reading": reading,
        "serving": serving,
    }
    programs[sys.argv[1]](*sys.argv[2:])
