"""Asking a process over its socket."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from soci_cli.errors import StorageError, UnreachableError
from soci_cli.processes import control
from soci_cli.processes.control import (
    Answers,
    Caller,
    ControlServer,
    NoAnswerError,
    RemoteError,
    ask,
    connect,
    talk,
)


@dataclass(frozen=True)
class Stats:
    mount: str = "x"


@dataclass(frozen=True)
class Stop:
    pass


@dataclass(frozen=True)
class Large:
    size: int


@contextmanager
def serving(folder: Path, answers: Answers) -> Iterator[list[str]]:
    """A server; the lines that it logged."""
    log: list[str] = []
    with ControlServer(folder, answers, log.append):
        yield log


def test_asking(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30) / ("longer" * 20)  # longer than an address may be
    folder.mkdir(parents=True)

    def refuse(question: Stop, caller: Caller) -> object:
        error = UnreachableError("nobody is there", refused=True)
        error.attempts = 6
        raise error.at(place="oci:here", file="/mnt")

    answers: Answers = {
        Stats: lambda question, caller: {"of": question.mount, "spans": [1, 2]},
        Stop: refuse,
        Large: lambda question, caller: "x" * question.size,
    }
    with serving(folder, answers) as log:
        assert ask(folder, Stats("a")) == {"of": "a", "spans": [1, 2]}
        assert len(ask(folder, Large(3_000_000))) == 3_000_000
        with pytest.raises(UnreachableError) as raised:
            ask(folder, Stop())
        assert str(raised.value) == "/mnt in oci:here: nobody is there (6 attempts)"
        assert (raised.value.refused, raised.value.transient) == (True, True)
    assert log == []
    with pytest.raises(NoAnswerError, match="does not answer"):
        ask(folder, Stats())
    with pytest.raises(NoAnswerError):
        ask(tmp_path / "absent", Stats())


def say(folder: Path, data: bytes) -> Any:
    """What is answered to these bytes."""
    with connect(folder) as connection:
        connection.sendall(data)
        answer = b""
        while piece := connection.recv(1 << 16):
            answer += piece
        return json.loads(answer)


@pytest.mark.parametrize(
    ("question", "problem"),
    [
        ("stats", "no JSON"),
        ("[1]", "another version"),
        ({"version": 2, "question": "Stats", "fields": {}}, "another version"),
        ({"version": 1, "question": "Other", "fields": {}}, "does not know"),
        ({"version": 1, "question": "Stats"}, "a question is no dict"),
        ({"version": 1, "question": "Stats", "fields": {"mount": 1}}, "mount is no str"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_questions_that_are_none(tmp_path: Path, question: object, problem: str) -> None:
    text = question if isinstance(question, str) else json.dumps(question)
    with serving(tmp_path, {Stats: lambda question, caller: 1}):
        assert problem in say(tmp_path, text.encode() + b"\n")["error"]["fields"]["message"]
        assert ask(tmp_path, Stats()) == 1


def test_who_says_nothing_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor who says half a question, or does not listen."""
    monkeypatch.setattr(control, "PATIENCE", 30.0)
    with serving(tmp_path, {Stats: lambda question, caller: 1, Large: lambda *_: "x" * 9_000_000}):
        silent = [connect(tmp_path) for _ in range(5)]
        silent[0].sendall(b'{"version"')
        silent[1].sendall(b'{"version": 1, "question": "Large", "fields": {"size": 1}}\n')
        began = time.monotonic()
        assert ask(tmp_path, Stats()) == 1
        assert time.monotonic() - began < 10
        for one in silent:
            one.close()


def test_who_is_silent_for_too_long_is_sent_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "PATIENCE", 0.1)
    with serving(tmp_path, {Stats: lambda question, caller: 1}) as log, connect(tmp_path) as silent:
        silent.settimeout(60)
        assert silent.recv(1) == b""
    assert log == []


def test_a_defect_is_answered_and_logged(tmp_path: Path) -> None:
    """The process goes on."""

    def defect(question: Stats, caller: Caller) -> object:
        raise ZeroDivisionError("oh")

    with serving(tmp_path, {Stats: defect, Stop: lambda question, caller: 2}) as log:
        for _ in range(3):
            with pytest.raises(RemoteError, match="ZeroDivisionError: oh") as raised:
                ask(tmp_path, Stats())
            assert "test_control.py" in str(raised.value.__cause__)
        assert ask(tmp_path, Stop()) == 2
    assert len(log) == 3
    assert "test_control.py" in log[0]


def test_more_clients_than_are_answered_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_MOST_CLIENTS", 3)
    with serving(tmp_path, {Stats: lambda question, caller: 1}):
        silent = [connect(tmp_path) for _ in range(6)]
        for one in silent[3:]:
            one.settimeout(60)
            assert one.recv(1) == b""
        for one in silent:
            one.close()
        deadline = time.monotonic() + 60
        while True:
            try:
                assert ask(tmp_path, Stats()) == 1
                break
            except NoAnswerError:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_news(tmp_path: Path) -> None:
    """What happens is told before the answer, which may take longer than the first word."""
    going_on = threading.Event()

    def answer(question: Stats, caller: Caller) -> object:
        caller.tell(begun=question.mount)
        assert going_on.wait(30)
        caller.tell(done=1)
        return "end"

    heard: list[object] = []

    def hear(news: object) -> None:
        heard.append(news)
        going_on.set()

    with serving(tmp_path, {Stats: answer}), connect(tmp_path) as connection:
        assert talk(connection, Stats("a"), 20.0, hear) == "end"
    assert heard == [{"begun": "a"}, {"done": 1}]


def test_who_is_gone(tmp_path: Path) -> None:
    seen: list[bool] = []
    ended = threading.Event()

    def answer(question: Stats, caller: Caller) -> object:
        seen.append(caller.is_gone)
        caller.tell(begun=True)
        deadline = time.monotonic() + 30
        while not caller.is_gone and time.monotonic() < deadline:
            time.sleep(0.01)
        seen.append(caller.is_gone)
        caller.tell(nobody="hears it")
        ended.set()
        return None

    with serving(tmp_path, {Stats: answer}):
        connection = connect(tmp_path)

        def leave(news: object) -> None:
            connection.shutdown(socket.SHUT_RDWR)

        with connection, pytest.raises(NoAnswerError):
            talk(connection, Stats(), 20.0, leave)
        assert ended.wait(30)
    assert seen == [False, True]


def test_a_server_that_ends_answers_before(tmp_path: Path) -> None:
    asked, going_on = threading.Event(), threading.Event()

    def answer(question: Stop, caller: Caller) -> object:
        asked.set()
        return going_on.wait(10)

    server = ControlServer(tmp_path, {Stop: answer}, print)
    with ThreadPoolExecutor() as pool:
        answered = pool.submit(ask, tmp_path, Stop())
        assert asked.wait(10)
        closing = pool.submit(server.close)
        assert not closing.done()
        going_on.set()
        closing.result(10)
        assert answered.result(10) is True


def test_a_server_that_hangs(tmp_path: Path) -> None:
    going_on = threading.Event()
    with serving(tmp_path, {Stats: lambda question, caller: going_on.wait()}):
        with pytest.raises(NoAnswerError):
            ask(tmp_path, Stats(), 0.05)
        going_on.set()
        assert ask(tmp_path, Stats()) is True


def test_a_socket_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "socket").mkdir()
    with pytest.raises(StorageError, match="socket"):
        ControlServer(tmp_path, {}, print)
