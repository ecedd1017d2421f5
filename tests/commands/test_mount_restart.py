"""Servers of mounts that end without a word, or are replaced: readers notice nothing."""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.commands.mounting import PATIENCE, Home, Remote, both_engines, until
from tests.commands.test_reading import BIG
from tests.support.commands import process
from tests.support.holders import children, crash, holder_of
from tests.support.images import gz, make_image, noise, options, run_convert, tar_of
from tests.support.servers import DockerRegistry
from tests.support.servers.actions import Hang, error_reply
from tests.support.servers.fault_proxy import Fault
from tests.support.servers.fixtures import PASSWORD, USER


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of some thousand files."""
    return make_large(tmp_path_factory.mktemp("large"))


def make_large(folder: Path) -> Path:
    """The layout of an image of some thousand files, in a folder."""
    layers = [
        {
            f"{name}/{one}/{two}": noise(one * 50 + two, 40 * two)
            for one in range(40)
            for two in range(50)
        }
        for name in ("lower", "upper")
    ]
    plain = make_image(folder / "plain", [gz(tar_of(files)) for files in layers]).root
    run_convert(plain, folder / "large", options())
    return folder / "large"


@pytest.fixture(params=["resend", "journal"])
def way(request: pytest.FixtureRequest, home: Home) -> None:
    """How a successor comes by requests that the server had."""
    if request.param == "journal":
        home.env["SOCI_WITHOUT"] = "resend"


def server(home: Home) -> int:
    """The process that serves all mounts."""
    (pid,) = {mount["pid"] for mount in home.mounts()}
    return int(pid)


def kill(home: Home) -> None:
    """Kills the server, and waits for its successor."""
    pid = server(home)
    os.kill(pid, signal.SIGKILL)
    until(lambda: server(home) != pid)


def kill_holder(pid: int) -> None:
    """Kills the holder of a server, and waits for another one."""
    holder = holder_of(pid)
    assert holder
    os.kill(holder, signal.SIGKILL)
    until(lambda: holder_of(pid) not in (None, holder))


@contextmanager
def reading(folder: Path, stop: Path) -> Iterator[None]:
    """All files are read again and again; root has the kernel forget them meanwhile."""
    read = "find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
    wanted = subprocess.run(["sh", "-c", read], cwd=folder, capture_output=True, check=True).stdout
    forget = "[ ! -w /proc/sys/vm/drop_caches ] || echo 2 > /proc/sys/vm/drop_caches"
    program = f"while [ ! -e {stop} ]; do {forget}; {read}; done"
    with subprocess.Popen(
        ["sh", "-c", program],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as reader:
        try:
            yield
            stop.touch()
            said, _ = reader.communicate(timeout=PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(reader.pid, signal.SIGKILL)
    assert set(said.splitlines(keepends=True)) == {wanted}
    stop.unlink()


def tree(folder: Path) -> list[tuple[str, int, int, int]]:
    """Names, inode numbers, sizes and times of all files."""
    found = [(path, path.lstat()) for path in [folder, *folder.rglob("*")]]
    return sorted((str(path), one.st_ino, one.st_size, one.st_mtime_ns) for path, one in found)


@pytest.mark.slow
@both_engines
def test_a_server_that_is_killed_again_and_again(home: Home, large: Path, way: None) -> None:
    home("mount", f"oci:{large}", home.target).good()
    moments = random.Random(3)
    kills = 6 if "SOCI_WITHOUT" in home.env else 25
    with reading(home.target, home.folder / "stop"):
        for _ in range(kills):
            time.sleep(moments.uniform(0, 0.4))
            kill(home)
    assert home.mounts()[0]["restarts"] == kills
    home("umount", home.target).good()
    until(lambda: home.left == [])


@both_engines
def test_what_is_open_stays_so(home: Home, layout: Path) -> None:
    """Files, folders, mapped files and inode numbers; twice in a row, and a replacement."""
    home("mount", f"oci:{layout}", home.target).good()
    before = tree(home.target)
    with (home.target / "usr/big").open("rb") as file, os.scandir(home.target) as entries:
        first = next(entries).name
        data = file.read(1000)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            kill(home)
            kill(home)
            home("mounts", "--restart").good()
            assert bytes(mapped) == BIG
            assert data + file.read() == BIG
        assert sorted([first, *(one.name for one in entries)]) == sorted(
            path.name for path in home.target.iterdir()
        )
    assert tree(home.target) == before
    assert home.stats()["folder"] == str(home.target)
    home("umount", home.target).good()
    until(lambda: home.left == [])


@both_engines
def test_a_reader_waits_for_the_successor(home: Home, remote: Remote, way: None) -> None:
    """Its request was in the hands of the server that was killed."""
    home("mount", "--no-background-fetch", remote.image, home.target).good()
    remote.proxy.add(Fault(Hang(), remote.lower, "GET"))
    with subprocess.Popen(["cat", home.target / "usr/big"], stdout=subprocess.PIPE) as reader:
        until(lambda: remote.proxy.seen("GET", remote.lower))
        remote.proxy.clear()
        kill(home)
        assert reader.communicate(timeout=PATIENCE)[0] == BIG
    home("umount", home.target).good()


@both_engines
def test_the_registry_is_away(home: Home, remote: Remote) -> None:
    """What is in the cache is read all the same, though a tag and the zTOCs are not to be had."""
    home("mount", "--no-background-fetch", remote.image, home.target).good()
    assert (home.target / "usr/big").read_bytes() == BIG
    remote.proxy.add(Fault(error_reply(503, "UNAVAILABLE")))
    for path in (home.folder / ".cache/soci/blobs").iterdir():
        path.unlink()
    seen = len(remote.proxy.seen())
    kill(home)
    assert (home.target / "usr/small").read_bytes() == b"small\n"
    assert (home.target / "usr/big").read_bytes() == BIG
    assert len(remote.proxy.seen()) == seen
    home("umount", home.target).good()


@both_engines
def test_the_holder_is_killed(home: Home, layout: Path) -> None:
    """The server starts another one, so that it can be killed after that."""
    home("mount", f"oci:{layout}", home.target).good()
    for _ in range(2):
        kill_holder(server(home))
        kill(home)
        assert (home.target / "usr/big").read_bytes() == BIG
    home("umount", home.target).good()
    until(lambda: home.left == [])


@both_engines
def test_replacing_while_it_is_read(home: Home, large: Path, way: None) -> None:
    home("mount", f"oci:{large}", home.target).good()
    with reading(home.target, home.folder / "stop"):
        for _ in range(5):
            pid = server(home)
            shown = home("mounts", "--restart", "--format", "json", home.target).good()
            assert json.loads(shown.text) == {
                "image": f"oci:{large}",
                "folder": str(home.target),
                "pid": server(home),
                "pid_before": pid,
            }
            assert server(home) != pid
    home("umount", home.target).good()
    until(lambda: home.left == [])


@both_engines
def test_unmounting_while_nobody_serves(home: Home, layout: Path) -> None:
    for force in ([], ["--force"]):
        home("mount", f"oci:{layout}", home.target).good()
        os.kill(server(home), signal.SIGKILL)
        home("umount", *force, home.target).good()
        assert not home.is_mounted()
        assert home.left == []


def test_a_list_of_files_goes_on(home: Home, layout: Path) -> None:
    record = home.folder / "list.json"
    home("mount", "--record", record, f"oci:{layout}", home.target).good()
    (home.target / "usr/small").read_bytes()
    until(lambda: "/usr/small" in json.loads(record.read_text()))
    kill(home)
    (home.target / "etc/hosts").read_bytes()
    home("mounts", "--restart").good()
    (home.target / "usr/big").read_bytes()
    home("umount", home.target).good()
    assert json.loads(record.read_text()) == ["/usr/small", "/etc/hosts", "/usr/big"]


def test_credentials_go_on(
    home: Home, layout: Path, docker_registry_htpasswd: DockerRegistry
) -> None:
    """A successor has them, and nobody else: they are in no file, and in no list of processes."""
    image = f"docker://{docker_registry_htpasswd.host}/app:1"
    given = ("--user", USER, "--password-stdin")
    password = PASSWORD.encode()
    convert = ("image", "convert", "--soci", "--soci-min-layer-size", "0", *given)
    process(*convert, f"oci:{layout}", image, home=home.folder, stdin=password).good()
    mount = ("mount", "--no-background-fetch", *given, image, home.target)
    process(*mount, home=home.folder, stdin=password).good()
    kill(home)
    home("mounts", "--restart").good()
    kill(home)
    assert (home.target / "usr/big").read_bytes() == BIG
    pid = server(home)
    for one in (pid, holder_of(pid)):
        for name in ("cmdline", "environ"):
            assert password not in Path(f"/proc/{one}/{name}").read_bytes()
    written = [
        path
        for path in home.folder.rglob("*")
        if path.is_file() and not path.is_relative_to(home.target)
    ]
    assert len(written) > 3
    assert not any(password in path.read_bytes() for path in written)
    home("umount", home.target).good()


def test_a_successor_is_told_to_end(home: Home, layout: Path) -> None:
    home("mount", f"oci:{layout}", home.target).good()
    kill(home)
    assert (home.target / "usr/small").read_bytes() == b"small\n"
    os.kill(server(home), signal.SIGTERM)
    until(lambda: not home.is_mounted() and not home.left)


def test_a_holder_is_told_to_end(home: Home, layout: Path) -> None:
    """It does when the server does, to which the same is said, as when a session or a service ends."""
    home("mount", f"oci:{layout}", home.target).good()
    pid = server(home)
    holder = holder_of(pid)
    assert holder
    os.kill(holder, signal.SIGTERM)
    os.kill(holder, signal.SIGHUP)
    kill(home)
    assert holder_of(server(home)) == holder
    assert (home.target / "usr/small").read_bytes() == b"small\n"
    for one in (holder, server(home)):
        os.kill(one, signal.SIGTERM)
    until(lambda: not home.is_mounted() and not home.left)
    until(lambda: not Path(f"/proc/{holder}/cmdline").exists())


@pytest.mark.slow
def test_servers_that_end_at_once(home: Home, layout: Path) -> None:
    """After ten of them the mount is as one whose server and holder were killed."""
    home("mount", f"oci:{layout}", home.target).good()
    (facts,) = home.mounts()
    host = Path(facts["log"]).parents[2] / "hosts"
    (log,) = host.glob("*/log")
    holder = holder_of(server(home))
    assert holder
    os.kill(server(home), signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{holder}/exe").exists():
        for pid in children(holder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert home.mounts()[0]["state"] == "crashed"
    assert log.read_text().count("these mounts are given up") == 1
    with pytest.raises(OSError, match=r"not connected|Input/output"):
        (home.target / "usr/big").read_bytes()
    home("umount", home.target).good()
    assert not home.is_mounted()
    until(lambda: not list(host.glob("[!.]*")))


def test_what_cannot_be_replaced(home: Home, layout: Path) -> None:
    """A mount that a command serves itself, one that crashed, one that is not there."""
    served = home.start("mount", "--foreground", f"oci:{layout}", home.target)
    assert served.stdout is not None
    assert served.stdout.readline()
    home("mounts", "--restart", home.target).bad(1, str(home.target), "in the foreground")
    served.terminate()
    served.communicate(timeout=PATIENCE)
    home("mount", f"oci:{layout}", home.target).good()
    crash(server(home))
    until(lambda: home.mounts()[0]["state"] == "crashed")
    home("mounts", "--restart").bad(1, str(home.target), "crashed", "soci umount")
    home("umount", home.target).good()
    home("mounts", "--restart", home.target).bad(1, str(home.target), "soci mounts")
    assert home("mounts", "--restart").good().text == ""


@both_engines
def test_a_server_that_hangs_is_replaced(home: Home, layout: Path) -> None:
    home("mount", f"oci:{layout}", home.target).good()
    pid = server(home)
    os.kill(pid, signal.SIGSTOP)
    home("mounts", "--restart", "-q").good()
    assert server(home) != pid
    assert (home.target / "usr/big").read_bytes() == BIG
    home("umount", home.target).good()
