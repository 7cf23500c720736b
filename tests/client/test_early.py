"""Fronts that go on before the exit has answered: when they may, and that nothing that was sent runs twice."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.client.client import Client
from cryprq_proxy.client.requests import Early, StreamRequest
from cryprq_proxy.client.settings import Connect
from cryprq_proxy.errors import StreamReason, StreamRefused, StreamReset
from cryprq_proxy.exit.exit import Exit
from cryprq_proxy.session.liveness import Liveness
from cryprq_proxy.session.streams import AnyStream, StreamHandler
from cryprq_proxy.session.wire import GOAWAY, MAX_STREAM, StreamProtocol, encode_bare
from tests.support.fake_streams import FakeStream
from tests.support.links import App
from tests.support.settle import settle, until
from tests.support.web_links import Place, lose_paths, lose_sessions

NOWHERE = Destination("127.0.0.1", 1)


class Front(App):
    """Writes down when it is told to go on."""

    def expected(self) -> None:
        self._note("expected")


class Successor(Front):
    """Handles a stream later, as a relay does after a negotiation."""

    def moved(self, stream: AnyStream) -> None:
        self._note("moved")
        self.stream = stream  # type: ignore[assignment]


pytestmark = pytest.mark.usefixtures("hasty")


async def up(here: Place, connect: Connect, **options: Any) -> Client:
    client = here.client(here.endpoint("tcp"), connect=connect, **options)
    await until(lambda: client.up)
    return client


def ask(
    client: Client,
    target: Destination,
    early: Early = Early.AS_CONFIGURED,
    protocol: StreamProtocol = StreamProtocol.TCP,
) -> Front:
    front = Front()

    def begin(stream: AnyStream) -> None:
        front.stream = stream  # type: ignore[assignment]

    client.start(StreamRequest(protocol, target, front, begin, early=early))
    return front


async def answered(client: Client, target: Destination, **options: Any) -> list[Any]:
    """All that a front hears up to the exit's answer."""
    front = ask(client, target, **options)
    await until(lambda: front.ended or ("opened",) in front.events)
    return front.events


EXPECTED, OPENED, REFUSED = ("expected",), ("opened",), ("refused", StreamReason.CONNECTION_REFUSED)


# --- when ---


async def test_exact_waits_for_the_exit(here: Place) -> None:
    client = await up(here, "exact")
    for _ in range(2):
        assert await answered(client, here.echo) == [OPENED]
    assert await answered(client, NOWHERE) == [REFUSED]


async def test_eager_waits_for_no_target(here: Place) -> None:
    client = await up(here, "eager")
    assert await answered(client, here.echo) == [EXPECTED, OPENED]
    assert await answered(client, NOWHERE) == [EXPECTED, REFUSED]


async def test_learned_waits_for_a_target_that_this_exit_has_not_reached_lately(here: Place) -> None:
    client, other = await up(here, "learned"), await up(here, "learned")
    assert await answered(client, NOWHERE) == [REFUSED]
    assert await answered(client, NOWHERE) == [REFUSED]
    assert await answered(client, here.echo) == [OPENED]
    assert await answered(client, here.echo) == [EXPECTED, OPENED]
    assert await answered(other, here.echo) == [OPENED], "what one client has learned is its own"
    client._reached.add(NOWHERE)
    assert await answered(client, NOWHERE) == [EXPECTED, REFUSED]
    assert await answered(client, NOWHERE) == [REFUSED], "a refusal is remembered too"


async def test_only_who_tells_its_application_asks_the_configuration(here: Place) -> None:
    exact, eager = await up(here, "exact"), await up(here, "eager")
    assert await answered(exact, here.echo, early=Early.ALWAYS) == [EXPECTED, OPENED]
    assert await answered(eager, here.echo, early=Early.NEVER) == [OPENED]
    for early in Early:
        assert await answered(eager, here.echo, early=early, protocol=StreamProtocol.UDP) == [OPENED]


