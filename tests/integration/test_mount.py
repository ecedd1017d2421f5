"""Images that `soci mount` mounts, out of real registries, through the kernel's FUSE and overlayfs."""

from __future__ import annotations

import errno
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.lazy.mounts.records import Mounts
from soci_cli.lazy.mounts.request import StatisticsQuestion
from soci_cli.lazy.mounts.unmounting import ask_server
from soci_cli.trial_registry import RegistryServer
from soci_cli.ztoc import Ztoc, decode_ztoc
from tests.integration.mounts import (
    NOBODY,
    PATIENCE,
    TEXT,
    Facts,
    Person,
    checksum,
    checksums,
    detach,
    facts,
    make_odd_image,
    python_for,
    wait_for,
)
from tests.support.images import (
    GOLDEN,
    REFERENCE_TOOL,
    Json,
    LayoutMaker,
    blob_json,
    gz,
    noise,
    options,
    read_index,
    run_convert,
    sha256,
    soci_entries,
    tar_of,
)
from tests.support.scale import examples
from tests.support.servers import DockerRegistry, Fault, FaultProxy, TokenServer
from tests.support.servers.actions import (
    CutAnswer,
    FlipByte,
    Hang,
    IgnoreRange,
    Pause,
    Reset,
    ResetAnswer,
    ShortenAnswer,
    Throttle,
    error_reply,
    pass_on,
)
from tests.support.servers.exchange import Body, Exchange
from tests.support.tools import run

SPAN = 1 << 16
CONVERT = ("image", "convert", "-q", "--soci", "--platform", "linux/amd64", "--force")
FLAGS = ("--soci-span-size", str(SPAN), "--soci-min-layer-size")
READ = ("--platform", "linux/amd64")
QUIET = (*READ, "--no-background-fetch")

pytestmark = pytest.mark.usefixtures("need_fuse")


@dataclass(frozen=True)
class Published:
    """An image in a registry: `place` is where, `root` the same, indexed, as a layout."""

    host: str
    repository: str
    root: Path

    @property
    def place(self) -> str:
        return self.at(self.host)

    def at(self, host: str) -> str:
        """The place behind a proxy."""
        return f"docker://{host}/{self.repository}:soci"

    @property
    def layers(self) -> list[str]:
        """The digests of the layers, lowest first."""
        manifest = blob_json(self.root, read_index(self.root)["manifests"][0])
        return [layer["digest"] for layer in manifest["layers"]]

    def ztoc(self, number: int) -> Ztoc:
        """The zTOC of a layer."""
        index = blob_json(self.root, soci_entries(read_index(self.root))[0])
        annotation = "com.amazon.soci.image-layer-digest"
        blob = next(
            layer
            for layer in index["layers"]
            if layer["annotations"].get(annotation) == self.layers[number]
        )
        return decode_ztoc((self.root / "blobs/sha256" / blob["digest"][7:]).read_bytes())

    def blob(self, digest: str) -> bytes:
        return (self.root / "blobs" / "sha256" / digest[7:]).read_bytes()


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    """Who runs the tests, with a home of his own. What he leaves mounted is taken away."""
    yield from _living(Person(_folder(tmp_path / "home")))


def _living(person: Person) -> Iterator[Person]:
    yield person
    for _, record in person.records():
        with suppress(OSError):
            os.kill(record["pid"], signal.SIGKILL)
        detach(Path(record["target"]))


