"""Programs that work for ever, to be killed: python -m tests.soak.programs NAME ARGUMENT..."""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

from soci_cli import Cache, Fetching, convert, open_image, open_source, open_target, parse_place
from tests.support.images import options

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
    {"converting": converting, "reading": reading}[sys.argv[1]](*sys.argv[2:])
