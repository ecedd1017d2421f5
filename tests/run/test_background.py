"""Containers in the background, and the commands about them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from soci_cli.run.logs import LogLine, LogWriter, read_log
from tests.commands.mounting import Home, until
from tests.run.test_run import is_running, left, state
from tests.support.images import noise

SCRIPT = "trap 'echo bye; exit 3' TERM; echo out; echo err >&2; while :; do sleep 0.05; done"


def listed(home: Home, *flags: str) -> list[dict[str, object]]:
    lines = home("ps", *flags, "--format", "json").good().text.splitlines()
    return [json.loads(line) for line in lines]


def test_life_of_a_container(home: Home, shell_image: str, runtime: str) -> None:
    flags = ["--runtime", runtime, "--name", "web", "--label", "a=b"]
    name = home("run", "-d", *flags, shell_image, "sh", "-c", SCRIPT).good().text.strip()
    (shown,) = listed(home)
    assert (shown["id"], shown["name"], shown["state"]) == (name, "web", "running")
    assert shown["labels"] == {"from": "image", "a": "b"}
    until(lambda: home("logs", "web").good().err == "err\n")
    following = home.start("logs", "-f", name[:4])
    home("run", "-d", "--name", "web", shell_image).bad(125, "web")
    home("rm", "web").bad(1, "is running")
    assert home("stop", "web").good().text == "web\n"
    assert following.communicate(timeout=30) == (b"out\nbye\n", b"err\n")
    assert listed(home) == []
    (shown,) = listed(home, "-a")
    assert (shown["state"], shown["exit_code"], shown["pid"]) == ("exited", 3, None)
    home("kill", "web").bad(1, "not running")
    assert home("logs", "web").good().text == "out\nbye\n"
    assert [one for one in left(home) if "containers" not in one] == []
    home("rm", name).good()
    assert listed(home, "-a") == []
    assert left(home) == []
    home("rm", name).bad(1, "no container")


def test_rm_and_kill(home: Home, shell_image: str) -> None:
    script = "trap 'exit 0' INT; while :; do sleep 0.05; done"
    command = ["run", "-q", "-d", "--stop-signal", "INT", shell_image, "sh", "-c", script]
    first, second, third = (home(*command).good().text.strip() for _ in range(3))
    assert set(home("ps", "-q").text.split()) == {first, second, third}
    home("kill", "-s", "NOPE", first).bad(2, "NOPE")
    home("kill", first).good()
    home("stop", second).good()
    until(lambda: len(listed(home)) == 1)
    codes = {one["id"]: one["exit_code"] for one in listed(home, "-a")}
    assert codes == {first: 137, second: 0, third: None}
    home("rm", "-f", first, second, third).good()
    assert left(home) == []


def test_that_does_not_start(home: Home, shell_image: str) -> None:
    home("run", "-q", "-d", shell_image, "nope").bad(127, "nope")
    home("run", "-q", "-d", shell_image, "/data").bad(126, "folder")
    assert left(home) == []


def test_removed_at_its_end(home: Home, shell_image: str) -> None:
    home("run", "-q", "-d", "--rm", shell_image).good()
    until(lambda: left(home) == [])


def test_terminal_in_the_background(home: Home, shell_image: str) -> None:
    name = home("run", "-q", "-d", "-t", shell_image, "tty").good().text.strip()
    until(lambda: listed(home) == [])
    assert home("logs", name).good().out == b"/dev/pts/0\r\n"
    home("rm", name).good()


def test_foreground_containers_are_kept(home: Home, shell_image: str) -> None:
    assert home("run", "-q", "--name", "done", shell_image, "sh", "-c", "exit 9").status == 9
    (shown,) = listed(home, "-a")
    assert (shown["name"], shown["exit_code"]) == ("done", 9)
    home("rm", "done").good()
    assert left(home) == []


def test_a_monitor_that_is_killed(home: Home, shell_image: str) -> None:
    home("run", "-q", "-d", shell_image, "sh", "-c", "sleep 100").good()
    (record,) = state(home).glob("containers/[!.]*/container.json")
    pid = json.loads(record.read_text())["pid"]
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (monitor,) = (int(line.split()[1]) for line in lines if line.startswith("PPid:"))
    assert Path(f"/proc/{monitor}/comm").read_text() == "soci-container\n"
    os.kill(monitor, signal.SIGKILL)
    until(lambda: not is_running(monitor))
    (shown,) = listed(home, "-a")
    assert (shown["state"], shown["exit_code"]) == ("exited", 137)
    assert not is_running(pid)
    home("rm", str(shown["id"])).good()
    assert left(home) == []


def test_logs_keep_every_byte(tmp_path: Path) -> None:
    data = noise(1, 200_000) + b"\nline\n\nno end"
    with LogWriter(tmp_path / "log") as log:
        end = log.stream("stdout")
        for at in range(0, len(data), 1000):
            os.write(end, data[at : at + 1000])
    found = list(read_log(tmp_path / "log"))
    assert b"".join(line.data for line in found) == data
    assert found[-3:] == [LogLine("stdout", one) for one in (b"line\n", b"\n", b"no end")]
    first = json.loads((tmp_path / "log").read_text().splitlines()[0])
    assert set(first) == {"log", "stream", "time"}


def test_logs_that_are_damaged(tmp_path: Path) -> None:
    assert list(read_log(tmp_path / "none")) == []
    (tmp_path / "log").write_text(
        '[]\n{"log": 1}\nx\n{"log": "a\\n", "stream": "stderr"}\n{"log": "b'
    )
    assert list(read_log(tmp_path / "log")) == [LogLine("stderr", b"a\n")]