def _folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def publish(folder: Path, host: str, name: str, root: Path, least: int = 0) -> Published:
    """Puts an image of a layout into a registry, indexed, and beside it into a layout."""
    soci = Person(_folder(folder / f"publish-{name}"))
    place, layout = f"docker://{host}/{name}:soci", folder / f"{name}-soci"
    soci.soci(*CONVERT, *FLAGS, str(least), f"oci:{root}", f"oci:{layout}:latest").good()
    soci.soci(*CONVERT, *FLAGS, str(least), f"oci:{root}", place).good()
    return Published(host, name, layout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mounts")


@pytest.fixture(scope="module")
def odd(folder: Path, docker_registry: DockerRegistry) -> Published:
    """The odd image in a docker-registry."""
    root = make_odd_image(folder / "odd").root
    return publish(folder, docker_registry.host, "odd", root, 10 << 10)


FILES = {
    "data/noise": noise(10, 1_500_000),
    "data/text": TEXT * 3,
    **{f"many/{number}": noise(number, 40_000) for number in range(20)},
}
OTHER = {f"other/{number}": noise(100 + number, 90_000) for number in range(4)}
CONTENT = FILES | OTHER
SUMS = {name: sha256(data)[7:] for name, data in CONTENT.items()}


@pytest.fixture(scope="module")
def plain(folder: Path, docker_registry: DockerRegistry) -> Published:
    """An image of two indexed layers with CONTENT."""
    maker = LayoutMaker(folder / "plain")
    tars = [tar_of(FILES), tar_of(OTHER)]
    blobs = [maker.blob(gz(tar)) for tar in tars]
    maker.tag(maker.manifest(blobs, maker.config([sha256(tar) for tar in tars])))
    return publish(folder, docker_registry.host, "plain", maker.root)


@pytest.fixture
def proxy(docker_registry: DockerRegistry) -> Iterator[FaultProxy]:
    with FaultProxy(docker_registry.host) as made:
        yield made


# Every file.


@pytest.fixture(scope="module")
def unpacked(folder: Path, need_umoci: str) -> Facts:
    """What umoci makes of the odd image."""
    root = make_odd_image(folder / "for-umoci", all_gzip=True).root
    run(need_umoci, "unpack", "--image", f"{root}:latest", folder / "bundle")
    return facts(folder / "bundle" / "rootfs")


def compare(found: Facts, expected: Facts) -> None:
    assert sorted(found) == sorted(expected)
    for name, fact in expected.items():
        assert found[name] == fact, name


def seen_by_others(expected: Facts, *, mapped: bool) -> Facts:
    """What somebody without privileges sees; `mapped` when he is root of his own namespace.

    There, whoever the namespace does not have is root.
    """

    def seen(fact: dict[str, Any]) -> dict[str, Any]:
        xattrs = {key: at for key, at in fact["xattrs"].items() if not key.startswith("trusted.")}
        owner = [0, 0] if mapped else fact["owner"]
        return {**fact, "xattrs": xattrs, "owner": owner}

    return {name: seen(fact) for name, fact in expected.items()}


@pytest.fixture(params=["docker-registry", "embedded"])
def everywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Published]:
    """The odd image in either registry."""
    odd: Published = request.getfixturevalue("odd")
    if request.param == "docker-registry":
        yield odd
        return
    shutil.copytree(odd.root, tmp_path / "served" / "odd")
    with RegistryServer(tmp_path / "embedded") as server:
        root = make_odd_image(tmp_path / "again").root
        yield publish(tmp_path, server.address, "odd", root, 10 << 10)


def test_every_file(everywhere: Published, unpacked: Facts, person: Person) -> None:
    with person.mounted(everywhere.place, None, *QUIET) as place:
        compare(facts(place), unpacked)
        (record,) = person.mounts()
        assert record["image"] == everywhere.place
    # From the cache, without a byte of the layers.
    with person.mounted(everywhere.place, None, *QUIET) as place:
        compare(facts(place), unpacked)


def test_times_of_folders(odd: Published, person: Person) -> None:
    with person.mounted(odd.place, None, *QUIET) as place:
        assert (place / "attrs.d").stat().st_mtime_ns == 1_600_000_000 * 10**9
        assert (place / "etc").stat().st_mtime_ns == 1_600_000_000 * 10**9
        assert stat.S_IMODE((place / "etc").stat().st_mode) == 0o750


def test_every_file_in_a_user_namespace(odd: Published, unpacked: Facts, person: Person) -> None:
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("user namespaces are not allowed here")
    place = _folder(person.home / "place")
    script = """
        set -e
        "$0" -m soci_cli mount -q --platform linux/amd64 "$1" "$2" >/dev/null
        status=0
        "$0" -m tests.integration.mounts "$2" || status=$?
        "$0" -m soci_cli umount "$2" >/dev/null
        exit $status
    """
    inside = replace(person, prefix=("unshare", "-Urm"))
    done = inside.run("sh", "-c", script, person.python, odd.place, place).good()
    compare(json.loads(done.out), seen_by_others(unpacked, mapped=True))
    wait_for(lambda: not person.records(), "the server ends")


