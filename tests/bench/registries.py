"""Converting and pulling in registries and in containerd: whole commands, timed from outside.

Two of Debian's docker-registry on loopback hold the images; skopeo is the peer. The processes of the
registries and of containerd work on the same processors, so what they do with the bytes counts too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter, sleep

from soci_cli.targets import copy_graph, open_source, open_target, parse_place
from soci_cli.targets.places import connect
from tests.bench.layers import Layer
from tests.bench.tasks import make_image
from tests.support.servers.containerd import DEBIAN, ContainerdServer, programs
from tests.support.servers.docker_registry import DockerRegistry

_SOCI = [sys.executable, "-m", "soci_cli"]
_SKOPEO = ["skopeo", "--insecure-policy", "copy", "--quiet"]
_PAUSE = 0.3  # seconds
_BUILD = """
import sys
from concurrent.futures import ThreadPoolExecutor
from soci_cli.ztoc.builder import build_ztoc

def build(path):
    with open(path, "rb", buffering=0) as layer:
        return build_ztoc(layer).digest

with ThreadPoolExecutor(2) as pool:
    list(pool.map(build, sys.argv[1:]))
"""


@dataclass
class Timing:
    """One thing to do with commands, and its seconds and peak memory (bytes) in each round."""

    key: str
    name: str
    does: str
    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)

    def ratio(self, other: Timing) -> float:
        """The median of the rounds' ratios of this one's time to the other's."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return median(mine / others for mine, others in pairs)


def missing_tools() -> list[str]:
    """The programs that are needed and not installed."""
    return [tool for tool in ("docker-registry", "skopeo") if shutil.which(tool) is None]


def measure_registries(
    layers: Sequence[Layer], work: Path, runs: int, say: Callable[[str], None]
) -> dict[str, Timing]:
    """Does everything `runs` times; the timings by key. Nothing is left in `work`."""
    timings = {
        key: Timing(key, name, does)
        for key, name, does in (
            ("build", "build from files", "zTOCs of the layers on disk, two at a time"),
            ("repository", "convert, repository", "app:1 to app:soci, no layer is uploaded"),
            ("mount", "convert, registry", "app:1 to another repository, layers are mounted"),
            ("other", "convert, other one", "app:1 to another registry, one stream in and out"),
            ("disk", "convert over disk", "skopeo to a layout, convert, skopeo back to app"),
            ("layout", "convert, layout", "from tag to tag of a layout on disk"),
            ("containerd", "convert, containerd", "from name to name in containerd"),
            ("pull", "soci pull", "everything, into the local store"),
            ("skopeo", "skopeo copy", "everything, into a layout"),
            ("lazy", "soci pull, lazily", "with the index of app:soci"),
        )
    }
    folder = work / "registries"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with ExitStack() as stack:
            first = stack.enter_context(DockerRegistry(folder / "first"))
            make_image(folder / "image", [str(layer.path) for layer in layers])
            bench = _Bench(folder, timings)
            containerd = _start_containerd(stack, folder)
            source = f"docker://{first.host}/app:1"
            bench.once(*_SKOPEO, "--dest-tls-verify=false", f"oci:{folder / 'image'}", source)
            for number in range(runs):
                say(f"registries, round {number + 1} of {runs}")
                _round(bench, first.host, number, layers)
                _local_round(bench, containerd, number)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {key: one for key, one in timings.items() if one.seconds}


def _start_containerd(stack: ExitStack, folder: Path) -> str | None:
    """The address of a containerd with the image, where one can be had: that needs root."""
    found = programs(DEBIAN)
    if found is None or os.geteuid():
        return None
    server = stack.enter_context(ContainerdServer(folder / "containerd", found))
    place = parse_place("containerd:bench.example/app:1")
    with (
        connect(server.address) as client,
        open_source(parse_place(f"oci:{folder / 'image'}:latest"), folder) as source,
        open_target(place, folder, None, None, client) as target,
    ):
        root = source.resolve()
        copy_graph(source, target, root)
        target.tag(root)
    return server.address


def _local_round(bench: _Bench, containerd: str | None, number: int) -> None:
    convert = ["image", "convert", "--quiet", "--soci", "--soci-min-layer-size=0", "--force"]
    place = f"oci:{bench.folder / 'image'}"
    bench.time("layout", [*_SOCI, *convert, f"{place}:latest", f"{place}:soci-{number}"])
    if containerd is not None:
        name = "bench.example/app"
        there = [*_SOCI, "--address", containerd]
        bench.time("containerd", [*there, *convert, f"{name}:1", f"{name}:soci-{number}"])


