"""Asking what runs: all that answer, and of the failures the one that tells most."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.commands.common import ask, ask_status
from cryprq_proxy.errors import CryprqError
from cryprq_proxy.process.control import ControlServer, NotRunning
from cryprq_proxy.status import ClientStatus, ExitStatus

NOBODY = 65_534

type Answers = dict[str, dict[str, Any] | CryprqError]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """By the name of the socket."""
    by_name: Answers = {}

    def query(path: Path, command: str = "status", timeout: float = 0, *, argument: str = "") -> Any:
        answer = by_name.get(path.name, NotRunning(f"no cryprq-proxy is running (no answer at {path})"))
        if isinstance(answer, CryprqError):
            raise answer
        return answer

    monkeypatch.setattr("cryprq_proxy.process.control.query", query)
    return by_name


def test_all_that_answer_are_told(answers: Answers, tmp_path: Path) -> None:
    answers |= {"client.sock": {"role": "client", "pid": 1}, "exit.sock": {"role": "exit", "pid": 2}}
    sockets = [tmp_path / name for name in ("client.sock", "other.sock", "exit.sock")]
    assert ask_status(sockets) == [ClientStatus(pid=1), ExitStatus(pid=2)]
    assert [answer["pid"] for answer in ask(sockets)] == [1, 2]


def test_one_of_another_version_is_named(answers: Answers, tmp_path: Path) -> None:
    answers |= {"client.sock": {"role": "client", "pid": "one"}}
    with pytest.raises(CryprqError, match=rf"{tmp_path}/client\.sock has another version, restart it"):
        ask_status([tmp_path / "client.sock"])


def test_a_socket_that_is_there_explains_more_than_one_that_is_not(answers: Answers, tmp_path: Path) -> None:
    (tmp_path / "exit.sock").touch()
    answers |= {"exit.sock": CryprqError("ask as root")}
    with pytest.raises(CryprqError, match="ask as root"):
        ask([tmp_path / "client.sock", tmp_path / "exit.sock"])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a directory of another user")
async def test_root_s_directory_does_not_hide_the_user_s_own_client() -> None:
    """A user who may not even look into /run/cryprq asks their own; only without one they are told of root's."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        directory.chmod(0o755)
        own, foreign = directory / "own" / "client.sock", directory / "foreign" / "client.sock"
        foreign.parent.mkdir(mode=0o700)

        async def told() -> ClientStatus:
            return ClientStatus(pid=1)

        server = ControlServer(own, told)
        await server.start()
        for path in (own.parent, own):
            os.chown(path, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            answers = await asyncio.to_thread(ask_status, [foreign, own])
            await server.stop()
            # Behind a closed directory it is unknown whether one runs at all.
            with pytest.raises(
                CryprqError, match=f"^only the owner of {foreign.parent} and root can see whether"
            ):
                await asyncio.to_thread(ask_status, [own, foreign])
            os.seteuid(0)
            server = ControlServer(foreign, told)
            await server.start()
            foreign.parent.chmod(0o755)
            foreign.chmod(0o600)
            os.seteuid(NOBODY)
            with pytest.raises(
                CryprqError, match=f"{foreign} belongs to another user; ask as that user or as root"
            ):
                await asyncio.to_thread(ask_status, [own, foreign])
            os.seteuid(0)
            await server.stop()
        finally:
            os.seteuid(0)
        assert answers == [ClientStatus(pid=1)]


def test_a_socket_that_somebody_left_explains_less_than_one_that_may_not_be_asked(
    answers: Answers, tmp_path: Path
) -> None:
    (tmp_path / "left.sock").touch()
    answers |= {"foreign.sock": CryprqError("ask as root")}
    with pytest.raises(CryprqError, match="ask as root"):
        ask([tmp_path / "left.sock", tmp_path / "foreign.sock"])


def test_with_no_socket_at_all_the_sentence_says_what_to_do(answers: Answers, tmp_path: Path) -> None:
    with pytest.raises(CryprqError, match=r"^no cryprq-proxy is running: start it, or say with --config"):
        ask([tmp_path / "client.sock", tmp_path / "exit.sock"])
