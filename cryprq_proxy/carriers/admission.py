"""From a connection to a carrier's first keys: the handshake's flights and the exit's verdict on them.

Each flight stands behind its length, u16. After the third flight the exit's first record is the verdict: ACCEPT (a new
session), RESUMED (the session that the client named goes on), NO_SESSION (that session is lost, this is a new one) or
CLOSE. Until the exit has authenticated the client, it reads no further than the third flight. On any error before that
it closes in silence.

The client goes in two steps. After `meet_exit` the exit has proved its identity and the client has not yet given its
own, so several connections may come that far at a time. `admit_client` goes on with one of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from ..crypto.handshake import LENGTH, SECOND_SIZE, ClientHandshake, Established
from ..crypto.payloads import RESUME_EXIT, InviteClaim, ResumeRequest, resume_proof
from ..crypto.primitives import constant_time_equal
from ..errors import CarrierError, CloseReason, HandshakeError, PeerError, words_of
from ..session import wire
from ..session.records import HEADER, MAX_RECORD, TAG, RecordOpener, RecordSealer
from ..session.rotation import CarrierKeys
from ..session.session import Session
from .pipe import Pipe

HANDSHAKE_TIMEOUT: Final = 10.0
"""Seconds that each side gives the other for the handshake, the verdict included."""
MAX_VERDICT: Final = 64
"""Bytes of frames in the exit's first record at most."""

type RunStep = Callable[[Callable[[], bytes]], Awaitable[bytes]]
"""Run one step of a handshake, on another thread where it is slow."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The client's view of a finished handshake.

    `resumed` is the number of frames of the old session that the exit has, None if this is a new session.
    """

    established: Established
    keys: CarrierKeys
    resumed: int | None


async def read_flight(pipe: Pipe, sizes: range) -> bytes:
    """Read one flight. Raises HandshakeError for a length outside of `sizes`, CarrierError if the connection ends."""
    (size,) = LENGTH.unpack(await pipe.read_exactly(LENGTH.size))
    if size not in sizes:
        raise HandshakeError("a flight of impossible length arrived")
    return await pipe.read_exactly(size)


def frame_flight(flight: bytes) -> bytes:
    """The flight behind its length."""
    return LENGTH.pack(len(flight)) + flight


async def meet_exit(pipe: Pipe, handshake: ClientHandshake, run_step: RunStep) -> None:
    """Exchange the first two flights. Raises HandshakeError if the exit is not the pinned one, CarrierError if the
    connection ends. The caller bounds the time."""
    await pipe.write(frame_flight(await run_step(handshake.write_first)))
    second = await read_flight(pipe, SECOND_SIZE)

    def read() -> bytes:
        handshake.read_second(second)
        return b""

    await run_step(read)


async def admit_client(
    pipe: Pipe,
    handshake: ClientHandshake,
    session: Session | None,
    attempt: int,
    run_step: RunStep,
    invite: bytes | None = None,
) -> Admission:
    """Send the third flight and read the verdict, after `meet_exit`.

    `session` is the one to resume and `attempt` the number of this attempt (from 1, rising). Without a session,
    `invite` is the secret that is shown. Raises CarrierError if the connection ends, PeerError (NOT_AUTHORIZED and
    others) if the exit refuses. The caller bounds the time.
    """
    received = 0 if session is None else session.received

    def third() -> bytes:
        if session is None:
            return handshake.write_third(None if invite is None else InviteClaim(invite))
        return handshake.write_third(
            ResumeRequest.make(
                session.session_id, session.resume_secret, handshake.resume_hash, attempt, received
            )
        )

    await pipe.write(frame_flight(await run_step(third)))
    established = handshake.result
    opener = RecordOpener(established.cipher, established.epoch.exit_record)
    kind, value = await _read_verdict(pipe, opener)
    resumed: int | None = None
    if kind == wire.CLOSE and isinstance(value, CloseReason):
        raise PeerError(value, f"the exit closed the link: {words_of(value)}")
    if kind == wire.RESUMED and session is not None and isinstance(value, tuple):
        resumed, proof = value
        expected = resume_proof(session.resume_secret, RESUME_EXIT, handshake.resume_hash, attempt, resumed)
        if not constant_time_equal(proof, expected):
            raise PeerError(CloseReason.RESUME, "the exit did not prove that it knows the session")
    elif (kind, session is None) not in ((wire.ACCEPT, True), (wire.NO_SESSION, False)):
        raise PeerError(CloseReason.PROTOCOL, "the exit's first record is not an answer to the handshake")
    sealer = RecordSealer(established.cipher, established.epoch.client_record)
    keys = CarrierKeys(established.cipher, established.epoch, sealer, opener)
    return Admission(established, keys, resumed)


async def _read_verdict(pipe: Pipe, opener: RecordOpener) -> tuple[int, object]:
    """Kind and value of the only frame in the exit's first record; kind 0 if it is not alone. Raises CarrierError."""
    header = await pipe.read_exactly(HEADER)
    length = int.from_bytes(header)
    if not TAG < length <= min(TAG + MAX_VERDICT, MAX_RECORD):
        raise CarrierError(CloseReason.BAD_RECORD, "the exit's first record has an impossible length")
    plaintext, _ = opener.open(memoryview(header + await pipe.read_exactly(length)), 0)
    frames = wire.decode_frames(bytes(plaintext or b""))
    kind, _, value = frames[0] if len(frames) == 1 else (0, 0, None)
    return kind, value