@pytest.fixture
def fuse_for_all() -> Iterator[None]:
    """/dev/fuse as ordinary machines have it."""
    mode = stat.S_IMODE(Path("/dev/fuse").stat().st_mode)
    Path("/dev/fuse").chmod(0o666)
    yield
    Path("/dev/fuse").chmod(mode)


@pytest.fixture
def nobody(fuse_for_all: None) -> Iterator[Person]:
    """An ordinary user. His home is where he may get to."""
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed")
    python = python_for(NOBODY)
    with tempfile.TemporaryDirectory(prefix="soci-test-") as home:
        os.chown(home, NOBODY, NOBODY)
        yield from _living(Person(Path(home), python, NOBODY))


def test_every_file_as_an_ordinary_user(odd: Published, unpacked: Facts, nobody: Person) -> None:
    with nobody.mounted(odd.place, None, *QUIET) as place:
        found = nobody.facts(place)
        with pytest.raises(PermissionError):
            os.listdir(place)  # noqa: PTH208 - not even root
    compare(found, seen_by_others(unpacked, mapped=False))


# Faults.


class Cycle:
    """An action that strikes every second request, each time with the next of several actions."""

    def __init__(self, *actions: Callable[[Exchange], None]) -> None:
        self._turns = itertools.cycle(actions)
        self._calls = itertools.count()
        self._mutex = threading.Lock()
        self.struck = 0

    def __call__(self, exchange: Exchange) -> None:
        with self._mutex:
            strikes = next(self._calls) % 2 == 0
            action = next(self._turns) if strikes else None
            self.struck += strikes
        if action is None:
            pass_on(exchange, exchange.ask())
        else:
            action(exchange)


def test_faults_while_the_tree_is_read(
    plain: Published, proxy: FaultProxy, token_server: TokenServer, person: Person
) -> None:
    challenge = f'Bearer realm="{token_server.realm}",service="registry.test"'
    cycle = Cycle(
        Reset(),
        ResetAnswer(20_000),
        CutAnswer(30_000),
        error_reply(503, "UNAVAILABLE"),
        ShortenAnswer(1000),
        FlipByte(500),
        error_reply(429, "TOOMANYREQUESTS", Retry_After="0"),
        error_reply(401, "UNAUTHORIZED", WWW_Authenticate=challenge),
        Throttle(2_000_000),
        error_reply(500, "UNKNOWN"),
    )
    with person.mounted(plain.at(proxy.host), None, *QUIET) as place:
        for digest in plain.layers:
            proxy.add(Fault(cycle, f"/blobs/{digest}", "GET"))
        names = sorted(CONTENT)
        random.Random(1).shuffle(names)  # so that not everything is fetched ahead
        for name in names:
            assert checksum(place / name) == SUMS[name]
        assert checksums(place) == SUMS
        assert cycle.struck >= 10, cycle.struck


def test_a_registry_that_ignores_range(plain: Published, proxy: FaultProxy, person: Person) -> None:
    with person.mounted(plain.at(proxy.host), None, *QUIET) as place:
        proxy.add(Fault(IgnoreRange(), "/blobs/", "GET"))
        assert checksums(place) == SUMS
        for digest in plain.layers:
            assert len(proxy.seen("GET", f"/blobs/{digest}")) <= 6


@dataclass(frozen=True)
class WrongByte:
    """Changes one byte of the blob wherever an answer holds it."""

    at: int

    def __call__(self, exchange: Exchange) -> None:
        answer = exchange.ask()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", exchange.seen.headers.get("range", ""))
        start = int(asked[1]) if asked else 0
        data = bytearray(b"".join(answer.body))
        if 0 <= self.at - start < len(data):
            data[self.at - start] ^= 0xFF
        pass_on(exchange, replace(answer, body=Body(iter([bytes(data)]))))


