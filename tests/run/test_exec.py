"""`soci exec`: one more program in a container that runs."""

from __future__ import annotations

import json
import os
import signal

from tests.commands.mounting import Home
from tests.run.test_run import left
from tests.support.commands import Done, process


def execute(home: Home, *arguments: str, stdin: bytes = b"") -> Done:
    return process("exec", *arguments, home=home.folder, stdin=stdin, env=home.env)


def test_exec(home: Home, shell_image: str, runtime: str) -> None:
    flags = ["--runtime", runtime, "--name", "web", "-e", "GIVEN=run", "-w", "/data"]
    home("run", "-d", *flags, shell_image, "sleep", "100").good()
    done = execute(home, "web", "sh", "-c", "echo $GIVEN; pwd; id -u; cat; echo err >&2; exit 6")
    assert (done.status, done.text, done.err) == (6, "run\n/data\n0\n", "err\n")
    script = "id -un; id -Gn; pwd; echo $HOME $GIVEN; cat; test -t 0 || echo pipe"
    more = ["-i", "-u", "app", "-w", "/tmp", "-e", "GIVEN=exec"]
    done = execute(home, *more, "web", "sh", "-c", script, stdin=b"in\n")
    assert done.good().text == "app\napp extra\n/tmp\n/home/app exec\nin\npipe\n"
    assert execute(home, "-t", "web", "tty").good().out == b"/dev/pts/0\r\n"
    assert execute(home, "web", "sh", "-c", "kill -TERM $$").status == 143
    execute(home, "web", "nope").bad(127, "nope")
    execute(home, "web", "/data/file").bad(126, "/data/file")
    execute(home, "-u", "nobody", "web", "id").bad(2, "nobody")
    execute(home, "-it", "web", "id").bad(2, "no terminal")
    execute(home, "other", "id").bad(1, "no container")
    home("stop", "-t", "0", "web").good()
    execute(home, "web", "id").bad(1, "not running")
    home("rm", "web").good()
    assert left(home) == []


def test_a_server_that_is_killed(home: Home, shell_image: str) -> None:
    """Another one takes the image's mount over, and containers do not see that."""
    home("run", "-q", "-d", "--name", "web", shell_image, "sleep", "100").good()
    (line,) = home("mounts", "--all-owners", "--format", "json").good().text.splitlines()
    os.kill(json.loads(line)["pid"], signal.SIGKILL)
    done = execute(home, "web", "sh", "-c", "cat /data/file; echo x > /data/file; id -un").good()
    assert done.text == "data\nroot\n"
    home("rm", "-f", "web").good()
    assert left(home) == []
