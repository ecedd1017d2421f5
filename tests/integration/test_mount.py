"""Images that `soci mount` mounts, out of real registries, through the kernel's FUSE and overlayfs."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soci_cli.lazy.mounts.records import Mounts
from soci_cli.lazy.mounts.request import StatisticsQuestion
from soci_cli.lazy.mounts.unmounting import ask_server
from soci_cli.trial_registry import RegistryServer
from tests.integration.mounts import (
    Facts,
    Person,
    checksum,
    checksums,
    facts,
    make_odd_image,
    wait_for,
)
from tests.integration.published import (
    CONTENT,
    CONVERT,
    FLAGS,
    QUIET,
    READ,
    SPAN,
    SUMS,
    Published,
    compare,
    new_folder,
    publish,
)
from tests.support.images import (
    GOLDEN,
    REFERENCE_TOOL,
    Json,
    LayoutMaker,
    options,
    run_convert,
    sha256,
)
from tests.support.scale import examples
from tests.support.servers import DockerRegistry, Fault, FaultProxy
from tests.support.servers.actions import (
    Hang,
)

pytestmark = pytest.mark.usefixtures("need_fuse")


# Every file.


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
    place = new_folder(person.home / "place")
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


def test_every_file_as_an_ordinary_user(odd: Published, unpacked: Facts, nobody: Person) -> None:
    with nobody.mounted(odd.place, None, *QUIET) as place:
        found = nobody.facts(place)
        with pytest.raises(PermissionError):
            os.listdir(place)  # noqa: PTH208 - not even root
    compare(found, seen_by_others(unpacked, mapped=False))


# Ranges.


@pytest.fixture(scope="module")
def mounted_plain(folder: Path, plain: Published) -> Iterator[Path]:
    """The image of CONTENT, mounted for several examples."""
    person = Person(new_folder(folder / "for-ranges"))
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
    fresh = Person(new_folder(person.home / "fresh"))
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
