"""A whole client against a whole exit on loopback, or against ports without one. Only its pauses are the test's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base.clock import clock
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.carriers.admission import HANDSHAKE_TIMEOUT, Admission, introduce
from cryprq_proxy.carriers.dial.endpoint import Endpoint
from cryprq_proxy.client import client as client_module
from cryprq_proxy.client import endpoints, kept_session, path_opening
from cryprq_proxy.client.backoff import BACKOFF_LAST, JITTER
from cryprq_proxy.client.client import Client
from cryprq_proxy.client.kept_session import PROOF_SECONDS
from cryprq_proxy.client.requests import NOWHERE, ClientObserver, StreamRequest
from cryprq_proxy.client.rest import SOON_SECONDS
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.errors import CarrierError, CloseReason, CryprqError, PeerError, StreamReason, StreamRefused
from cryprq_proxy.exit.providers import Redeemed
from cryprq_proxy.lane.slices import Run, Shape
from cryprq_proxy.rules.ranges import IPNetwork
from cryprq_proxy.session.wire import StreamProtocol
from cryprq_proxy.status import CarrierStatus
from tests.support.links import App
from tests.support.settings import client_settings
from tests.support.settle import settle, until
from tests.support.web_links import (
    CLIENT_IDENTITY,
    EXIT_IDENTITY,
    FAST,
    Place,
    Relay,
    lose_paths,
    lose_sessions,
)


class Pauses:
    """The times that a client wants to wait; it waits for the test instead."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.dials = asyncio.Semaphore(0)

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await self.dials.acquire()


class Watcher(ClientObserver):
    """Calls `changed` at each change of the link."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def changed(self) -> None:
        self._changed()


class Interface:
    """The network of system-wide mode."""

    def __init__(self) -> None:
        self.told: list[bool] = []

    def received(self, buffer: memoryview, start: int, end: int, run: Run) -> None: ...

    def addressed(self, ipv4: bytes, ipv6: bytes) -> None: ...

    def collisions(self, ipv4: bytes, ipv6: bytes) -> list[IPNetwork]:
        return []

    def lets_out(self, address: Destination) -> bool:
        return True

    def link_changed(self, up: bool) -> None:
        self.told.append(up)

    def lane_changed(self) -> None: ...


class WithoutLane:
    """The packet link of a session without a carrier."""

    sent_on_carrier = 0

    def send(self, *_: object) -> None:
        self.sent_on_carrier += 1


type MakeClient = Callable[..., Client]


@pytest.fixture
async def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
async def client(pauses: Pauses) -> AsyncIterator[MakeClient]:
    """Makes clients; each is stopped in the end."""
    made: list[Client] = []

    def make(*endpoints: Endpoint, identity: Identity = CLIENT_IDENTITY, **more: object) -> Client:
        network = more.pop("network", None)
        settings = client_settings(EXIT_IDENTITY.peer_id, endpoints, **more)
        options = {} if network is None else {"network": network}
        made.append(Client(identity, settings, FAST, pause=pauses, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        await each.stop()


def closed_port() -> Endpoint:
    """Where every connection is refused."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return Endpoint("tcp", Destination("127.0.0.1", server.getsockname()[1]))


def ask(client: Client, protocol: StreamProtocol = StreamProtocol.TCP, target: Destination = NOWHERE) -> App:
    app = App()

    def begin(stream: object) -> None:
        app.stream = stream  # type: ignore[assignment]

    client.request(protocol, target, app, begin)
    return app


async def up(client: Client) -> Awaitable[None]:
    """Its link is up; the task that keeps it up."""
    running = spawn(client.run(), "link")
    await until(lambda: client.up or running.done())
    return running


def carrier_of(client: Client) -> CarrierStatus:
    carrier = client.status().carrier
    assert carrier is not None
    return carrier


# --- dialling ---


