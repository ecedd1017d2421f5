"""The daemon as a program: flags, variables, configuration, log, sockets, signals."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli

from soci_cli.errors import StateError
from soci_cli.snapshotter.logs import JsonLog
from tests.snapshotter.client import Client
from tests.snapshotter.world import KILLED, PATIENCE, Daemon
from tests.support.commands import environment

PROGRAM = [sys.executable, "-m", "soci_cli.commands.snapshotter"]


def run(
    *arguments: str | Path, home: Path, status: int = 0, **more: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(home, **more),
        timeout=PATIENCE,
    )
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture
def daemon(tmp_path: Path, need_root: None) -> Iterator[Daemon]:
    with Daemon(tmp_path / "daemon") as made:
        yield made


def test_version(tmp_path: Path) -> None:
    line = run("--version", home=tmp_path).stdout
    assert re.fullmatch(r"soci-snapshotter-grpc version v\d+\.\d+\.\d+ \S+\n", line)


def test_configuration(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("mount_timeout_sec = 7\nodd = 1\n")
    default = tomli.loads(run("config", "default", home=tmp_path).stdout)
    assert default["mount_timeout_sec"] == 30
    for done in (
        run("--config", file, "config", "dump", home=tmp_path),
        run("config", "dump", home=tmp_path, SOCI_SNAPSHOTTER_CONFIG=str(file)),
    ):
        assert tomli.loads(done.stdout) == {**default, "mount_timeout_sec": 7}
        assert "unknown key" in done.stderr


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--address", "tcp://127.0.0.1:1"], "unix://PATH or fd:// is expected"),
        (["--config", "/nowhere/config.toml"], "there is no such file"),
    ],
)
def test_what_it_cannot_start_with(tmp_path: Path, flags: list[str], error: str) -> None:
    done = run("--root", tmp_path / "root", *flags, home=tmp_path, status=1)
    (line,) = done.stderr.splitlines()
    assert '"level": "fatal"' in line
    assert error in line


def test_wrong_flags(tmp_path: Path) -> None:
    for flags in (["--nonsense"], ["--log-level", "loud"]):
        (line,) = run(*flags, home=tmp_path, status=1).stderr.splitlines()
        assert line.startswith("soci-snapshotter-grpc: ")


def test_the_root_of_another_program(tmp_path: Path, need_root: None) -> None:
    home = tmp_path / "root/snapshotter"
    home.mkdir(parents=True)
    (home / "metadata.db").touch()
    done = run("--root", tmp_path / "root", home=tmp_path, status=1)
    assert "remove the images with that first, or give another --root" in done.stderr


def test_log(daemon: Daemon) -> None:
    with Client(daemon.address) as client:
        client.prepare("key", "", {})
        client.commit("key", "name", {})
        with pytest.raises(StateError):
            client.mounts("name")
    assert daemon.stop() == 0
    first, second, third, *_, last = daemon.lines()
    assert first["msg"] == "starting soci-snapshotter-grpc"
    assert first["version"].startswith("v")
    assert second["msg"] == "soci-snapshotter-grpc successfully started"
    assert second["address"] == daemon.address
    assert (third["level"], third["key"]) == ("warning", "name")
    assert last["msg"] == "ending soci-snapshotter-grpc"
    for line in (first, second, third, last):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", line["time"])


def test_no_secret_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    log = JsonLog("warn", sys.stdout)
    log("info", "not shown")
    log("warning", "GET https://a.example/b?X-Sig=abc&y=d failed", error="http://x/?t=1", count=3)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    assert "https://a.example/b?X-Sig=redacted&y=redacted failed" in out
    assert '"count": 3' in out and "t=1" not in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(daemon: Daemon, number: int) -> None:
    socket_file = Path(daemon.address)
    assert stat.S_IMODE(socket_file.stat().st_mode) == 0o600
    assert daemon.stop(number) == 0
    assert not socket_file.exists()


def test_a_second_daemon_takes_the_path(daemon: Daemon, tmp_path: Path) -> None:
    """The first one's end leaves the second's socket alone."""
    first = daemon._process
    assert first is not None
    daemon._process = None
    daemon.start()
    first.send_signal(signal.SIGTERM)
    assert first.wait(PATIENCE) == 0
    with Client(daemon.address) as client:
        client.prepare("key", "", {})


def test_a_socket_that_was_left(daemon: Daemon) -> None:
    daemon.stop(KILLED)
    assert Path(daemon.address).exists()
    daemon.start()
    with Client(daemon.address) as client:
        client.prepare("key", "", {})


def test_a_long_path(tmp_path: Path, need_root: None) -> None:
    """An address has 107 bytes at most, and a path more."""
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    command = [*PROGRAM, "--address", str(folder / "s"), "--root", str(tmp_path / "root")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment(tmp_path)) as process:
        assert process.stderr is not None
        while b"successfully started" not in (line := process.stderr.readline()):
            assert line, "it ended"
        assert stat.S_ISSOCK((folder / "s").stat().st_mode)
        process.terminate()


def test_systemd(tmp_path: Path, need_root: None) -> None:
    """The socket that is passed is used, and systemd hears of the start and of the end."""
    path, told = tmp_path / "s", tmp_path / "n"
    script = 'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
    flags = ["--address", "fd://", "--root", str(tmp_path / "root")]
    with (
        socket.socket(socket.AF_UNIX) as passed,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified,
    ):
        passed.bind(str(path))
        passed.listen()
        notified.bind(str(told))
        notified.settimeout(PATIENCE)
        saved = os.dup(3) if _is_open(3) else None
        os.dup2(passed.fileno(), 3)
        try:
            process = subprocess.Popen(
                ["sh", "-c", script, "sh", *PROGRAM, *flags],
                pass_fds=[3],
                stderr=subprocess.DEVNULL,
                env=environment(tmp_path, NOTIFY_SOCKET=str(told)),
            )
        finally:
            os.close(3)
            if saved is not None:
                os.dup2(saved, 3)
                os.close(saved)
        assert notified.recv(100) == b"READY=1"
        with Client(str(path)) as client:
            client.prepare("key", "", {})
            assert client.stat("key").name == "key"
        process.terminate()
        assert notified.recv(100) == b"STOPPING=1"
        assert process.wait(PATIENCE) == 0
    assert path.exists()  # it is systemd's


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
