"""Which of an exit's endpoints is taken, why, and what the exit hears on the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.carriers.admission import frame_flight
from cryprq_proxy.carriers.carrier import Carrier
from cryprq_proxy.carriers.dial.connect import Dialling
from cryprq_proxy.carriers.dial.endpoint import Endpoint
from cryprq_proxy.carriers.lane.batch import SocketAddress
from cryprq_proxy.carriers.pipe import Pipe
from cryprq_proxy.client import endpoints as endpoints_module
from cryprq_proxy.client.endpoints import (
    ADVERTISED_HEAD_START,
    AGAIN_SECONDS,
    SMALL_SEGMENT,
    Endpoints,
    is_late,
)
from cryprq_proxy.crypto.client_handshake import ClientHandshake
from cryprq_proxy.crypto.exit_handshake import ExitHandshake
from cryprq_proxy.crypto.handshake import LENGTH
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.errors import CarrierError, CloseReason, ConfigError, HandshakeError, PeerError, Unanswered
from tests.support.links import FAST

EXIT, OTHER, CLIENT = (Identity.generate(FAST) for _ in range(3))
TCP = Endpoint("tcp", Destination("192.0.2.1", 4433))
TCP2 = Endpoint("tcp", Destination("192.0.2.2", 4433))
ADVERTISED = Endpoint("tcp", Destination("192.0.2.9", 4433))
WSS = Endpoint("wss", Destination("exit.example", 443), "/x")


class ExitPipe:
    """The exit on the other side. `gate` holds its answer back."""

    direct: SocketAddress | None = None
    ended = False

    def __init__(self, identity: Identity = EXIT) -> None:
        self._handshake = ExitHandshake(identity, FAST)
        self._answer = b""
        self.gate = asyncio.Event()
        self.gate.set()
        self.flights = 0
        self.closed = 0

    async def write(self, data: bytes) -> None:
        self.flights += 1
        self._handshake.read_first(data[LENGTH.size :])
        self._answer = frame_flight(self._handshake.write_second())

    async def read_exactly(self, size: int) -> bytes:
        await self.gate.wait()
        data, self._answer = self._answer[:size], self._answer[size:]
        return data

    async def part(self, last: bytes) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.closed += 1

    def carrier(self, session: Any, owner: Any) -> Carrier:
        raise NotImplementedError


class CutPipe(ExitPipe):
    """A connection on which reading the second flight fails."""

    def __init__(self, error: PeerError) -> None:
        super().__init__()
        self._error = error

    async def read_exactly(self, size: int) -> bytes:
        raise self._error


class Net:
    """What is dialled: a pipe, an error, or nothing until the test says so."""

    def __init__(self, **found: ExitPipe | Exception | Callable[[], ExitPipe]) -> None:
        self.found = found
        self.dialled: list[str] = []
        self.segments: list[int] = []
        self.delays: list[asyncio.Future[None]] = []
        self.seconds: list[float] = []

    async def dial(self, endpoint: Endpoint, how: Dialling) -> Pipe:
        name = {TCP: "tcp", TCP2: "tcp2", WSS: "wss", ADVERTISED: "advertised"}[endpoint]
        self.dialled.append(name)
        self.segments.append(how.segment)
        if how.segment:
            name += "_small"
        found = self.found.get(name)
        if isinstance(found, Exception):
            raise found
        if found is None:
            await asyncio.get_running_loop().create_future()
        assert found is not None
        return found if isinstance(found, ExitPipe) else found()

    async def pause(self, seconds: float) -> None:
        self.delays.append(asyncio.get_running_loop().create_future())
        self.seconds.append(seconds)
        await self.delays[-1]

    def endpoints(self, *endpoints: Endpoint, remembered: str | None = None) -> Endpoints:
        return Endpoints(endpoints, Dialling(), remembered, dial=self.dial, pause=self.pause)


async def offload(job: Callable[[], bytes]) -> bytes:
    return job()


def handshake() -> ClientHandshake:
    return ClientHandshake(CLIENT, EXIT.peer_id, FAST)


def failure(text: str) -> CarrierError:
    return CarrierError(CloseReason.TIMED_OUT, text)


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


async def test_the_first_one_given() -> None:
    net = Net(tcp=ExitPipe(), wss=ExitPipe())
    met = await net.endpoints(TCP, WSS).race(handshake, offload)
    assert (met.endpoint, met.why) == (TCP, "the first one given")
    assert net.dialled == ["tcp"]


async def test_what_worked_last_time_starts_beside_the_first_one() -> None:
    net = Net(wss=ExitPipe())
    met = await net.endpoints(TCP, TCP2, WSS, remembered=str(WSS)).race(handshake, offload)
    assert (met.endpoint, met.why) == (WSS, f"it worked last time, and {TCP} did not answer sooner")
    assert net.dialled == ["tcp", "wss"]


async def test_the_first_one_wins_again_where_it_works_again() -> None:
    net = Net(tcp=ExitPipe(), wss=ExitPipe())
    met = await net.endpoints(TCP, WSS, remembered=str(WSS)).race(handshake, offload)
    assert (met.endpoint, met.why) == (TCP, "the first one given")
    assert sorted(net.dialled) == ["tcp", "wss"]


async def test_where_the_first_one_fails_at_once_what_worked_last_time_is_there() -> None:
    net = Net(tcp=failure("no route"), wss=ExitPipe())
    met = await net.endpoints(TCP, WSS, remembered=str(WSS)).race(handshake, offload)
    assert (met.endpoint, met.why) == (WSS, "tcp failed: no route")


async def test_one_that_is_refused_is_tried_again_while_another_one_is_silent() -> None:
    """The exit starts anew, and its other endpoint is behind a firewall."""
    net = Net(tcp=failure("refused"))
    racing = asyncio.ensure_future(net.endpoints(TCP, WSS, remembered=str(WSS)).race(handshake, offload))
    await settle()
    assert (net.dialled, net.seconds) == (["tcp", "wss"], [AGAIN_SECONDS])
    net.found["tcp"] = ExitPipe()
    net.delays[-1].set_result(None)
    met = await racing
    assert (met.endpoint, net.dialled) == (TCP, ["tcp", "wss", "tcp"])


async def test_what_is_remembered_and_no_longer_given_does_not_count() -> None:
    assert Net().endpoints(TCP, WSS, remembered="wss://old.example/x").order() == [TCP, WSS]


async def test_who_accepts_and_says_nothing_loses() -> None:
    """A middlebox: the connection stands, the handshake does not."""
    silent = ExitPipe()
    silent.gate.clear()
    net = Net(tcp=silent, wss=ExitPipe())
    meeting = asyncio.ensure_future(net.endpoints(TCP, WSS).race(handshake, offload))
    await settle()
    assert net.dialled == ["tcp"] and silent.flights == 1
    net.delays[-1].set_result(None)
    met = await meeting
    assert (met.endpoint, met.why) == (WSS, "tcp did not answer within 0.5 s")
    assert silent.closed == 1
    assert silent.flights == 1  # the exit never heard who asked there


async def test_another_exit_loses() -> None:
    stranger = ExitPipe(OTHER)
    net = Net(tcp=failure("it is closed"), wss=ExitPipe())
    met = await net.endpoints(TCP, WSS).race(handshake, offload)
    assert met.why == "tcp failed: it is closed"
    net = Net(tcp=ExitPipe(), tcp2=stranger)
    met = await net.endpoints(TCP2, TCP).race(handshake, offload)
    assert met.endpoint == TCP
    assert met.why.startswith("192.0.2.2:4433 failed: ")
    assert stranger.closed == 1


async def test_a_loser_that_was_met_too_is_closed_before_it_hears_who_asks() -> None:
    first, second = ExitPipe(), ExitPipe()
    first.gate.clear()
    second.gate.clear()
    net = Net(tcp=first, wss=second)
    meeting = asyncio.ensure_future(net.endpoints(TCP, WSS).race(handshake, offload))
    await settle()
    net.delays[-1].set_result(None)
    await settle()
    first.gate.set()
    second.gate.set()
    met = await meeting
    assert met.endpoint == TCP
    assert (first.closed, second.closed) == (0, 1)
    assert (first.flights, second.flights) == (1, 1)


async def test_what_broke_at_once_comes_last_and_only_once() -> None:
    net = Net(tcp=ExitPipe(), wss=ExitPipe())
    choice = net.endpoints(TCP, WSS)
    assert choice.worked(TCP) and not choice.worked(TCP)
    choice.shun(TCP)
    met = await choice.race(handshake, offload)
    assert (met.endpoint, met.why) == (WSS, "the others broke")
    assert choice.order() == [TCP, WSS]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent exit is late at once; in a race that a test drives, other attempts still are not."""
    monkeypatch.setattr(endpoints_module, "HANDSHAKE_TIMEOUT", 0.0)


