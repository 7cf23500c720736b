"""Exits that are stopped on purpose and replaced, under load: nobody is refused, and what is open goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from tests.support.applications import connect, read_exactly, through
from tests.support.background import PATIENCE, Background
from tests.support.load import Load, Talk
from tests.support.numbered import Numbered, NumberedLoad
from tests.support.programs import Exit, World, until
from tests.support.targets import HttpTarget, Manner, TcpTarget
from tests.support.two_exits import TwoExits

RESTARTS: Final = 10
PROMISED: Final = 10.0
"""Seconds that a request waits for the link, as docs/applications.md says."""
GRACE: Final = {"shutdown_grace": 60}


def replaced(world: World, old: Exit, flags: tuple[str, ...] = ()) -> Exit:
    """Another exit on the same port, which is started as soon as `old` has released it."""
    old.process.terminate()
    old.says("released: another exit can start here")
    return world.exit(GRACE, port=old.port, flags=flags)


@pytest.mark.parametrize("connect", ["exact", "learned", "eager"])
def test_ten_planned_restarts_refuse_nobody(
    world: World,
    background: Background,
    echo_target: TcpTarget,
    capsys: pytest.CaptureFixture[str],
    connect: str,
) -> None:
    """Nor is anybody reset who was answered early: what has crossed the request to leave is served."""
    exit = first = world.exit(GRACE)
    client = world.client(exit, {"connect": connect})
    talk = Talk(through(client.port, echo_target.port))
    with Load(background, client.port, echo_target) as load:
        until(lambda: load.answered > 100, "connections go through")
        for number in range(RESTARTS):
            mark, answered = client.written, load.answered
            exit = replaced(world, exit)
            client.says("link up", since=mark)
            until(lambda: load.answered > answered + 100, "new connections go on")  # noqa: B023
            if not number:
                assert first.process.poll() is None, "it is there for the open stream"
                talk.goes_on()
                talk.end()
                assert first.wait() == 0
    with capsys.disabled():
        print(f"\n{RESTARTS} planned restarts, {connect}: {load}")
    assert not load.wrong
    assert (client.status()["connections"]["early"] > 0) == (connect != "exact")
    assert load.slowest < PROMISED
    until(lambda: client.streams == 0, "no stream is left")


def test_planned_restarts_fail_no_page(
    world: World, background: Background, http: HttpTarget, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain HTTP requests are sent before the exit has connected their origin."""
    exit = world.exit(GRACE)
    client = world.client(exit)
    with Load(background, client.port, http, plain=True) as load:
        for _ in range(RESTARTS // 2):
            mark, answered = client.written, load.answered
            exit = replaced(world, exit)
            client.says("link up", since=mark)
            until(lambda: load.answered > answered + 50, "new pages come")  # noqa: B023
    with capsys.disabled():
        print(f"\n{RESTARTS // 2} planned restarts: {load}")
    assert not load.wrong
    assert load.slowest < PROMISED


def test_new_connections_go_to_the_other_exit_at_once(
    world: World, background: Background, echo_target: TcpTarget, capsys: pytest.CaptureFixture[str]
) -> None:
    exits = TwoExits(world, exit_settings=GRACE)
    talk = Talk(through(exits.client.port, echo_target.port))
    with Load(background, exits.client.port, echo_target) as load:
        until(lambda: load.answered > 10, "connections go through")
        exits.first.process.terminate()
        exits.client.says("new connections go through exit second")
        answered = load.answered
        until(lambda: load.answered > answered + 100, "new connections go on")
        talk.goes_on()
        assert exits.first.process.poll() is None
        talk.end()
        assert exits.first.wait() == 0
    with capsys.disabled():
        print(f"\none of two exits stops: {load}")
    assert not load.wrong
    assert load.slowest < PROMISED


@pytest.mark.parametrize(
    ("connect", "flags"), [("eager", ()), ("learned", ("--overlap",))], ids=["eager", "learned, overlap"]
)
def test_ten_restarts_of_one_of_two_exits_serve_each_request_once(
    world: World,
    background: Background,
    serve: Callable[[Manner], TcpTarget],
    capsys: pytest.CaptureFixture[str],
    connect: str,
    flags: tuple[str, ...],
) -> None:
    """It is the one in use each time. Only a GET of plain HTTP may come twice: its exit may have gone before it was
    answered."""
    numbered = Numbered()
    exits = TwoExits(world, GRACE, flags, failback=0, connect=connect)
    client = exits.client
    with NumberedLoad(background, client.port, serve(numbered)) as load:
        until(lambda: load.answered > 100, "requests are answered")
        for _ in range(RESTARTS):
            mark = client.written
            exits.first = replaced(world, exits.first, flags)
            client.says("new connections go through exit first", since=mark)
            answered = load.answered
            until(lambda: load.answered > answered + 50, "new requests are answered")  # noqa: B023
    early, again = client.status()["connections"]["early"], len(numbered.twice("get"))
    with capsys.disabled():
        print(
            f"\n{RESTARTS} restarts of one of two exits, {connect}: {load}; {early} early, {again} GET twice"
        )
    assert not load.wrong
    assert not numbered.twice("tunnel") and not numbered.twice("post")
    assert early > 0
    assert load.slowest < PROMISED
    until(lambda: client.streams == 0, "no stream is left")


def test_kept_connections_do_not_hold_an_exit_that_stops(world: World, http: HttpTarget) -> None:
    """An HTTP application keeps its connection for later, and so does the client its stream to the origin."""
    exit = world.exit(dict(GRACE))
    client = world.client(exit)
    with connect(client.port) as application:
        for _ in range(2):
            application.sendall(b"GET http://127.0.0.1:%d/hello HTTP/1.1\r\nHost: x\r\n\r\n" % http.port)
            answer = b""
            while not answer.endswith(b"hello\n"):
                answer += read_exactly(application, 1)
        assert exit.streams == 1
        assert exit.stop(PATIENCE) == 0