def _round(bench: _Bench, host: str, number: int, layers: Sequence[Layer]) -> None:
    convert = [*_SOCI, "image", "convert", "--quiet", "--soci", "--soci-min-layer-size=0"]
    app, source = f"docker://{host}/app", f"docker://{host}/app:1"
    bench.time("build", [sys.executable, "-c", _BUILD, *(str(layer.path) for layer in layers)])
    bench.time("repository", [*convert, source, f"{app}:soci-{number}"])
    bench.time("mount", [*convert, source, f"docker://{host}/mounted-{number}:soci"])
    with DockerRegistry(bench.folder / f"other-{number}") as other:
        bench.time("other", [*convert, source, f"docker://{other.host}/app:soci"])
    shutil.rmtree(bench.folder / f"other-{number}")
    layout = f"oci:{bench.folder / 'layout'}"
    bench.time(
        "disk",
        [*_SKOPEO, "--src-tls-verify=false", source, f"{layout}:1"],
        [*convert, f"{layout}:1", f"{layout}:2"],
        [*_SKOPEO, "--all", "--dest-tls-verify=false", f"{layout}:2", f"{app}:disk-{number}"],
    )
    shutil.rmtree(bench.folder / "layout")
    _pulls(bench, host, number)


def _pulls(bench: _Bench, host: str, number: int) -> None:
    pull = [*_SOCI, "pull", "--quiet"]
    layout = bench.folder / "layout"
    skopeo = [*_SKOPEO, "--src-tls-verify=false", f"docker://{host}/app:1", f"oci:{layout}:1"]
    steps = [
        ("pull", [*pull, "--snapshotter", "overlayfs", f"{host}/app:1"], bench.store),
        ("skopeo", skopeo, layout),
    ]
    for key, command, made in steps:
        # Each once before, untimed: how quick a disk is depends on who wrote and removed files last.
        bench.once(*command)
        shutil.rmtree(made)
        bench.time(key, command)
        shutil.rmtree(made)
    bench.time("lazy", [*pull, f"{host}/app:soci-{number}"])
    shutil.rmtree(bench.store)


class _Bench:
    def __init__(self, folder: Path, timings: dict[str, Timing]) -> None:
        self.folder = folder
        self.store = folder / "store"
        self._temporary = folder / "tmp"
        self._temporary.mkdir()
        self._timings = timings

    def time(self, key: str, *commands: Sequence[str]) -> None:
        """Runs commands one after the other and adds up their time."""
        # What an earlier command left for the disk to do is not this one's.
        os.sync()
        sleep(_PAUSE)
        seconds, peak = 0.0, 0
        for command in commands:
            took, used = self.once(*command)
            seconds += took
            peak = max(peak, used)
        self._timings[key].seconds.append(seconds)
        self._timings[key].peaks.append(peak)

    def once(self, *command: str) -> tuple[float, int]:
        """Runs a command; its seconds and peak memory. Fails when it leaves temporary files."""
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        env = {**kept, "SOCI_ROOT": str(self.store), "TMPDIR": str(self._temporary)}
        start = perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command[:6])} ended with {process.returncode}")
        left = list(self._temporary.iterdir())
        if left:
            raise RuntimeError(f"{' '.join(command[:6])} left {left[0]} behind")
        return seconds, usage.ru_maxrss * 1024


def print_registries(timings: dict[str, Timing], layers: Sequence[Layer]) -> None:
    """The table of what was measured."""
    size = sum(layer.compressed_size for layer in layers)
    entries = sum(layer.entries for layer in layers)
    print()
    print(f"Registries: {len(layers)} layers, {size / 1e6:,.0f} MB, {entries:,} entries")
    print(f"{'':<22}{'median s':>9} {'min-max':>13}{'ratio':>7}{'MB/s':>7}{'peak MB':>9}  what")
    build = timings["build"]
    for one in timings.values():
        middle = median(one.seconds)
        spread = f"{min(one.seconds):.2f}-{max(one.seconds):.2f}"
        print(
            f"  {one.name:<20}{middle:>9.2f} {spread:>13}{one.ratio(build):>7.2f}"
            f"{size / middle / 1e6:>7,.0f}{median(one.peaks) / 1e6:>9,.0f}  {one.does}"
        )
    print("ratio: to building from files in the same round; MB/s: compressed")