def silent() -> ExitPipe:
    pipe = ExitPipe()
    pipe.gate.clear()
    return pipe


async def test_after_a_silent_handshake_small_segments_are_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(tcp=silent, tcp_small=ExitPipe)
    choice = net.endpoints(TCP)
    monkeypatch.setattr(endpoints_module, "HANDSHAKE_TIMEOUT", 0.0)
    with pytest.raises(CarrierError, match=r"perhaps the path loses large packets \(MTU\)"):
        await choice.race(handshake, offload)
    monkeypatch.undo()
    meeting = asyncio.ensure_future(choice.race(handshake, offload))
    await settle()
    net.delays[-1].set_result(None)
    met = await meeting
    assert net.segments == [0, 0, SMALL_SEGMENT]
    assert met.small and met.why.endswith("(MTU)")
    # It may have been slow and nothing else: the usual size goes first, and where it wins the small one is forgotten.
    net.found["tcp"] = ExitPipe
    net.found["tcp_small"] = silent
    assert not (await choice.race(handshake, offload)).small
    net.segments.clear()
    net.found["tcp"] = failure("no route")
    with pytest.raises(CarrierError, match="no route"):
        await choice.race(handshake, offload)
    assert net.segments == [0]


async def test_where_small_segments_do_not_help_either_it_is_said(impatient: None) -> None:
    net = Net(tcp=silent, tcp_small=silent)
    choice = net.endpoints(TCP)
    for says in ("small ones are tried next", "with small packets neither", "with small packets neither"):
        with pytest.raises(CarrierError, match=says):
            await choice.race(handshake, offload)
    assert net.segments == [0, 0, SMALL_SEGMENT, 0, SMALL_SEGMENT]


