"""From a connection to a path's first keys: the handshake's flights and the exit's verdict on them.

    meet_exit -> introduce: a new session, signed; its first records follow at once, and its path reads the verdict
              -> join: another path of a session, by the short pattern; the same
              -> claim: another path of a session, signed; the verdict first, since the session may be gone

Each flight stands behind its length, u16. After the third flight the exit's first record is the verdict: ACCEPT, JOINED
(the path belongs to the session that the client has claimed), NO_SESSION (that session is lost, this is a new one) or
CLOSE. Until the exit has given it, it reads no further than the third flight. On any error before that it closes in
silence.

After `meet_exit` the client has not yet given its identity or its ticket, so several connections may come that far at a
time. The client goes on with one of them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

from ..crypto.client_handshake import ClientHandshake, ShortClientHandshake
from ..crypto.handshake import LENGTH, Established, record_keys
from ..crypto.payloads import JOIN_EXIT, InviteClaim, JoinClaim, join_proof
from ..crypto.primitives import Cipher, constant_time_equal
from ..errors import CloseReason, HandshakeError, PeerError
from ..session import wire
from ..session.path_keys import CarrierKeys
from ..session.records import HEADER, RecordOpener, RecordSealer
from ..session.session import Session
from ..session.verdict import open_verdict
from .pipe import Pipe

HANDSHAKE_TIMEOUT: Final = 10.0
"""Seconds that each side gives the other for the handshake, the verdict included."""

type AnyClientHandshake = ClientHandshake | ShortClientHandshake
type RunStep = Callable[[Callable[[], bytes]], Awaitable[bytes]]
"""Run one step of a handshake, on another thread where it is slow."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The client's view of its three flights, and of the verdict if it has claimed a session.

    `number` is that of the path. `begins` is what a new session begins with, None if the path joins the present one; it
    joins by the resume secret of `epoch`.
    """

    number: int
    features: int
    keys: CarrierKeys
    begins: Established | None
    epoch: int = 0


async def read_flight(pipe: Pipe, sizes: range) -> bytes:
    """Read one flight. Raises HandshakeError for a length outside of `sizes`, CarrierError if the connection ends."""
    (size,) = LENGTH.unpack(await pipe.read_exactly(LENGTH.size))
    if size not in sizes:
        raise HandshakeError("a flight of impossible length arrived")
    return await pipe.read_exactly(size)


def frame_flight(flight: bytes) -> bytes:
    """The flight behind its length."""
    return LENGTH.pack(len(flight)) + flight


async def meet_exit(pipe: Pipe, handshake: AnyClientHandshake, run_step: RunStep) -> None:
    """Exchange the first two flights; in the signed pattern the exit has proved its identity then.

    Raises HandshakeError if it is not the pinned one, CarrierError if the connection ends. The caller bounds the time.
    """
    await pipe.write(frame_flight(await run_step(handshake.write_first)))
    second = await read_flight(pipe, handshake.second_size)

    def read() -> bytes:
        handshake.read_second(second)
        return b""

    await run_step(read)


async def introduce(
    pipe: Pipe, handshake: ClientHandshake, run_step: RunStep, invite: bytes | None = None
) -> Admission:
    """Send the third flight of a new session, after `meet_exit`. The verdict is left to the path that is attached with
    these keys (`Session.attach` with `admitted`), which may send before.

    `invite` is the secret that is shown. Raises CarrierError if the connection ends. The caller bounds the time.
    """

    def third() -> bytes:
        return handshake.write_third(None if invite is None else InviteClaim(invite))

    await pipe.write(frame_flight(await run_step(third)))
    return _admission(handshake.result, 0, begins=True)


async def join(pipe: Pipe, handshake: ShortClientHandshake, epoch: int, run_step: RunStep) -> Admission:
    """Send the third flight of the short pattern, after `meet_exit`; its resume secret is that of `epoch`.

    The verdict is left to the path, as by `introduce`, and so are the errors.
    """
    await pipe.write(frame_flight(await run_step(handshake.write_third)))
    path = handshake.result
    return Admission(
        path.number, path.features, first_keys(path.cipher, path.records, path.number), None, epoch
    )


async def claim(
    pipe: Pipe, handshake: ClientHandshake, session: Session, number: int, run_step: RunStep
) -> Admission:
    """Send the third flight of a signed handshake that claims `session` for its path `number`, after `meet_exit`, and
    read the verdict.

    Raises CarrierError if the connection ends, NotAdmitted if the exit refuses, PeerError if it does not prove that it
    has the session. The caller bounds the time.
    """
    secret, epoch = session.rotation.known.joining_secret, session.rotation.current

    def third() -> bytes:
        return handshake.write_third(JoinClaim.make(session.session_id, secret, handshake.join_hash, number))

    await pipe.write(frame_flight(await run_step(third)))
    admission = _admission(handshake.result, number, begins=False)
    kind, _, proof = await read_verdict(pipe, admission.keys.opener, wire.JOINED, wire.NO_SESSION)
    if kind == wire.NO_SESSION:
        # The exit has sealed that as the first record of path `number`; so it goes on, and the path is that of a new
        # session.
        return replace(admission, begins=handshake.result)
    expected = join_proof(secret, JOIN_EXIT, handshake.join_hash, number)
    if not isinstance(proof, bytes) or not constant_time_equal(proof, expected):
        raise PeerError(CloseReason.RESUME, "the exit did not prove that it knows the session")
    return replace(admission, epoch=epoch)


async def read_verdict(pipe: Pipe, opener: RecordOpener, *kinds: int) -> wire.Frame:
    """The frame of the exit's first record; see `open_verdict`. Raises CarrierError too if the connection ends."""
    record = b""
    while True:
        record += await pipe.read_exactly(int.from_bytes(record) or HEADER)
        frame, _ = open_verdict(opener, memoryview(record), *kinds)
        if frame is not None:
            return frame


def _admission(established: Established, number: int, *, begins: bool) -> Admission:
    keys = first_keys(established.cipher, established.epoch.records, number)
    return Admission(number, established.features, keys, established if begins else None)


def first_keys(cipher: Cipher, records: bytes, number: int, *, dialler: bool = True) -> CarrierKeys:
    """The keys of path `number` from the `records` secret of its handshake."""
    out, into = record_keys(records, number)[:: 1 if dialler else -1]
    return CarrierKeys(cipher, RecordSealer(cipher, out), RecordOpener(cipher, into))
