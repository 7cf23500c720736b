"""From a connection to a carrier's first keys: the handshake's flights and the exit's verdict on them.

    meet_exit -> introduce: a new session, whose first records follow at once; it reads the verdict itself
              -> resume: the verdict first, which says what each side has of the session

Each flight stands behind its length, u16. After the third flight the exit's first record is the verdict: ACCEPT (a new
session), RESUMED (the session that the client named goes on), NO_SESSION (that session is lost, this is a new one) or
CLOSE. Until the exit has given it, it reads no further than the third flight. On any error before that it closes in
silence.

After `meet_exit` the exit has proved its identity and the client has not yet given its own, so several connections may
come that far at a time. The client goes on with one of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from ..crypto.handshake import LENGTH, SECOND_SIZE, ClientHandshake, Established
from ..crypto.payloads import RESUME_EXIT, InviteClaim, ResumeRequest, resume_proof
from ..crypto.primitives import constant_time_equal
from ..errors import CloseReason, HandshakeError, PeerError
from ..session import wire
from ..session.records import HEADER, RecordOpener, RecordSealer
from ..session.rotation import CarrierKeys
from ..session.session import Session
from ..session.verdict import open_verdict
from .pipe import Pipe

HANDSHAKE_TIMEOUT: Final = 10.0
"""Seconds that each side gives the other for the handshake, the verdict included."""

type RunStep = Callable[[Callable[[], bytes]], Awaitable[bytes]]
"""Run one step of a handshake, on another thread where it is slow."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The client's view of its three flights, and of the verdict if it resumes.

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


async def introduce(
    pipe: Pipe, handshake: ClientHandshake, run_step: RunStep, invite: bytes | None = None
) -> Admission:
    """Send the third flight of a new session, after `meet_exit`. The verdict is left to the session that is attached
    with these keys (`Session.attach` with `admitted`), which may send before.

    `invite` is the secret that is shown. Raises CarrierError if the connection ends. The caller bounds the time.
    """

    def third() -> bytes:
        return handshake.write_third(None if invite is None else InviteClaim(invite))

    await pipe.write(frame_flight(await run_step(third)))
    return Admission(handshake.result, _first_keys(handshake.result), None)


async def resume(
    pipe: Pipe, handshake: ClientHandshake, session: Session, attempt: int, run_step: RunStep
) -> Admission:
    """Send the third flight of a handshake that resumes `session`, after `meet_exit`, and read the verdict.

    `attempt` is the number of this attempt (from 1, rising). Raises CarrierError if the connection ends, NotAdmitted if
    the exit refuses, PeerError if it does not prove that it has the session. The caller bounds the time.
    """
    received = session.received

    def third() -> bytes:
        return handshake.write_third(
            ResumeRequest.make(
                session.session_id, session.resume_secret, handshake.resume_hash, attempt, received
            )
        )

    await pipe.write(frame_flight(await run_step(third)))
    keys = _first_keys(handshake.result)
    kind, _, value = await read_verdict(pipe, keys.opener, wire.RESUMED, wire.NO_SESSION)
    resumed: int | None = None
    if kind == wire.RESUMED and isinstance(value, tuple):
        resumed, proof = value
        expected = resume_proof(session.resume_secret, RESUME_EXIT, handshake.resume_hash, attempt, resumed)
        if not constant_time_equal(proof, expected):
            raise PeerError(CloseReason.RESUME, "the exit did not prove that it knows the session")
    return Admission(handshake.result, keys, resumed)


async def read_verdict(pipe: Pipe, opener: RecordOpener, *kinds: int) -> wire.Frame:
    """The frame of the exit's first record; see `open_verdict`. Raises CarrierError too if the connection ends."""
    record = b""
    while True:
        record += await pipe.read_exactly(int.from_bytes(record) or HEADER)
        frame, _ = open_verdict(opener, memoryview(record), *kinds)
        if frame is not None:
            return frame


def _first_keys(established: Established) -> CarrierKeys:
    cipher, epoch = established.cipher, established.epoch
    return CarrierKeys(
        cipher, epoch, RecordSealer(cipher, epoch.client_record), RecordOpener(cipher, epoch.exit_record)
    )