async def test_after_a_silent_third_flight_small_segments_go_first() -> None:
    net = Net(tcp=ExitPipe, tcp_small=ExitPipe)
    choice = net.endpoints(TCP)
    assert not (await choice.race(handshake, offload)).small
    choice.late(TCP, small_first=True)
    assert (await choice.race(handshake, offload)).small
    assert net.segments == [0, SMALL_SEGMENT]


def test_an_end_after_a_long_silence_is_the_time_out_of_the_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints_module, "clock", lambda: 100.0)
    assert is_late(failure("it ended the connection"), 94.0)
    assert not is_late(failure("it ended the connection"), 99.0)
    assert is_late(TimeoutError(), 100.0)
    assert not is_late(ConfigError("no such file"), 0.0)


# --- a resume, where the exit advertises an address ---


async def test_a_resume_begins_where_the_exit_advertises() -> None:
    net = Net(advertised=ExitPipe(), tcp=ExitPipe())
    choice = net.endpoints(TCP, WSS)
    met = await choice.race(handshake, offload, ADVERTISED)
    assert (met.endpoint, met.why) == (ADVERTISED, "the exit advertises it for the session")
    assert net.dialled == ["advertised"] and net.seconds == [ADVERTISED_HEAD_START]
    assert not choice.worked(ADVERTISED) and choice.order() == [TCP, WSS], "it is for this session only"


