"""From a connection to the first keys: each verdict of an exit, and whatever is none. Over real socket pairs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.carriers.admission import (
    Admission,
    claim,
    first_keys,
    frame_flight,
    introduce,
    join,
    meet_exit,
    read_flight,
    read_verdict,
)
from cryprq_proxy.carriers.pipe import TcpPipe
from cryprq_proxy.crypto.client_handshake import ClientHandshake, ShortClientHandshake
from cryprq_proxy.crypto.exit_handshake import ExitHandshake
from cryprq_proxy.crypto.handshake import FIRST_SIZE, LENGTH, SHORT_THIRD_SIZE, THIRD_SIZE
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.payloads import JOIN_EXIT, join_proof
from cryprq_proxy.errors import CarrierError, CloseReason, HandshakeError, NotAdmitted, PeerError
from cryprq_proxy.exit.ticket_book import TicketBook
from cryprq_proxy.session import wire
from cryprq_proxy.session.path_keys import CarrierKeys
from cryprq_proxy.session.verdict import MAX_VERDICT
from tests.support.links import FAST, SESSION_ID, Link, epoch

pytestmark = pytest.mark.timeout(20)

EXIT = Identity.generate(FAST)
CLIENT = Identity.generate(FAST)
PATH = 3
RESUME_SECRET = epoch(0).resume
INVITE = bytes(range(16))
type Verdict = Callable[[ExitHandshake], bytes]
"""The frames of the exit's first record."""


async def at_once(step: Callable[[], bytes]) -> bytes:
    return step()


class Meeting:
    """Both ends of a connection, and the client's handshake with the exit that answers at the other one."""

    def __init__(self) -> None:
        self.client, self.exit = socket.socketpair()
        for sock in (self.client, self.exit):
            sock.setblocking(False)
        self.pipe = TcpPipe(self.client)
        self.handshake = ClientHandshake(CLIENT, EXIT.peer_id, FAST)
        self.answering = ExitHandshake(EXIT, FAST)

    async def answer(self, verdict: Verdict) -> None:
        """The exit's side: three flights and a record."""
        pipe = TcpPipe(self.exit)
        self.answering.read_first(await read_flight(pipe, FIRST_SIZE))
        await pipe.write(frame_flight(self.answering.write_second()))
        self.answering.read_third(await read_flight(pipe, THIRD_SIZE))
        await pipe.write(self.keys().sealer.seal(verdict(self.answering)))

    def keys(self) -> CarrierKeys:
        """The first ones of the exit's side, which is the signed one."""
        established, joins = self.answering.result, self.answering.joins
        number = 0 if joins is None else joins.path
        return first_keys(established.cipher, established.epoch.records, number, dialler=False)

    async def admit(
        self, verdict: Verdict, link: Link | None = None, invite: bytes | None = None
    ) -> Admission:
        answering = spawn(self.answer(verdict), "exit")
        try:
            await meet_exit(self.pipe, self.handshake, at_once)
            if link is not None:
                return await claim(self.pipe, self.handshake, link.client, PATH, at_once)
            admission = await introduce(self.pipe, self.handshake, at_once, invite)
            await read_verdict(self.pipe, admission.keys.opener, wire.ACCEPT)
            return admission
        finally:
            await answering


@pytest.fixture
async def meeting() -> AsyncIterator[Meeting]:
    made = Meeting()
    yield made
    made.client.close()
    made.exit.close()


def bare(kind: int) -> Verdict:
    return lambda handshake: wire.encode_bare(kind)


def joined(path: int = PATH, secret: bytes = RESUME_SECRET) -> Verdict:
    return lambda handshake: wire.encode_joined(join_proof(secret, JOIN_EXIT, handshake.join_hash, path))


async def refused(meeting: Meeting, verdict: Verdict, link: Link | None = None) -> PeerError:
    with pytest.raises(PeerError) as caught:
        await meeting.admit(verdict, link)
    return caught.value


@pytest.mark.parametrize("invite", [None, INVITE])
async def test_a_new_session(meeting: Meeting, invite: bytes | None) -> None:
    admission = await meeting.admit(bare(wire.ACCEPT), invite=invite)
    assert admission.number == 0
    assert admission.begins is not None
    assert admission.begins.session_id == meeting.answering.result.session_id
    assert meeting.answering.invite == invite
    assert meeting.answering.joins is None
    record = admission.keys.sealer.seal(b"hello")
    assert bytes(meeting.keys().opener.open(memoryview(record), 0)[0] or b"") == b"hello"