async def test_the_backoff_grows_to_its_bound(client: MakeClient, pauses: Pauses) -> None:
    spawn(client(closed_port()).run(), "link")
    for number in range(1, 10):
        await until(lambda number=number: len(pauses.seconds) == number)  # type: ignore[misc]
        pauses.dials.release()
    least = [0.25 * 2**number * (1 - JITTER) for number in range(5)]
    assert all(seconds >= bound for seconds, bound in zip(pauses.seconds, least, strict=False))
    assert all(seconds <= BACKOFF_LAST * (1 + JITTER) for seconds in pauses.seconds)
    assert pauses.seconds[-1] >= BACKOFF_LAST * (1 - JITTER)


@pytest.mark.parametrize("kept", [False, True], ids=["no session", "a session"])
async def test_packets_that_are_to_be_sent_bring_the_next_attempt_within_a_second(
    client: MakeClient, pauses: Pauses, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """The case that was: only requests for streams did, and packets waited for the whole backoff."""
    monkeypatch.setattr("cryprq_proxy.client.backoff.BACKOFF_FIRST", 10 * SOON_SECONDS)
    running = client(closed_port(), network=Interface())
    if kept:
        running._kept.packet_link = WithoutLane()  # type: ignore[assignment]
    spawn(running.run(), "link")

    async def goes_on(count: int) -> int:
        """The attempts so far, when there were so many pauses and all but the last one are over."""
        await until(lambda: len(pauses.seconds) == count)
        return running._link._attempts

    assert await goes_on(1) == 1
    pauses.dials.release()
    assert await goes_on(2) == 1, "nobody wants anything"
    running.send_packet(memoryview(bytearray(100)), 50, 90, Shape(0, 0, 0))
    pauses.dials.release()
    assert await goes_on(3) == 2
    assert max(pauses.seconds) == SOON_SECONDS


async def test_a_reason_is_logged_once(
    client: MakeClient, pauses: Pauses, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = client(closed_port())
    spawn(nobody.run(), "link")
    for number in range(1, 4):
        await until(lambda number=number: len(pauses.seconds) == number)  # type: ignore[misc]
        pauses.dials.release()
    assert caplog.text.count("no link to ") == 1
    assert "refused" in str(nobody.status().last_error)


async def test_a_client_that_is_not_listed_learns_what_to_do(
    here: Place, client: MakeClient, pauses: Pauses, caplog: pytest.LogCaptureFixture
) -> None:
    stranger = Identity.generate(FAST)
    spawn(client(here.endpoint("tcp"), identity=stranger).run(), "link")
    await until(lambda: pauses.seconds)
    assert f"not authorized - at the exit, run: cryprq-proxy peers add {stranger.peer_id} NAME" in caplog.text


async def test_a_link_that_breaks_at_once_is_no_success(
    here: Place, client: MakeClient, pauses: Pauses, alone: None
) -> None:
    """The pauses grow, and the endpoint that brought it is tried last the next time."""
    first, second = here.endpoint("tcp"), here.endpoint("ws")
    unlucky = client(first, second)
    used: list[str] = []

    def drop() -> None:
        if unlucky.up:
            used.append(carrier_of(unlucky).address)
            asyncio.get_running_loop().call_soon(lose_paths, unlucky)

    unlucky.observer = Watcher(drop)
    spawn(unlucky.run(), "link")
    for number in range(1, 5):
        await until(lambda number=number: len(pauses.seconds) == number)  # type: ignore[misc]
        assert len(used) == number, "a pause behind each link"
        pauses.dials.release()
    assert used[:4] == [str(first), str(second), str(first), str(second)]
    assert pauses.seconds[3] > 3 * pauses.seconds[0]


async def test_the_link_is_up_while_the_lane_alone_carries(
    here: Place, client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = client(here.endpoint("tcp"))
    assert alone.status().link == "down"
    monkeypatch.setattr(kept_session.KeptSession, "lane_proven", True)
    assert alone.status().link == "up"


async def test_an_endpoint_whose_admission_times_out_is_tried_last(
    here: Place, client: MakeClient, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A middlebox that stalls the third flight must not win every race."""
    monkeypatch.setattr(endpoints, "HEAD_START", 3_600.0)
    monkeypatch.setattr(path_opening, "HANDSHAKE_TIMEOUT", 0.0)
    late = client(here.endpoint("tcp"), here.endpoint("ws"))
    running = spawn(late.run(), "link")
    await until(lambda: pauses.seconds)
    assert "did not finish the handshake in time: perhaps" in str(late.status().last_error)
    monkeypatch.setattr(path_opening, "HANDSHAKE_TIMEOUT", HANDSHAKE_TIMEOUT)
    pauses.dials.release()
    await until(lambda: late.up or running.done())
    assert carrier_of(late).kind == "ws"


async def test_the_invite_is_shown_until_there_was_a_link_and_never_again(
    here: Place, client: MakeClient, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a secret for one use: the first admission that succeeds has spent it."""
    shown: list[bytes | None] = []
    failures = [CarrierError(CloseReason.TIMED_OUT, "the connection broke")]

    async def began(*arguments: Any) -> Admission:
        shown.append(arguments[-1])
        if failures:
            raise failures.pop()
        return await introduce(*arguments)

    async def redeem(secret: bytes, peer: object) -> tuple[Redeemed, str]:
        return Redeemed.NOW, "alice"

    monkeypatch.setattr(path_opening, "introduce", began)
    monkeypatch.setattr(here.exit._invites, "redeem", redeem)
    invited = client(here.endpoint("tcp"), invite=bytes(16))
    running = spawn(invited.run(), "link")
    await until(lambda: pauses.seconds)
    pauses.dials.release()
    await until(lambda: invited.up or running.done())
    assert await here.echoes(invited)
    invited._kept.drop()
    lose_paths(invited)
    await until(lambda: invited.status().carriers == 2)
    assert shown == [bytes(16), bytes(16), None]


async def test_a_link_that_was_of_use_is_dialled_again_without_a_pause(
    here: Place, client: MakeClient, pauses: Pauses, alone: None
) -> None:
    good = client(here.endpoint("tcp"), here.endpoint("ws"))
    await up(good)
    for carriers in (2, 3):
        assert await here.echoes(good)
        lose_paths(good)
        await until(lambda carriers=carriers: good.status().carriers == carriers)  # type: ignore[misc]
    assert not pauses.seconds
    assert carrier_of(good).kind == "tcp", "nothing was shunned"


async def test_reach_says_why_not(client: MakeClient) -> None:
    with pytest.raises(PeerError, match="refused"):
        await client(closed_port()).reach()


async def test_an_exit_that_cannot_do_it_ends_the_client(here: Place, client: MakeClient) -> None:
    with pytest.raises(CryprqError, match="carries no packets"):
        await client(here.endpoint("tcp"), network=Interface()).run()


# --- the session ---


async def test_streams_survive_the_carrier(here: Place, client: MakeClient) -> None:
    good = client(here.endpoint("tcp"))
    await up(good)
    app = ask(good, target=here.echo)
    await until(lambda: ("opened",) in app.events)
    app.say(b"one")
    await until(lambda: app.received == b"one")
    session = good._kept.session
    lose_paths(good)
    app.say(b", two")
    await until(lambda: app.received == b"one, two")
    assert good._kept.session is session and good.status().carriers == 2
    assert ("reset", StreamReason.SESSION_LOST) not in app.events


async def test_a_session_without_a_carrier_is_kept_for_a_bounded_time(
    here: Place, client: MakeClient, pauses: Pauses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_session, "RESUME_SECONDS", 0.0)
    relay = Relay(here.tcp)
    good = client(here.endpoint("tcp", await relay.start()))
    await up(good)
    app = ask(good, target=here.echo)
    await until(lambda: ("opened",) in app.events)
    await relay.stop()
    await until(lambda: pauses.seconds)
    await until(lambda: app.ended)
    assert good._kept.session is None and good.status().session is None


async def test_a_session_without_a_carrier_lives_while_its_lane_works(
    here: Place, client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_session, "RESUME_SECONDS", 0.02)
    relay = Relay(here.tcp)
    good = client(here.endpoint("tcp", await relay.start()))
    await up(good)
    kept = good._kept
    session = kept.session
    assert session is not None
    lane = session.attach_lane(clock())
    lane.set_up(True, 0.05, "a test says so", clock())
    await relay.stop()
    await until(lambda: kept._expiry is not None)
    first = kept._expiry
    await until(lambda: kept._expiry is not first)
    assert kept.session is session and lane.carries
    assert not good.up, "the end of the connection may be the end of the exit"
    waiting = ask(good, target=here.echo)
    assert waiting.stream is None
    lane.alive(clock())
    assert good.up
    await until(lambda: waiting.stream is not None)
    app = ask(good, target=here.echo)
    assert app.stream is not None, "it is opened at once"
    lane.set_up(False, 0.0, "a test says so", clock())
    assert not good.up
    await until(lambda: kept.session is None)


async def test_the_session_of_a_link_that_is_back_is_kept(
    here: Place, client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = client(here.endpoint("tcp"))
    await up(good)
    monkeypatch.setattr(kept_session, "RESUME_SECONDS", 0.2)
    assert await here.echoes(good)
    lose_paths(good)
    await until(lambda: good.up)
    session = good._kept.session
    assert session is not None and good._kept._expiry is None, "nothing is going to drop it"


# --- requests ---


async def test_requests_wait_for_the_link(here: Place, client: MakeClient) -> None:
    good = client(here.endpoint("tcp"))
    app = ask(good, target=here.echo)
    assert app.stream is None and good.status().waiting == 1
    await up(good)
    await until(lambda: ("opened",) in app.events)
    assert good.status().waiting == 0


async def test_the_wait_is_bounded(client: MakeClient) -> None:
    nobody = client(closed_port(), wait_for_link=0.05)
    app = ask(nobody)
    await until(lambda: app.ended)
    assert app.events == [("refused", StreamReason.LINK_DOWN)]
    assert nobody.refused() == {StreamReason.LINK_DOWN: 1}
    with pytest.raises(StreamRefused):
        await nobody.open(NOWHERE)


async def test_stopping_refuses_requests(client: MakeClient) -> None:
    nobody = client(closed_port())
    app = ask(nobody)
    await nobody.stop()
    assert app.events == [("refused", StreamReason.LINK_DOWN)]
    assert ask(nobody).events == [("refused", StreamReason.LINK_DOWN)]


async def test_stopping_ends_streams_and_the_task(here: Place, client: MakeClient) -> None:
    good = client(here.endpoint("tcp"))
    running = await up(good)
    app = ask(good, target=here.echo)
    await until(lambda: ("opened",) in app.events)
    await good.stop()
    assert app.ended and not good.up
    await running
    await until(lambda: not here.exit.counts()[0])


async def test_unanswered_requests_can_be_withdrawn(here: Place, client: MakeClient) -> None:
    good = client(here.endpoint("tcp"))
    await up(good)
    answered, datagrams = ask(good, target=here.echo), ask(good, StreamProtocol.UDP)
    await until(lambda: ("opened",) in answered.events and ("opened",) in datagrams.events)
    unanswered = ask(good, target=here.echo)
    named = App()
    good.start(StreamRequest(StreamProtocol.TCP, here.echo, named, lambda stream: None, "home"))
    assert [request.handler for request in good.withdraw()] == [unanswered]
    assert datagrams.events[-1] == ("reset", StreamReason.SESSION_LOST)
    await until(lambda: ("opened",) in named.events)
    assert not unanswered.events and not answered.ended
    assert len(good.streams()) == good.open_streams == 2


# --- a link that is dead, and not yet known to be ---


async def test_a_request_makes_a_silent_exit_prove_itself(
    here: Place, client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an answer another carrier resumes the session long before the keepalive would find out."""
    good = client(here.endpoint("tcp"))
    await up(good)
    assert await here.echoes(good)
    session = good._kept.session
    assert session is not None
    # The round trip may be measured just now, and an answer be under way, whatever the machine does meanwhile.
    await until(lambda: session.liveness._answer_by is None)
    monkeypatch.setattr(client_module, "SILENCE", 3_600.0)
    ask(good, target=here.echo)
    assert session.liveness._answer_by is None, "it was heard just now"
    monkeypatch.setattr(client_module, "SILENCE", -1.0)
    before = clock()
    ask(good, target=here.echo)
    assert session.liveness._answer_by is not None
    assert before + PROOF_SECONDS <= session.liveness._answer_by <= clock() + PROOF_SECONDS
    await until(lambda: session.liveness._answer_by is None)
    monkeypatch.setattr(client_module, "PROOF_SECONDS", 0.0)
    carriers = good.status().carriers

    def resumed() -> bool:
        """Asked again where an answer to something else came first: that is a sign of life too."""
        if session.liveness._answer_by is None:
            ask(good, target=here.echo)
        return good.status().carriers > carriers

    await until(resumed)
    assert good._kept.session is session, "resumed"


async def test_a_lane_that_falls_makes_the_exit_prove_itself(here: Place, client: MakeClient) -> None:
    good = client(here.endpoint("tcp"))
    await up(good)
    assert await here.echoes(good)
    session, link = good._kept.session, good._kept.packet_link
    assert session is not None and link is not None
    await until(lambda: session.liveness._answer_by is None)
    lane: Any = SimpleNamespace(up=True, datagrams=lambda: 0, close=lambda: None)
    link.lane = lane
    link.lane_changed()
    assert session.liveness._answer_by is None
    lane.up = False
    link.lane_changed()
    assert session.liveness._answer_by is not None
    await until(lambda: session.liveness._answer_by is None)
    assert good._link.carriers == 1, "it was only the lane"


async def test_a_request_that_the_dead_link_has_swallowed_fails_when_others_do(
    client: MakeClient, pauses: Pauses, here: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "SWEEP_SECONDS", 0.0)
    relay = Relay(here.tcp)
    good = client(here.endpoint("tcp", await relay.start()), wait_for_link=0.2)
    await up(good)
    open_one = ask(good, target=here.echo)
    await until(lambda: ("opened",) in open_one.events)
    session = good._kept.session
    assert session is not None
    monkeypatch.setattr(session.current, "ready", lambda: None)
    swallowed = [ask(good, target=here.echo) for _ in range(3)]
    await relay.stop()
    await until(lambda: pauses.seconds)
    await until(lambda: all(app.ended for app in swallowed))
    assert all(app.events == [("refused", StreamReason.LINK_DOWN)] for app in swallowed)
    assert good._kept.session is not None and not open_one.ended, "a stream that is open waits for a resume"


async def test_a_request_without_data_is_made_again_in_the_next_session(
    here: Place, client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with data fails: it must not run twice."""
    good = client(here.endpoint("tcp"))
    await up(good)
    assert await here.echoes(good)
    session = good._kept.session
    assert session is not None
    monkeypatch.setattr(session.current, "ready", lambda: None)
    bare, busy = ask(good, target=here.echo), ask(good, target=here.echo)
    assert busy.stream is not None
    busy.stream.sent += 1
    lose_sessions(here.exit, monkeypatch)
    lose_paths(good)
    await until(lambda: ("opened",) in bare.events)
    assert busy.events == [("reset", StreamReason.SESSION_LOST)]
    assert good._kept.session is not session


async def test_a_request_ends_the_pause_between_two_attempts(client: MakeClient, pauses: Pauses) -> None:
    nobody = client(closed_port())
    spawn(nobody.run(), "link")
    await until(lambda: len(pauses.seconds) == 1)
    nobody._link._rest._began -= SOON_SECONDS
    ask(nobody)
    await until(lambda: len(pauses.seconds) == 2)
    ask(nobody)
    await settle()
    assert len(pauses.seconds) == 2, "but not at once after the last one"