async def test_it_has_a_head_start_of_some_seconds() -> None:
    """Then the others follow in their usual order. Who is late loses, before the exit has heard who asks."""
    late = silent()
    net = Net(advertised=late, tcp=failure("no route"), wss=ExitPipe())
    meeting = asyncio.ensure_future(net.endpoints(TCP, WSS).race(handshake, offload, ADVERTISED))
    await settle()
    assert net.dialled == ["advertised"] and net.seconds == [2.0]
    net.delays[-1].set_result(None)
    met = await meeting
    assert (met.endpoint, met.why) == (WSS, "tcp failed: no route")
    assert net.dialled == ["advertised", "tcp", "wss"]
    assert (late.closed, late.flights) == (1, 1)


async def test_it_can_still_win_after_its_head_start() -> None:
    late, slow = silent(), silent()
    net = Net(advertised=late, tcp=slow)
    meeting = asyncio.ensure_future(net.endpoints(TCP, WSS).race(handshake, offload, ADVERTISED))
    await settle()
    net.delays[-1].set_result(None)
    await settle()
    assert net.dialled == ["advertised", "tcp"]
    late.gate.set()
    met = await meeting
    assert met.endpoint == ADVERTISED
    assert (late.closed, slow.closed, slow.flights) == (0, 1, 1)


@pytest.mark.parametrize("turns", range(12))
async def test_both_are_met_at_about_the_same_time_and_one_is_closed(turns: int) -> None:
    """For some number of turns of the loop both are met before one of them has won."""
    late, slow = silent(), silent()
    net = Net(advertised=late, tcp=slow)
    meeting = asyncio.ensure_future(net.endpoints(TCP).race(handshake, offload, ADVERTISED))
    await settle()
    net.delays[-1].set_result(None)
    await settle()
    slow.gate.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    late.gate.set()
    met = await meeting
    winner, loser = (late, slow) if met.endpoint == ADVERTISED else (slow, late)
    assert (winner.closed, loser.closed) == (0, 1)


async def test_where_it_fails_the_configured_ones_go_on_at_once() -> None:
    net = Net(advertised=failure("refused"), tcp=ExitPipe())
    met = await net.endpoints(TCP, WSS, remembered=str(WSS)).race(handshake, offload, ADVERTISED)
    assert (met.endpoint, met.why) == (TCP, "the first one given")
    assert net.dialled == ["advertised", "tcp", "wss"], "those two start at the same moment, as ever"
    assert net.delays[0].cancelled(), "nobody waited"


async def test_another_exit_there_is_not_taken() -> None:
    stranger = ExitPipe(OTHER)
    net = Net(advertised=stranger, tcp=ExitPipe())
    met = await net.endpoints(TCP).race(handshake, offload, ADVERTISED)
    assert met.endpoint == TCP
    assert (stranger.closed, stranger.flights) == (1, 1)


async def test_where_it_broke_at_once_it_comes_last_and_only_once() -> None:
    net = Net(advertised=ExitPipe, tcp=ExitPipe)
    choice = net.endpoints(TCP)
    choice.shun(ADVERTISED)
    assert (await choice.race(handshake, offload, ADVERTISED)).endpoint == TCP
    assert net.dialled == ["tcp"]
    assert (await choice.race(handshake, offload, ADVERTISED)).endpoint == ADVERTISED


@pytest.mark.parametrize("shunned", [False, True])
async def test_where_nothing_works_the_configured_ones_say_why(shunned: bool) -> None:
    net = Net(advertised=failure("nobody is there"), tcp=failure("tcp is closed"))
    choice = net.endpoints(TCP)
    if shunned:
        choice.shun(ADVERTISED)
    with pytest.raises(PeerError, match=r"^tcp is closed$"):
        await choice.race(handshake, offload, ADVERTISED)
    assert sorted(net.dialled) == ["advertised", "tcp"]