async def test_the_keys_go_on_behind_the_verdict(meeting: Meeting) -> None:
    """The verdict was the exit's record 0, so what the session opens first is record 1."""
    admission = await meeting.admit(bare(wire.ACCEPT))
    sealer = meeting.keys().sealer
    sealer.seal(b"the verdict")
    plaintext, _ = admission.keys.opener.open(memoryview(sealer.seal(b"more")), 0)
    assert bytes(plaintext or b"") == b"more"


async def test_a_session_goes_on(meeting: Meeting) -> None:
    admission = await meeting.admit(joined(), Link())
    assert (admission.number, admission.begins) == (PATH, None)
    claimed = meeting.answering.joins
    assert claimed is not None
    assert (claimed.session_id, claimed.path) == (SESSION_ID, PATH)
    assert claimed.proves(RESUME_SECRET, meeting.answering.join_hash)


async def test_the_exit_has_lost_the_session(meeting: Meeting) -> None:
    """The path keeps the number that was claimed, since its keys are made with it."""
    admission = await meeting.admit(bare(wire.NO_SESSION), Link())
    assert admission.number == PATH
    assert admission.begins is not None
    assert admission.begins.epoch.resume == meeting.answering.result.epoch.resume


@pytest.mark.parametrize(
    "verdict",
    [joined(PATH - 1), joined(PATH + 1), joined(secret=bytes(32))],
    ids=["an earlier path", "a later path", "another secret"],
)
async def test_a_verdict_that_is_not_the_answer_to_this_claim(meeting: Meeting, verdict: Verdict) -> None:
    error = await refused(meeting, verdict, Link())
    assert error.reason is CloseReason.RESUME


async def test_the_proof_of_another_handshake(meeting: Meeting) -> None:
    """Whoever has seen one exchange cannot answer the next one with it."""
    other = Meeting()
    try:
        await other.admit(joined(), Link())
        proof = joined()(other.answering)
    finally:
        other.client.close()
        other.exit.close()
    error = await refused(meeting, lambda handshake: proof, Link())
    assert error.reason is CloseReason.RESUME


@pytest.mark.parametrize(
    ("resuming", "verdict"),
    [
        (False, bare(wire.NO_SESSION)),
        (True, bare(wire.ACCEPT)),
        (False, joined()),
        (False, bare(wire.GOAWAY)),
        (False, lambda handshake: wire.encode_bare(wire.ACCEPT) * 2),
        (True, lambda handshake: joined()(handshake) + wire.encode_bare(wire.NO_SESSION)),
    ],
)
async def test_what_is_no_verdict(meeting: Meeting, resuming: bool, verdict: Verdict) -> None:
    error = await refused(meeting, verdict, Link() if resuming else None)
    assert error.reason is CloseReason.PROTOCOL
    assert isinstance(error, NotAdmitted)


@pytest.mark.parametrize("reason", [CloseReason.NOT_AUTHORIZED, CloseReason.LIMIT])
async def test_the_exit_says_no(meeting: Meeting, reason: CloseReason) -> None:
    error = await refused(meeting, lambda handshake: wire.encode_close(reason))
    assert error.reason is reason
    assert isinstance(error, NotAdmitted)


async def test_a_verdict_has_a_bound(meeting: Meeting) -> None:
    error = await refused(meeting, lambda handshake: wire.encode_bare(wire.ACCEPT) * (MAX_VERDICT + 1))
    assert error.reason is CloseReason.BAD_RECORD


@pytest.mark.parametrize("sizes", [FIRST_SIZE, THIRD_SIZE])
async def test_a_flight_has_a_bound(meeting: Meeting, sizes: range) -> None:
    """Nothing of it is waited for: who says that 64 KiB come may never send them."""
    for size in (0, sizes[0] - 1, sizes[-1] + 1, 65_535):
        meeting.exit.sendall(LENGTH.pack(size))
        with pytest.raises(HandshakeError):
            await read_flight(meeting.pipe, sizes)


