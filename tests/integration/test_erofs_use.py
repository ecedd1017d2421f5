"""What mounts by EROFS must endure, as FUSE trees do: programs, containers, many layers, little memory, a
registry that goes away, and unmounting while somebody reads."""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.mounts import PATIENCE, Person, Tar, checksum, checksums, facts, wait_for
from tests.integration.published import (
    CONTENT,
    CONVERT,
    FLAGS,
    OTHER,
    QUIET,
    SUMS,
    Published,
    compare,
    drop,
    new_folder,
)
from tests.support.images import LayoutMaker, gz, noise, sha256
from tests.support.machine import need
from tests.support.servers import Fault, FaultProxy
from tests.support.servers.actions import Reset

pytestmark = pytest.mark.usefixtures("need_fuse")
EROFS, FUSE = "erofs", "fuse"
ENGINES = pytest.mark.parametrize("engine", [EROFS, FUSE])


def by(engine: str) -> tuple[str, ...]:
    return (*QUIET, "--engine", engine)


def layout_of(person: Person, name: str, *tars: bytes) -> str:
    """The place of an indexed image with these layers."""
    maker = LayoutMaker(person.home / name)
    blobs = [maker.blob(gz(tar, 1)) for tar in tars]
    maker.tag(maker.manifest(blobs, maker.config([sha256(tar) for tar in tars])))
    place = f"oci:{person.home / name}-soci:latest"
    person.soci(*CONVERT, *FLAGS, "0", f"oci:{maker.root}", place).good()
    return place


# Programs.


@ENGINES
def test_mapped_files(plain: Published, person: Person, engine: str) -> None:
    """Pages come by faults, in any order, also of what was read and forgotten before."""
    source = random.Random(4)
    with person.mounted(plain.place, None, *by(engine)) as place:
        for name in ("data/noise", "data/text", "many/3"):
            content = CONTENT[name]
            fd = os.open(place / name, os.O_RDONLY)
            with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as mapped:
                for turn in range(60):
                    at = source.randrange(len(content))
                    assert mapped[at : at + 9000] == content[at : at + 9000]
                    if turn % 20 == 0:
                        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                assert mapped[:] == content
            os.close(fd)


def programs_tar() -> bytes:
    """A root file system of this machine's shell and a few programs, with the libraries that they need."""
    tar = Tar()
    done = set()
    wanted = ["/bin/sh", "/bin/cat", "/bin/ls", "/usr/bin/stat", "/usr/bin/sha256sum", "/bin/rm"]
    for program in wanted:
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True)
        needed = [word for word in listed.stdout.split() if word.startswith("/")]
        for name in (program, *needed):
            if name not in done:
                done.add(name)
                tar.add(name[1:], Path(name).read_bytes(), mode=0o755)
    for name in ("proc", "dev", "sys", "etc", "tmp", "old"):
        tar.add(f"{name}/")
    tar.add("etc/motd", b"from the image\n")
    tar.add("old/below", b"hidden by the container")
    return tar.end()


@ENGINES
def test_programs_run(person: Person, engine: str) -> None:
    image = layout_of(person, "programs", programs_tar())
    with person.mounted(image, None, *by(engine)) as place:
        done = subprocess.run(
            ["chroot", place, "/bin/sh", "-c", "cat /etc/motd && sha256sum /bin/sh"],
            capture_output=True,
            check=True,
        )
        sum_ = sha256(Path("/bin/sh").read_bytes())[7:]
        assert done.stdout.decode() == f"from the image\n{sum_}  /bin/sh\n"


_IN_CONTAINER = """
set -e
cat /etc/motd
echo changed > /etc/motd
cat /etc/motd
echo new > /new
rm -r /old
stat -c %F /old 2>&1 || true
"""