async def test_the_only_configured_one_is_dialled_once() -> None:
    net = Net(tcp=failure("tcp is closed"))
    with pytest.raises(PeerError, match=r"^tcp is closed$"):
        await net.endpoints(TCP).race(handshake, offload, TCP)
    assert net.dialled == ["tcp"] and not net.seconds


async def test_its_silence_is_nothing_to_remember(impatient: None) -> None:
    """An exit may advertise any number of addresses, one after the other."""
    net = Net(advertised=silent, tcp=failure("no route"))
    choice = net.endpoints(TCP)
    for _ in range(2):
        with pytest.raises(PeerError, match="no route"):
            await choice.race(handshake, offload, ADVERTISED)
    assert str(choice.late(ADVERTISED)) == "the exit did not finish the handshake in time"
    assert not choice._suspected
    assert net.segments == [0] * 4


async def test_where_only_small_packets_get_through_it_gets_small_ones() -> None:
    net = Net(tcp_small=ExitPipe, tcp=ExitPipe, advertised_small=ExitPipe)
    choice = net.endpoints(TCP)
    choice.late(TCP, small_first=True)
    assert (await choice.race(handshake, offload)).small
    met = await choice.race(handshake, offload, ADVERTISED)
    assert met.small and met.endpoint == ADVERTISED
    assert net.segments == [SMALL_SEGMENT, SMALL_SEGMENT]


async def test_a_resume_is_cancelled() -> None:
    first, second = silent(), silent()
    net = Net(advertised=first, tcp=second)
    meeting = asyncio.ensure_future(net.endpoints(TCP).race(handshake, offload, ADVERTISED))
    await settle()
    net.delays[-1].set_result(None)
    await settle()
    meeting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await meeting
    assert (first.closed, second.closed) == (1, 1)


# --- nothing works ---


async def test_nothing_works() -> None:
    both = Net(tcp=failure("tcp is closed"), wss=failure("wss is closed"))
    with pytest.raises(PeerError) as caught:
        await both.endpoints(TCP, WSS).race(handshake, offload)
    assert str(caught.value) == (
        "no endpoint of the exit works (192.0.2.1:4433: tcp is closed; wss://exit.example/x: wss is closed)"
    )
    with pytest.raises(PeerError, match=r"^tcp is closed$"):
        await both.endpoints(TCP).race(handshake, offload)


async def test_whether_anybody_has_answered_is_said() -> None:
    """Of a crowd of clients nobody need sign only because nobody could be reached; and who answers wrongly counts,
    whatever the other endpoints did."""

    def cut() -> ExitPipe:
        return CutPipe(failure("the connection was closed"))

    def wrong() -> ExitPipe:
        return CutPipe(HandshakeError("the second flight does not open"))

    closed = failure("closed")
    for tcp, wss, kind in (
        (closed, closed, CarrierError),
        (closed, cut, Unanswered),
        (cut, wrong, HandshakeError),
    ):
        with pytest.raises(PeerError) as caught:
            await Net(tcp=tcp, wss=wss).endpoints(TCP, WSS).race(handshake, offload)
        assert type(caught.value) is kind
        with pytest.raises(PeerError) as caught:
            await Net(tcp=tcp, advertised=wss).endpoints(TCP).race(handshake, offload, ADVERTISED)
        assert type(caught.value) is kind


async def test_a_setting_that_does_not_work_is_said() -> None:
    net = Net(tcp=ConfigError("no such file"), wss=ExitPipe())
    with pytest.raises(ConfigError):
        await net.endpoints(TCP, WSS).race(handshake, offload)


async def test_cancelled() -> None:
    silent = ExitPipe()
    silent.gate.clear()
    meeting: Awaitable[Any] = asyncio.ensure_future(Net(tcp=silent).endpoints(TCP).race(handshake, offload))
    await settle()
    assert isinstance(meeting, asyncio.Future)
    meeting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await meeting
    assert silent.closed == 1