async def test_slow_steps_run_where_they_are_told_to(meeting: Meeting) -> None:
    ran: list[str] = []

    async def elsewhere(step: Callable[[], bytes]) -> bytes:
        ran.append(step.__name__)
        return await asyncio.to_thread(step)

    answering = spawn(meeting.answer(bare(wire.ACCEPT)), "exit")
    await meet_exit(meeting.pipe, meeting.handshake, elsewhere)
    await introduce(meeting.pipe, meeting.handshake, elsewhere)
    await answering
    assert len(ran) == 3


# --- the short pattern ---


class ShortMeeting(Meeting):
    """The same for a client that has a session already, with one of its tickets."""

    def __init__(self) -> None:
        super().__init__()
        self.joining = ShortClientHandshake(EXIT.peer_id, FAST, RESUME_SECRET, PATH)

    async def answer(self, verdict: Verdict) -> None:
        pipe = TcpPipe(self.exit)
        self.answering.read_first(await read_flight(pipe, FIRST_SIZE))
        await pipe.write(frame_flight(self.answering.write_second()))
        book: TicketBook[str] = TicketBook()
        book.renew("session", [RESUME_SECRET])
        ticket = self.answering.read_short_third(await read_flight(pipe, SHORT_THIRD_SIZE), book.find)
        assert (ticket.owner, ticket.path) == ("session", PATH)
        await pipe.write(self.keys().sealer.seal(verdict(self.answering)))

    def keys(self) -> CarrierKeys:
        path = self.answering.path
        return first_keys(path.cipher, path.records, path.number, dialler=False)

    async def join(self, verdict: Verdict) -> Admission:
        answering = spawn(self.answer(verdict), "exit")
        try:
            await meet_exit(self.pipe, self.joining, at_once)
            return await join(self.pipe, self.joining, 0, at_once)
        finally:
            await answering


@pytest.fixture
async def short_meeting() -> AsyncIterator[ShortMeeting]:
    made = ShortMeeting()
    yield made
    made.client.close()
    made.exit.close()


async def test_a_path_joins_by_a_ticket(short_meeting: ShortMeeting) -> None:
    """Its records may leave at once, and the verdict is read where they go."""
    admission = await short_meeting.join(bare(wire.ACCEPT))
    assert (admission.number, admission.begins) == (PATH, None)
    record = admission.keys.sealer.seal(b"early")
    assert bytes(short_meeting.keys().opener.open(memoryview(record), 0)[0] or b"") == b"early"
    kind, _, _ = await read_verdict(short_meeting.pipe, admission.keys.opener, wire.ACCEPT)
    assert kind == wire.ACCEPT


@pytest.mark.parametrize("reason", [CloseReason.NOT_AUTHORIZED, CloseReason.SHUTTING_DOWN])
async def test_the_exit_says_no_to_a_ticket(short_meeting: ShortMeeting, reason: CloseReason) -> None:
    admission = await short_meeting.join(lambda handshake: wire.encode_close(reason))
    with pytest.raises(NotAdmitted) as caught:
        await read_verdict(short_meeting.pipe, admission.keys.opener, wire.ACCEPT)
    assert caught.value.reason is reason


# --- the pipe ---


async def test_exactly_so_many_bytes_are_read(meeting: Meeting) -> None:
    reading = spawn(meeting.pipe.read_exactly(4), "reading")
    for byte in b"abcdef":
        await asyncio.get_running_loop().sock_sendall(meeting.exit, bytes((byte,)))
    assert await reading == b"abcd"
    assert await meeting.pipe.read_exactly(2) == b"ef"


@pytest.mark.parametrize("heard", [b"", b"abc"])
async def test_the_other_side_ends_too_early(meeting: Meeting, heard: bytes) -> None:
    meeting.exit.sendall(heard)
    meeting.exit.close()
    with pytest.raises(CarrierError, match="ended the connection during the handshake"):
        await meeting.pipe.read_exactly(4)


async def broken(action: Awaitable[object]) -> None:
    with pytest.raises(CarrierError, match=r"^the connection to the peer broke: [a-z ]+$"):
        await action


async def test_a_connection_that_breaks(meeting: Meeting) -> None:
    meeting.client.sendall(b"unread")
    meeting.exit.close()
    await broken(meeting.pipe.read_exactly(1))
    await broken(meeting.pipe.write(bytes(1 << 20)))
    meeting.pipe.close()
    assert meeting.pipe.direct is None