@pytest.mark.parametrize("runtime", ["runc", "crun"])
@ENGINES
def test_a_container_with_an_overlay_above(person: Person, engine: str, runtime: str) -> None:
    """The mount is the lower directory; what the container changes is not in it."""
    need(runtime)
    image = layout_of(person, "programs", programs_tar())
    bundle = new_folder(person.home / "bundle")
    for name in ("rootfs", "upper", "work"):
        (bundle / name).mkdir()
    subprocess.run(["runc", "spec"], cwd=bundle, check=True)
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"] |= {"terminal": False, "args": ["/bin/sh", "-c", _IN_CONTAINER]}
    spec["root"]["readonly"] = False
    needed = ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER"]
    spec["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), needed)
    (bundle / "config.json").write_text(json.dumps(spec))
    with person.mounted(image, None, *by(engine)) as place:
        before = facts(place)
        options = f"lowerdir={place},upperdir={bundle}/upper,workdir={bundle}/work"
        # crun refuses a hybrid of both versions of cgroups.
        script = f"""
            set -e
            mount -t overlay overlay -o {options} {bundle}/rootfs
            umount /sys/fs/cgroup/unified 2>/dev/null || true
            {runtime} --root {bundle}/state run --bundle {bundle} soci-test-{engine}-{os.getpid()}
        """
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[:2] == ["from the image", "changed"]
        assert "No such file" in lines[2]
        assert (bundle / "upper/new").read_text() == "new\n"
        compare(facts(place), before)


# Many layers.


def layer_number(number: int) -> bytes:
    """A layer that adds, changes and hides files of those below."""
    tar = Tar()
    tar.add(f"own/{number}", noise(number, 5000), uid=number)
    tar.add("shared/last", b"%d" % number)
    tar.add(f"shared/deep/{number % 7}", noise(number, 300), mode=0o600 + number % 8)
    if number % 3 == 2:
        tar.add(f"own/.wh.{number - 1}", b"")
    if number % 20 == 19:
        tar.add("shared/deep/.wh..wh..opq", b"")
    return tar.end()


@pytest.mark.parametrize("count", [60, 100])
def test_many_layers(person: Person, count: int) -> None:
    image = layout_of(person, "layers", *map(layer_number, range(count)))
    found = {}
    for engine in (EROFS, FUSE):
        with person.mounted(image, None, *by(engine)) as place:
            found[engine] = facts(place)
            assert (place / "shared/last").read_bytes() == b"%d" % (count - 1)
            own = {int(path.name) for path in (place / "own").iterdir()}
            assert own == {n for n in range(count) if n % 3 != 1 or n + 1 >= count}
    compare(found[EROFS], found[FUSE])


# Little memory.


@contextmanager
def memory_limit(size: int) -> Iterator[str]:
    """A command that puts who runs it into a group of processes with this much memory.

    In a container that may not make groups it does nothing.
    """
    v2 = Path("/sys/fs/cgroup/cgroup.controllers")
    above = Path("/sys/fs/cgroup" if v2.exists() else "/sys/fs/cgroup/memory")
    group = above / f"soci-test-{os.getpid()}"
    try:
        if v2.exists():
            (above / "cgroup.subtree_control").write_text("+memory")
        group.mkdir()
    except OSError:
        yield "true"
        return
    limit = "memory.max" if v2.exists() else "memory.limit_in_bytes"
    try:
        (group / limit).write_text(str(size))
        yield f"echo $$ > {group}/cgroup.procs"
    finally:
        wait_for(lambda: not (group / "cgroup.procs").read_text(), "the group is empty")
        group.rmdir()


@ENGINES
def test_little_memory(large_archive: Path, person: Person, engine: str) -> None:
    """Server, cache and readers share 160 MB of memory, and read 200 MB by two readers, twice."""
    place = f"oci:{person.home}/large:latest"
    person.soci(*CONVERT, f"oci-archive:{large_archive}", place).good()
    target = new_folder(person.home / "place")
    with memory_limit(160 << 20) as enter:
        script = f"""
            {enter}
            "$0" -m soci_cli mount -q --no-background-fetch --engine {engine} {place} {target} || exit 9
            sum() {{ find {target} -type f -print0 | sort -z $1 | xargs -0 cat | sha256sum; }}
            for turn in 1 2; do
                sum > {person.home}/forwards & first=$!
                sum -r > {person.home}/backwards || exit 8
                wait $first || exit 7
            done
            "$0" -m soci_cli umount {target}
        """
        with person.start("sh", "-c", script, person.python) as started:
            _, err = started.communicate(timeout=4 * PATIENCE)
        assert started.returncode == 0, err.decode()
        wait_for(lambda: not person.records(), "the server ends")
    assert (person.home / "forwards").read_text() != (person.home / "backwards").read_text()
    with person.mounted(place, None, *by(engine)) as again:
        command = f"find {again} -type f -print0 | sort -z | xargs -0 cat | sha256sum"
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == (person.home / "forwards").read_text()


# Without a registry.


@ENGINES
def test_a_registry_that_goes_and_comes_back(
    plain: Published, proxy: FaultProxy, person: Person, engine: str
) -> None:
    (person.home / "config.toml").write_text("[soci]\nreader_deadline_sec = 1\n")
    person = replace(person, extra=(("SOCI_CONFIG", str(person.home / "config.toml")),))
    with person.mounted(plain.at(proxy.host), None, *by(engine)) as place:
        for name in OTHER:
            assert checksum(place / name) == SUMS[name]
        before = facts_of_names(place)
        proxy.add(Fault(Reset(), "/blobs/"))
        for name in OTHER:
            drop(place / name)
            assert checksum(place / name) == SUMS[name]  # in the cache of spans
        with pytest.raises(OSError) as failed:
            checksum(place / "data/noise")
        assert failed.value.errno == errno.EIO
        fd = os.open(place / "data/noise", os.O_RDONLY)
        with pytest.raises(OSError, match="Input/output"):
            os.pread(fd, 4096, 700_000)
        assert facts_of_names(place) == before
        proxy.clear()
        assert os.pread(fd, 4096, 700_000) == CONTENT["data/noise"][700_000:704_096]
        os.close(fd)
        assert checksums(place) == SUMS


def facts_of_names(place: Path) -> list[tuple[str, int, int]]:
    return sorted(
        (str(path), path.lstat().st_mode, path.lstat().st_size) for path in place.rglob("*")
    )


# Unmounting while somebody reads.


@ENGINES
def test_unmounting_while_reading(
    plain: Published, person: Person, engine: str, proxy: FaultProxy
) -> None:
    place = new_folder(person.home / "place")
    person.soci("mount", "-q", *by(engine), plain.at(proxy.host), place).good()
    script = 'while cat "$0"/data/noise "$0"/many/* > /dev/null 2>&1; do :; done'
    with person.start("sh", "-c", script, place) as reader:
        wait_for(lambda: len(proxy.seen("GET", f"/blobs/{plain.layers[0]}")) > 2, "it reads")
        person.soci("umount", "--force", place).good()
        reader.wait(PATIENCE)
    assert not place.is_mount()
    assert not person.records()


@ENGINES
def test_who_holds_a_file_reads_on_after_a_lazy_unmount(
    plain: Published, person: Person, engine: str
) -> None:
    place = new_folder(person.home / "place")
    person.soci("mount", "-q", *by(engine), plain.place, place).good()
    with (place / "data/noise").open("rb", buffering=0) as held:
        assert held.read(4096) == CONTENT["data/noise"][:4096]
        subprocess.run(["umount", "-l", place], check=True)
        assert not place.is_mount()
        rest = b"".join(iter(lambda: held.read(1 << 16), b""))
        assert rest == CONTENT["data/noise"][4096:]
    wait_for(lambda: not person.records(), "the server ends when nothing is open")
    shutil.rmtree(place)