async def test_a_silent_exit_is_waited_for(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may never answer, and nobody's request could go to another one any more."""
    eager, learned = await up(here, "eager"), await up(here, "learned")
    await answered(learned, here.echo)
    silent = True
    monkeypatch.setattr(Liveness, "overdue", lambda liveness, now: silent)
    for client in (eager, learned):
        assert await answered(client, here.echo) == [OPENED]
        assert await answered(client, here.echo, early=Early.ALWAYS) == [EXPECTED, OPENED], "nobody is told"
    silent = False
    for client in (eager, learned):
        assert await answered(client, here.echo) == [EXPECTED, OPENED]


async def test_what_the_client_knows_it_says_precisely(here: Place) -> None:
    """That there is no link, and that it has too many streams."""
    client = await up(here, "eager", wait_for_link=0.05)
    session = client._kept.session
    assert session is not None
    session.table.numbers.last = MAX_STREAM
    assert ask(client, here.echo).events == [("refused", StreamReason.LIMIT)]
    await client.stop()
    assert ask(client, here.echo).events == [("refused", StreamReason.LINK_DOWN)]


async def test_nobody_is_answered_before_the_link_is_up(here: Place) -> None:
    client = here.client(here.endpoint("tcp"), connect="eager")
    front = ask(client, here.echo)
    assert not front.events
    await until(lambda: OPENED in front.events)
    assert front.events == [EXPECTED, OPENED]


async def test_what_is_sent_at_once_is_answered(here: Place) -> None:
    client = await up(here, "eager")
    stream = await client.open(here.echo, Early.AS_CONFIGURED)
    await stream.write(b"at once")
    assert await stream.read() == b"at once"
    stream.abort()
    with pytest.raises(StreamRefused):
        await client.open(NOWHERE)
    refused = await client.open(NOWHERE, Early.AS_CONFIGURED)
    await refused.write(b"lost")
    with pytest.raises(StreamReset) as reset:
        await refused.read()
    assert reset.value.reason is StreamReason.CONNECTION_REFUSED
    assert not refused.unserved, "the exit has answered"


async def test_it_is_counted_and_the_reason_is_in_the_log(
    here: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "cryprq_proxy.client.client")
    client = await up(here, "eager")
    await answered(client, here.echo)
    await answered(client, NOWHERE)
    await answered(client, NOWHERE, early=Early.NEVER)
    assert client.early == 2
    assert client.early_refused == {StreamReason.CONNECTION_REFUSED: 1}
    assert client.refused() == {StreamReason.CONNECTION_REFUSED: 2}
    [line] = [record.getMessage() for record in caplog.records if "reset" in record.getMessage()]
    assert line.endswith("connection refused") and str(NOWHERE.port) not in line.split(": ")[0]


# --- what moves, and what does not ---


def hang(exit: Exit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit answers nothing on the sessions that there are now."""
    doomed = {entry.session.session_id for entry in exit.sessions}
    accept = exit.sessions._accept_stream

    def ignore(entry: Any, share: Any, stream: Any) -> None:
        if entry.session.session_id not in doomed:
            accept(entry, share, stream)

    monkeypatch.setattr(exit.sessions, "_accept_stream", ignore)


async def hand_on(front: Front) -> Successor:
    """Another handler takes over, as when an application was answered early."""
    assert front.stream is not None and front.events == [EXPECTED]
    successor = Successor()
    successor.stream, front.stream.handler = front.stream, successor
    return successor


async def test_who_has_sent_nothing_goes_on_in_the_next_session(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the stream's present handler; and one that has sent something, or its end, goes nowhere."""
    client = await up(here, "eager")
    hang(here.exit, monkeypatch)
    quiet, said, ended = [await hand_on(ask(client, here.echo)) for _ in range(3)]
    said.say(b"once")
    ended.say(b"", finish=True)
    lose_sessions(here.exit, monkeypatch)
    lose_paths(client)
    await until(lambda: OPENED in quiet.events)
    assert quiet.events == [("moved",), OPENED], "nobody is answered twice"
    assert said.events == ended.events == [("reset", StreamReason.SESSION_LOST)]
    quiet.say(b"now")
    await until(lambda: quiet.received == b"now")
    assert client.early == 3
    assert client.early_refused == {StreamReason.SESSION_LOST: 2}


async def test_who_was_sent_away_by_an_exit_that_stops_goes_on(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await up(here, "eager")
    hang(here.exit, monkeypatch)
    quiet, said = [await hand_on(ask(client, here.echo)) for _ in range(2)]
    said.say(b"once")
    [entry] = here.exit.sessions
    await until(lambda: len(entry.session.streams) == 2)
    for stream in list(entry.session.streams.values()):
        stream.refuse(StreamReason.SHUTTING_DOWN)
    await until(lambda: OPENED in quiet.events)
    assert quiet.events == [("moved",), OPENED]
    assert said.events == [("refused", StreamReason.SHUTTING_DOWN)]
    assert client.early_refused == {StreamReason.SHUTTING_DOWN: 1}


async def test_what_crosses_the_goaway_is_served_once(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await up(here, "eager")
    for entry in here.exit.sessions:
        entry.session.announce(encode_bare(GOAWAY))
    fronts = [ask(client, here.echo) for _ in range(3)]
    for front in fronts:
        front.say(b"once")
    await until(lambda: all(front.received == b"once" for front in fronts))
    await settle()
    assert all(front.events == [EXPECTED, OPENED, ("data",)] for front in fronts)
    assert here.exit.sessions.streams_total == 3


async def test_what_is_withdrawn_from_a_silent_exit(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await up(here, "eager")
    hang(here.exit, monkeypatch)
    quiet, said = [await hand_on(ask(client, here.echo)) for _ in range(2)]
    repeatable, named = ask(client, here.echo, Early.ALWAYS), ask(client, here.echo)
    for front in (said, repeatable):
        front.say(b"once")
    assert named.stream is not None
    named.stream.label.exit = "home"  # type: ignore[attr-defined]
    [request] = client.withdraw()
    assert request.handler is quiet
    assert repeatable.events == [EXPECTED, ("reset", StreamReason.SESSION_LOST)], "its front sends it again"
    assert said.events == [("reset", StreamReason.SESSION_LOST)], "its application decides"
    assert client.early_refused == {StreamReason.SESSION_LOST: 1}
    assert not named.ended, "it may go to this exit only"
    request.begin(FakeStream())
    assert quiet.events == [("moved",)]


async def test_what_an_exit_that_stops_still_serves_is_not_withdrawn(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has crossed the request to leave, and another exit is the active one by now."""
    client = await up(here, "eager")
    hang(here.exit, monkeypatch)
    said = ask(client, here.echo)
    said.say(b"once")
    for entry in here.exit.sessions:
        entry.session.announce(encode_bare(GOAWAY))
    await until(lambda: client.up and client.status().carriers == 2)
    assert not client.withdraw() and not said.ended


async def test_what_is_open_is_not_withdrawn(here: Place) -> None:
    client = await up(here, "eager")
    front = ask(client, here.echo, Early.ALWAYS)
    await until(lambda: OPENED in front.events)
    assert not client.withdraw() and not front.ended


async def test_an_unanswered_request_ends_with_its_present_handler(
    here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the link stays down for longer than requests wait for it."""
    monkeypatch.setattr("cryprq_proxy.client.client.SWEEP_SECONDS", 0.0)
    client = await up(here, "eager", wait_for_link=0.05)
    hang(here.exit, monkeypatch)
    successor = await hand_on(ask(client, here.echo))
    successor.say(b"once")
    await here.exit.stop(0.0)
    await until(lambda: successor.ended)
    assert successor.events[-1][0] in ("refused", "reset")


async def test_a_front_that_fails_ends_its_stream_and_no_other(here: Place) -> None:
    class Broken(StreamHandler):
        ended = False

        def expected(self) -> None:
            raise RuntimeError("on purpose")

        def reset(self, reason: StreamReason) -> None:
            self.ended = True

    client, broken = await up(here, "eager"), Broken()
    client.start(
        StreamRequest(StreamProtocol.TCP, here.echo, broken, lambda stream: None, early=Early.AS_CONFIGURED)
    )
    assert broken.ended
    assert await answered(client, here.echo) == [EXPECTED, OPENED]
