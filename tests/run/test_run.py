"""`soci run` in the foreground: real containers by real runtimes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from soci_cli.kernel.points import mount_points
from soci_cli.run.seccomp import DEFAULT_PROFILE
from soci_cli.trial_registry import RegistryServer
from tests.commands.mounting import Home
from tests.run.conftest import UNIFIED
from tests.run.schemas import check_config
from tests.run.shell_image import make_shell_image
from tests.support.commands import SOCI, Done, Soci, environment
from tests.support.images import noise, run_convert
from tests.support.machine import need, need_root


def state(home: Home) -> Path:
    return home.folder / ".local/state/soci"


def left(home: Home) -> list[str]:
    """What is left of containers: folders, mounts, and servers."""
    found = [
        str(path)
        for kind in ("containers", "mounts", "images/*")
        for path in state(home).glob(f"{kind}/[!.]*")
        if path.name != "lock"
    ]
    return found + [one.path for one in mount_points() if one.path.startswith(str(home.folder))]


def run(home: Home, *arguments: str | Path) -> Done:
    return home("run", "--rm", *arguments)


def piped(home: Home, *arguments: str) -> subprocess.Popen[bytes]:
    """Starts a container whose stdin and stdout are pipes."""
    return subprocess.Popen(
        [*SOCI, "run", "--rm", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=home.folder,
        env=environment(home.folder, **home.env),
    )


def lines(done: Done) -> list[str]:
    return done.good().text.splitlines()


def test_streams_and_exit_status(home: Home, shell_image: str, runtime: str) -> None:
    by = ("--runtime", runtime)
    done = run(home, *by, shell_image, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.status, done.text, done.err) == (7, "out\n", "err\n")
    data = noise(1, 3_000_000)
    with piped(home, *by, "-i", shell_image, "cat") as started:
        assert started.communicate(data)[0] == data
    run(home, *by, shell_image, "nope").bad(127, "nope", "/usr/bin:/bin")
    assert left(home) == []


def test_without_i_there_is_no_stdin(home: Home, shell_image: str) -> None:
    script = "cat; sh -c 'kill -TERM $$'; exit $?"
    with piped(home, "-q", shell_image, "sh", "-c", script) as started:
        assert started.communicate(b"data")[0] == b""
    assert started.returncode == 143


def test_program_that_cannot_be_run(home: Home, shell_image: str) -> None:
    run(home, "-q", shell_image, "/data/file").bad(126, "/data/file", "not executable")
    run(home, "-q", shell_image, "/data").bad(126, "folder")
    assert left(home) == []


def test_wrong_flags(soci: Soci, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_root()
    monkeypatch.setenv("SOCI_STATE", str(tmp_path / "state"))
    done = soci("run", "--no-such-flag", "oci:/nowhere")
    assert done.status == 125
    assert "--no-such-flag" in done.err
    assert soci("run").status == 125
    for words, part in {
        "--privileged": "--privileged",
        "-m 1": "-m",
        "-m lots": "-m",
        "--cpus 0": "--cpus",
        "-v name:/x": "name",
        "-v /tmp": "SRC:DST",
        "-v /tmp:/x:fast": "fast",
        "--tmpfs x": "--tmpfs",
        "-e =x": "NAME=VALUE",
        "--env-file /nowhere": "/nowhere",
        "--security-opt label=x": "label=x",
        "--security-opt seccomp=/nowhere": "/nowhere",
        "--pull never docker://127.0.0.1:1/x": "--pull never",
    }.items():
        soci("run", *words.split(), "oci:/nowhere", "true").bad(125, part)


def test_what_an_image_cannot_give(home: Home, shell_image: str) -> None:
    home("run", "-q", "oci:/nowhere", "true").bad(125, "/nowhere")
    home("run", "-q", "-w", "relative", shell_image, "true").bad(125, "relative")
    home("run", "-q", "-u", "nobody", shell_image, "true").bad(125, "nobody")
    assert left(home) == []


def test_environment_user_and_folder(home: Home, shell_image: str, runtime: str) -> None:
    (home.folder / "vars").write_text("# none\n\nFROM_FILE=a=b\nHERE\n")
    home.env |= {"HERE": "here", "ABSENT": ""}
    del home.env["ABSENT"]
    flags = "-e FROM_FLAG=flag -e ABSENT --env-file vars -u app -w /data --hostname named"
    script = "env; id -un; id -Gn; pwd; hostname; cat /etc/hostname; cat /etc/secret"
    done = run(home, "--runtime", runtime, *flags.split(), shell_image, "sh", "-c", script)
    assert done.status == 1  # root's file is closed to the user
    found = done.text.splitlines()
    assert set(found) >= {"FROM_IMAGE=image", "FROM_FLAG=flag", "FROM_FILE=a=b", "HERE=here"}
    assert set(found) >= {"HOME=/home/app", "HOSTNAME=named"}
    assert not [line for line in found if line.startswith("ABSENT")]
    assert found[-5:] == ["app", "app extra", "/data", "named", "named"]


STATUS = "while read a b; do echo $a $b; done < /proc/self/status"


def test_what_root_may_do(home: Home, shell_image: str, runtime: str) -> None:
    script = f"""
        {STATUS}
        touch /new && chown 5:6 /new && ls -n /new
        echo x > /proc/sys/kernel/hostname || echo read-only
        ls /sys/firmware
        mount -t tmpfs none /tmp 2> /dev/null || echo no mounts
    """
    done = run(home, "--runtime", runtime, shell_image, "sh", "-c", script)
    status = dict(line.split(": ") for line in done.text.splitlines() if ": " in line)
    assert status["CapEff"] == status["CapBnd"] == "00000000a80425fb"  # Docker's
    assert status["NoNewPrivs"] == "1"
    if DEFAULT_PROFILE.exists():
        assert status["Seccomp"] == "2"
    listed, *rest = done.text.splitlines()[-3:]
    assert listed.split()[2:4] == ["5", "6"]
    assert rest == ["read-only", "no mounts"]


def test_security_flags(home: Home, shell_image: str) -> None:
    flags = "--cap-drop ALL --cap-add CHOWN --security-opt seccomp=unconfined "
    flags += "--security-opt no-new-privileges=false"
    done = run(home, "-q", *flags.split(), shell_image, "sh", "-c", STATUS)
    status = dict(line.split(": ") for line in lines(done) if ": " in line)
    assert status["CapEff"] == "0000000000000001"
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("0", "0")


def test_volumes(home: Home, shell_image: str, runtime: str) -> None:
    source = home.folder / "source"
    (source / "inner").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", source / "inner"], check=True)
    try:
        (source / "file").write_text("host\n")
        flags = (
            f"-v {source}:/rw -v ./source:/ro:ro -v {home.folder}/made:/made --tmpfs /mem:size=1m"
        )
        script = """
            cat /rw/file; echo guest > /rw/file; cat /ro/file; echo > /made/file
            echo > /ro/file || echo ro; echo > /ro/inner/file || echo ro inner
            echo > /mem/file && ls /mem
        """
        done = run(
            home, "-q", "--runtime", runtime, *flags.split(), shell_image, "sh", "-c", script
        )
        assert lines(done) == ["host", "guest", "ro", "ro inner", "file"]
        assert (source / "file").read_text() == "guest\n"
        assert (home.folder / "made/file").exists()
    finally:
        subprocess.run(["umount", source / "inner"], check=True)


def test_read_only(home: Home, shell_image: str) -> None:
    script = "echo > /new || echo ro; echo > /tmp/new && echo rw; cat /etc/hosts > /dev/null"
    flags = ["--read-only", "--tmpfs", "/tmp", "--network", "none"]
    done = run(home, "-q", *flags, shell_image, "sh", "-c", script)
    assert lines(done) == ["ro", "rw"]


def test_what_is_written_is_not_in_the_image(home: Home, shell_image: str) -> None:
    script = "cat /data/file; rm -r /data; echo > /new; ls -d /data /new"
    for _ in range(2):
        done = run(home, "-q", shell_image, "sh", "-c", script)
        assert done.text.splitlines() == ["data", "/new"]


def test_network(home: Home, shell_image: str) -> None:
    script = "ls /sys/class/net; cat /etc/resolv.conf /etc/hosts"
    done = lines(run(home, "-q", shell_image, "sh", "-c", script))
    here = sorted(os.listdir("/sys/class/net"))  # noqa: PTH208
    assert done[: len(here)] == here
    assert set(Path("/etc/hosts").read_text().splitlines()) <= set(done)
    done = lines(run(home, "-q", "--network", "none", shell_image, "sh", "-c", script))
    assert done[0] == "lo"
    assert "127.0.0.1\tlocalhost" in done


def test_limits(home: Home, shell_image: str, runtime: str) -> None:
    script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max; "
    script += "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max; "
    script += "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max"
    flags = ["-m", "64m", "--pids-limit", "50", "--cpus", "0.5"]
    done = run(home, "--runtime", runtime, *flags, shell_image, "sh", "-c", script)
    memory, pids, cpus = done.text.splitlines()
    assert (int(memory), int(pids), cpus.split()[0]) == (64 << 20, 50, "50000")


def test_signals(home: Home, shell_image: str) -> None:
    script = (
        "trap 'echo term; exit 5' TERM; trap 'echo usr' USR1; echo up; while :; do sleep 0.05; done"
    )
    started = home.start("run", "--rm", "-q", shell_image, "sh", "-c", script)
    assert started.stdout is not None
    assert started.stdout.readline() == b"up\n"
    started.send_signal(signal.SIGUSR1)
    assert started.stdout.readline() == b"usr\n"
    started.send_signal(signal.SIGTERM)
    assert started.communicate(timeout=30)[0] == b"term\n"
    assert started.returncode == 5
    assert left(home) == []


def test_the_third_request_to_end_is_none(home: Home, shell_image: str) -> None:
    started = home.start(
        "run", "--rm", "-q", shell_image, "sh", "-c", "trap '' INT; echo up; exec sleep 100"
    )
    assert started.stdout is not None
    assert started.stdout.readline() == b"up\n"
    while started.poll() is None:
        started.send_signal(signal.SIGINT)
        time.sleep(0.02)
    assert (started.wait(), started.communicate()[1]) == (137, b"")


def is_running(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def test_a_killed_command_leaves_nothing_for_long(home: Home, shell_image: str) -> None:
    started = home.start("run", "--rm", "-q", shell_image, "sh", "-c", "echo up; sleep 100")
    assert started.stdout is not None
    assert started.stdout.readline() == b"up\n"
    (record,) = state(home).glob("containers/[!.]*/container.json")
    pid = json.loads(record.read_text())["pid"]
    check_config(json.loads((record.parent / "scratch/bundle/config.json").read_text()))
    started.kill()
    started.wait()
    assert is_running(pid)
    assert run(home, "-q", shell_image).good().text == "default\n"
    assert not is_running(pid)
    assert left(home) == []


def test_containers_of_one_image_share_its_mount(home: Home, shell_image: str) -> None:
    script = "echo up; read line; echo $line > /data/file; cat /data/file"
    started = [piped(home, "-q", "-i", shell_image, "sh", "-c", script) for _ in range(3)]
    for one in started:
        assert one.stdout is not None
        assert one.stdout.readline() == b"up\n"
    assert len(list(state(home).glob("mounts/[!.]*"))) == 1
    for number, one in enumerate(started):
        out, _ = one.communicate(f"{number}\n".encode(), timeout=30)
        assert (one.returncode, out) == (0, f"{number}\n".encode())
    assert left(home) == []


def test_from_a_registry_and_the_local_store(home: Home, shell_image: str, tmp_path: Path) -> None:
    with RegistryServer(tmp_path / "registry") as server:
        name = f"{server.address}/app:1"
        run_convert(Path(shell_image.removeprefix("oci:")), f"docker://{name}")
        assert run(home, "-q", f"docker://{name}").good().text == "default\n"
        run(home, "-q", "--pull", "never", name).bad(125, "--pull never")
        assert run(home, "-q", name).good().text == "default\n"
        assert run(home, "-q", "--pull", "always", name).good().text == "default\n"
        assert name in home("images").text
    assert left(home) == []


def test_an_image_that_has_changed(home: Home, shell_image: str, tmp_path: Path) -> None:
    """The containers that run keep the image that they have; the next gets the new one."""
    first = make_shell_image(tmp_path / "1", {"Cmd": ["sh", "-c", "echo first; read line"]})
    second = make_shell_image(tmp_path / "2", {"Cmd": ["sh", "-c", "echo second"]})
    place = tmp_path / "image"
    first.rename(place)
    started = piped(home, "-q", "-i", f"oci:{place}")
    assert started.stdout is not None
    assert started.stdout.readline() == b"first\n"
    place.rename(first)
    second.rename(place)
    assert run(home, "-q", f"oci:{place}").good().text == "second\n"
    started.communicate(b"\n", timeout=30)
    assert left(home) == []


def test_links_of_an_image_lead_nowhere_else(home: Home, tmp_path: Path) -> None:
    """What is looked up in an image is never this machine's."""
    secret = tmp_path / "passwd"
    secret.write_text("stranger:x:4242:4242::/:\n")
    links = {"etc/passwd": str(secret), "bin/host": "/proc/self/exe"}
    image = f"oci:{make_shell_image(tmp_path / 'linked', links=links)}"
    run(home, "-q", "-u", "stranger", image, "id").bad(125, "stranger")


def test_other_runtimes_are_tried(home: Home, shell_image: str) -> None:
    need("runc")
    need("crun")
    if not (UNIFIED / "cgroup.controllers").exists():
        pytest.skip("crun works here")
    done = run(home, shell_image).good()
    assert done.text == "default\n"
    assert done.err.startswith("crun did not start the container: ")
    assert done.err.endswith("; runc did\n")
    assert done.err.count("\n") == 1
    run(home, "--runtime", "crun", shell_image).bad(125, "crun did not start the container")
    assert left(home) == []


def test_no_runtime_can(home: Home, shell_image: str) -> None:
    need("runc")
    need("crun")
    (home.folder / "wrong.json").write_text('{"defaultAction": "NO_SUCH_ACTION"}')
    flags = ["--security-opt", "seccomp=wrong.json"]
    run(home, *flags, shell_image).bad(125, "crun did not start", "; runc did not start")
    assert left(home) == []
