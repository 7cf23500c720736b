"""From a connection to the first keys: each verdict of an exit, and whatever is none. Over real socket pairs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.carriers.admission import (
    Admission,
    frame_flight,
    introduce,
    meet_exit,
    read_flight,
    read_verdict,
    resume,
)
from cryprq_proxy.carriers.pipe import TcpPipe
from cryprq_proxy.crypto.handshake import FIRST_SIZE, LENGTH, THIRD_SIZE, ClientHandshake, ExitHandshake
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.payloads import RESUME_EXIT, resume_proof
from cryprq_proxy.errors import CarrierError, CloseReason, HandshakeError, NotAdmitted, PeerError
from cryprq_proxy.session import wire
from cryprq_proxy.session.records import RecordOpener, RecordSealer
from cryprq_proxy.session.verdict import MAX_VERDICT
from tests.support.links import FAST, RESUME_SECRET, SESSION_ID, Link

pytestmark = pytest.mark.timeout(20)

EXIT = Identity.generate(FAST)
CLIENT = Identity.generate(FAST)
ATTEMPT = 3
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
        established = self.answering.result
        sealer = RecordSealer(established.cipher, established.epoch.exit_record)
        await pipe.write(sealer.seal(verdict(self.answering)))

    async def admit(
        self, verdict: Verdict, link: Link | None = None, invite: bytes | None = None
    ) -> Admission:
        answering = spawn(self.answer(verdict), "exit")
        try:
            await meet_exit(self.pipe, self.handshake, at_once)
            if link is not None:
                return await resume(self.pipe, self.handshake, link.client, ATTEMPT, at_once)
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


def resumed(received: int = 0, attempt: int = ATTEMPT, secret: bytes = RESUME_SECRET) -> Verdict:
    def verdict(handshake: ExitHandshake) -> bytes:
        proof = resume_proof(secret, RESUME_EXIT, handshake.resume_hash, attempt, received)
        return wire.encode_resumed(received, proof)

    return verdict


async def refused(meeting: Meeting, verdict: Verdict, link: Link | None = None) -> PeerError:
    with pytest.raises(PeerError) as caught:
        await meeting.admit(verdict, link)
    return caught.value


@pytest.mark.parametrize("invite", [None, INVITE])
async def test_a_new_session(meeting: Meeting, invite: bytes | None) -> None:
    admission = await meeting.admit(bare(wire.ACCEPT), invite=invite)
    assert admission.resumed is None
    assert meeting.answering.invite == invite
    assert meeting.answering.resume is None
    established = meeting.answering.result
    opener = RecordOpener(established.cipher, established.epoch.client_record)
    record = admission.keys.sealer.seal(b"hello")
    assert bytes(opener.open(memoryview(record), 0)[0] or b"") == b"hello"


async def test_the_keys_go_on_behind_the_verdict(meeting: Meeting) -> None:
    """The verdict was the exit's record 0, so what the session opens first is record 1."""
    admission = await meeting.admit(bare(wire.ACCEPT))
    established = meeting.answering.result
    sealer = RecordSealer(established.cipher, established.epoch.exit_record)
    sealer.seal(b"the verdict")
    plaintext, _ = admission.keys.opener.open(memoryview(sealer.seal(b"more")), 0)
    assert bytes(plaintext or b"") == b"more"


async def test_a_session_goes_on(meeting: Meeting) -> None:
    link = Link()
    admission = await meeting.admit(resumed(5), link)
    assert admission.resumed == 5
    request = meeting.answering.resume
    assert request is not None
    assert (request.session_id, request.attempt, request.rx) == (SESSION_ID, ATTEMPT, link.client.received)
    assert request.proves(RESUME_SECRET, meeting.answering.resume_hash)


async def test_the_exit_has_lost_the_session(meeting: Meeting) -> None:
    assert (await meeting.admit(bare(wire.NO_SESSION), Link())).resumed is None


@pytest.mark.parametrize(
    "verdict",
    [
        resumed(attempt=ATTEMPT - 1),
        resumed(attempt=ATTEMPT + 1),
        resumed(secret=bytes(32)),
        lambda handshake: wire.encode_resumed(4, resumed(5)(handshake)[-32:]),
    ],
    ids=["an earlier attempt", "a later attempt", "another secret", "another count"],
)
async def test_a_verdict_that_is_not_the_answer_to_this_attempt(meeting: Meeting, verdict: Verdict) -> None:
    error = await refused(meeting, verdict, Link())
    assert error.reason is CloseReason.RESUME


@pytest.mark.parametrize(
    ("resuming", "verdict"),
    [
        (False, bare(wire.NO_SESSION)),
        (True, bare(wire.ACCEPT)),
        (False, resumed()),
        (False, bare(wire.SWITCH)),
        (False, lambda handshake: wire.encode_bare(wire.ACCEPT) * 2),
        (True, lambda handshake: resumed()(handshake) + wire.encode_bare(wire.NO_SESSION)),
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