def test_wrong_bytes_for_ever(plain: Published, proxy: FaultProxy, person: Person) -> None:
    ztoc = plain.ztoc(0)
    (entry,) = (file for file in ztoc.files if file.name == b"many/7")
    span = ztoc.spans.span_of(entry.uncompressed_offset + entry.uncompressed_size // 2)
    start, end = ztoc.spans.compressed_range(span)
    hit = {
        os.fsdecode(file.name)
        for file in ztoc.files
        if ztoc.spans.span_of(file.uncompressed_offset)
        <= span
        <= ztoc.spans.span_of(file.uncompressed_offset + file.uncompressed_size - 1)
    }
    digest = plain.layers[0]
    with person.mounted(plain.at(proxy.host), None, *QUIET) as place:
        proxy.add(Fault(WrongByte((start + end) // 2), f"/blobs/{digest}", "GET"))
        for name, expected in SUMS.items():
            if name in hit:
                with pytest.raises(OSError) as failed:
                    checksum(place / name)
                assert failed.value.errno == errno.EIO
            else:
                assert checksum(place / name) == expected
        log = person.log()
        for part in (plain.at(proxy.host), digest, f"span {span}", "many/7"):
            assert part in log, part
        proxy.clear()
        assert checksums(place) == SUMS


def test_a_registry_that_hangs(plain: Published, proxy: FaultProxy, person: Person) -> None:
    lower, _ = plain.layers
    with person.mounted(plain.at(proxy.host), None, *QUIET) as place:
        assert checksum(place / "many/3") == SUMS["many/3"]
        before = len(proxy.seen("GET", f"/blobs/{lower}"))
        proxy.add(Fault(Hang(), f"/blobs/{lower}"))
        drop(place / "many/3")
        readers = [
            person.start("cat", place / "data" / name, stdout=subprocess.DEVNULL)
            for name in ("noise", "text")
        ]
        wait_for(lambda: len(proxy.seen("GET", f"/blobs/{lower}")) > before, "it hangs")
        for name in OTHER:  # another layer
            assert checksum(place / name) == SUMS[name]
        assert checksum(place / "many/3") == SUMS["many/3"]  # in the cache
        assert len(facts_without_content(place)) == len(CONTENT) + 3
        for reader in readers:
            assert reader.poll() is None
            reader.kill()
            reader.communicate()
    assert not (place / "data").exists()


@pytest.mark.parametrize("fault", [Hang(), Pause(3600, at=1000)], ids=["silent", "stalled"])
def test_the_reader_s_deadline(
    plain: Published, proxy: FaultProxy, person: Person, fault: Hang | Pause
) -> None:
    """Who waits gets an error in time; the next one begins anew, while the old request still hangs."""
    config = person.home / "config.toml"
    config.write_text("[soci]\nreader_deadline_sec = 1\n")
    hasty = replace(person, extra=(*person.extra, ("SOCI_CONFIG", str(config))))
    lower, _ = plain.layers
    with hasty.mounted(plain.at(proxy.host), None, *QUIET) as place:
        proxy.add(Fault(fault, f"/blobs/{lower}"))
        with pytest.raises(OSError) as failed:
            checksum(place / "data/noise")
        assert failed.value.errno == errno.EIO
        log = hasty.log()
        for part in (plain.at(proxy.host), lower, "data/noise", "nothing came for 1 s"):
            assert part in log, part
        proxy.clear()
        assert checksums(place) == SUMS


def test_unmounting_while_a_read_hangs(plain: Published, proxy: FaultProxy, person: Person) -> None:
    place = _folder(person.home / "place")
    person.soci("mount", "-q", *QUIET, plain.at(proxy.host), place).good()
    proxy.add(Fault(Hang(), "/blobs/"))
    with person.start("cat", place / "data/noise", stdout=subprocess.DEVNULL) as reader:
        wait_for(lambda: proxy.seen("GET", f"/blobs/{plain.layers[0]}"), "it hangs")
        person.soci("umount", place).bad(1, str(place))
        assert reader.poll() is None
        person.soci("umount", "--force", place).good()
        reader.communicate(timeout=PATIENCE)
        assert reader.returncode != 0
    assert not person.records()
    assert not place.is_mount()


def drop(path: Path) -> None:
    """Lets the kernel forget what it has of a file."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def facts_without_content(place: Path) -> list[os.stat_result]:
    return [path.lstat() for path in place.rglob("*")]


# Crashes.


def test_a_server_that_is_killed(plain: Published, proxy: FaultProxy, person: Person) -> None:
    place = _folder(person.home / "place")
    person.soci("mount", "-q", *QUIET, plain.at(proxy.host), place).good()
    proxy.add(Fault(Throttle(100_000), f"/blobs/{plain.layers[0]}"))
    reader = person.start("cat", place / "data/noise", stdout=subprocess.DEVNULL)
    wait_for(lambda: proxy.seen("GET", f"/blobs/{plain.layers[0]}"), "it reads")
    os.kill(person.server(), signal.SIGKILL)
    _, errors = reader.communicate(timeout=PATIENCE)
    assert reader.returncode == 1
    assert b"cat: " in errors
    (shown,) = person.mounts()
    assert shown["state"] == "crashed"
    person.soci("umount", place).good()
    assert person.mounts() == []
    assert list(place.iterdir()) == []
    # What it fetched is good, and the rest can be fetched.
    proxy.clear()
    with person.mounted(plain.at(proxy.host), place, *QUIET):
        assert checksums(place) == SUMS


def test_a_writer_of_the_cache_that_is_killed(
    odd: Published, proxy: FaultProxy, person: Person, unpacked: Facts
) -> None:
    """A layer without a zTOC is written into the cache while it comes."""
    digest = odd.layers[2]
    fault = Fault(Throttle(50_000), f"/blobs/{digest}")
    proxy.add(fault)
    place = _folder(person.home / "place")
    starting = person.start_soci("mount", "-q", *QUIET, odd.at(proxy.host), place)
    cache = person.home / ".cache" / "soci"

    def is_written() -> bool:
        return bool(proxy.seen("GET", f"/blobs/{digest}")) and any(cache.rglob("archives/.*.part"))

    wait_for(is_written, "a layer comes")
    for pid in family(starting.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    starting.communicate(timeout=PATIENCE)
    assert any(cache.rglob("archives/.*.part"))
    proxy.clear()
    person.soci("umount", "--all")
    with person.mounted(odd.at(proxy.host), place, *QUIET):
        compare(facts(place), unpacked)


def family(pid: int) -> list[int]:
    """A process and what it started."""
    found = [pid]
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_bytes().rpartition(b")")[2].split()[1]) == pid:
                found += family(int(path.parent.name))
    return found


def test_two_servers_with_one_small_cache(plain: Published, person: Person) -> None:
    cache = str(person.home / "cache")
    small = (("SOCI_CACHE", cache), ("SOCI_CACHE_SIZE", "600KiB"))
    people = [replace(person, extra=small, home=_folder(person.home / str(n))) for n in range(2)]
    with (
        people[0].mounted(plain.place, None, *QUIET) as first,
        people[1].mounted(plain.place, None, *QUIET) as second,
    ):
        failures: list[BaseException] = []

        def read(place: Path, seed: int) -> None:
            names = sorted(SUMS)
            try:
                for _ in range(2):
                    random.Random(seed).shuffle(names)
                    for name in names:
                        assert checksum(place / name) == SUMS[name], name
                        drop(place / name)
            except (AssertionError, OSError) as error:
                failures.append(error)

        threads = [
            threading.Thread(target=read, args=(place, seed))
            for place, seed in ((first, 1), (first, 2), (second, 3), (second, 4))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        used = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
        assert used < 2 << 20


# Ranges.


@pytest.fixture(scope="module")
def mounted_plain(folder: Path, plain: Published) -> Iterator[Path]:
    """The image of CONTENT, mounted for several examples."""
    person = Person(_folder(folder / "for-ranges"))
    with person.mounted(plain.place, None, *QUIET) as place:
        yield place


@examples(150)
@given(data=st.data())
def test_ranges(mounted_plain: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(CONTENT)))
    content = CONTENT[name]
    offset = data.draw(st.integers(0, len(content) + 10))
    length = data.draw(st.sampled_from([0, 1, 100, 4096, 70_000, 1 << 20]))
    fd = os.open(mounted_plain / name, os.O_RDONLY)
    try:
        assert os.pread(fd, length, offset) == content[offset : offset + length]
        if data.draw(st.booleans()):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


# The reference's zTOCs.


GOLDEN_LAYERS = ["ustar-l6.tar.gz", "pax.tar.gz", "gnu-long.tar.gz", "v7.tar.gz", "plain-ustar.tar"]


def test_layers_with_the_reference_s_ztocs(folder: Path, person: Person) -> None:
    """Each becomes an image whose zTOC is, byte for byte, the one that the reference made."""
    for name in GOLDEN_LAYERS:
        layer = (GOLDEN / "layers" / name).read_bytes()
        maker = LayoutMaker(folder / f"golden-{name}")
        kind = "" if name.endswith("gz") else "application/vnd.oci.image.layer.v1.tar"
        blob = maker.blob(layer, kind) if kind else maker.blob(layer)
        maker.tag(maker.manifest([blob], maker.config()))
        target = folder / f"golden-{name}-soci"
        run_convert(maker.root, target, options(build_tool_identifier=REFERENCE_TOOL))
        reference = (GOLDEN / "ztocs" / f"{name}.{SPAN}.ztoc").read_bytes()
        assert (target / "blobs" / "sha256" / sha256(reference)[7:]).read_bytes() == reference
        with (
            person.mounted(f"oci:{target}:latest", None, *QUIET) as place,
            tarfile.open(fileobj=io.BytesIO(layer)) as tar,
        ):
            count = 0
            for member in tar:
                if member.isreg() and "/.wh." not in member.name:
                    last = tar.getmember(member.name)
                    stream = tar.extractfile(last)
                    assert stream is not None
                    path = os.fsencode(place) + b"/" + os.fsencode(member.name)
                    with open(path, "rb") as file:  # noqa: PTH123 - bytes
                        assert file.read() == stream.read(), member.name
                    assert stat.S_IMODE(os.lstat(path).st_mode) == last.mode & 0o7777
                    count += 1
            assert count, name


# What is read is written down, and fetched at once the next time.


def test_record_and_prefetch(
    folder: Path, docker_registry: DockerRegistry, plain: Published, person: Person
) -> None:
    record = person.home / "read.json"
    names = ["many/11", "other/2", "data/text", "many/2"]
    with person.mounted(plain.place, None, *QUIET, "--record", str(record)) as place:
        for name in (*names, names[0]):
            checksum(place / name)
    assert json.loads(record.read_text()) == [f"/{name}" for name in names]
    target = f"docker://{docker_registry.host}/prefetched:soci"
    source = folder / "plain"
    flags = ("--prefetch-files-json", str(record))
    person.soci(*CONVERT, *FLAGS, "0", *flags, f"oci:{source}", target).good()
    fresh = Person(_folder(person.home / "fresh"))
    with (
        FaultProxy(docker_registry.host) as proxy,
        fresh.mounted(f"docker://{proxy.host}/prefetched:soci", None, *QUIET) as place,
    ):
        wait_for(lambda: stats(fresh)["prefetch"]["spans"] >= 5, "files are prefetched")

        def settled() -> bool:
            count = len(proxy.log)
            threading.Event().wait(0.3)
            return count == len(proxy.log)

        wait_for(settled, "nothing more is fetched")
        proxy.add(Fault(Hang(), "/blobs/"))
        for name in names:
            assert checksum(place / name) == SUMS[name]
        shown = stats(fresh)
        assert shown["demand"]["spans"] == 0
        assert shown["prefetch"]["fetched"] > 0
        assert fresh.soci("stats", place).good().out


def stats(person: Person) -> Json:
    """What the server of the one mount counts."""
    (mount,) = Mounts(person.home / ".local/state/soci").all()
    found: Json = ask_server(mount, StatisticsQuestion(mount[0].name))
    return found


def test_background_fetch(
    plain: Published, docker_registry: DockerRegistry, person: Person
) -> None:
    config = person.home / ".config" / "soci" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("[background_fetch]\nsilence_period_msec = 1\nfetch_period_msec = 1\n")
    total = sum(len(plain.ztoc(number).spans) for number in range(2))
    with (
        FaultProxy(docker_registry.host) as proxy,
        person.mounted(plain.at(proxy.host), None, *READ) as place,
    ):
        wait_for(lambda: stats(person)["background"]["spans"] >= total, "everything is here")
        proxy.add(Fault(Hang(), "/blobs/"))
        assert checksums(place) == SUMS
        assert stats(person)["demand"]["spans"] == 0
