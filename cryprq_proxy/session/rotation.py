"""Rotation: a hybrid exchange inside the link gives a carrier fresh keys every few minutes.

    dialler                                   exit
    IDLE
    ASKING (computes)
          --- REKEY ---------------------->   IDLE
    ASKED                                     ANSWERING   (computes)
          <--------------- REKEY_ANSWER ---   ANSWERED    its last record of epoch n; it sends with n+1 from here
    SWITCHING (computes), opens with n+1
          --- SWITCH --------------------->   IDLE        the dialler's last record of epoch n; opens with n+1
    IDLE, sends with n+1

Only the dialler starts; the exit may ask with REKEY_PLEASE. REKEY_ANSWER and SWITCH end an epoch, so each is alone in
its record. Nothing pauses: stream data continues in the old epoch until then. If the carrier is lost, so is the
rotation: the next carrier starts with keys of its own, so no nonce sequence continues.

`Offload` runs the computations, so that a slow implementation of ML-KEM can run on another thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Final, NamedTuple

from ..crypto.handshake import EpochSecrets
from ..crypto.primitives import Cipher, Entropy, Provider
from ..crypto.rekey import RekeyInitiator, answer_rekey
from ..errors import CarrierError, CloseReason, HandshakeError, PeerError
from . import wire
from .datagrams import BasePacketLink
from .epochs import EpochLedger
from .records import RecordOpener, RecordSealer

UNFINISHED: Final = 30.0
"""Seconds after which an unfinished rotation ends the carrier."""
PLEASE_INTERVAL: Final = 1.0
"""Shortest time in seconds between rotations that the exit asks for; an earlier REKEY_PLEASE waits."""
MISSED_INTERVALS: Final = 3

type Offload = Callable[[Callable[[], Any], Callable[[Callable[[], Any]], None]], None]
"""`offload(job, done)` runs `job` somewhere, then calls `done(result)` on the session's thread; `result()` returns
what the job returned or raises what it raised."""


def inline(job: Callable[[], Any], done: Callable[[Callable[[], Any]], None]) -> None:
    """The Offload for fast implementations: run the job at once, on this thread."""
    done(job)


@dataclass(frozen=True, slots=True)
class RotationLimits:
    """When keys are rotated. The carrier is closed at twice `records` or `bytes`, or after three missed intervals."""

    interval: float
    """Seconds."""
    records: int
    bytes: int
    datagrams: int = 1 << 27
    """On the lane."""


class CarrierKeys(NamedTuple):
    """What the handshake of a carrier results in. `sealer` and `opener` continue where admission stopped."""

    cipher: Cipher
    epoch: EpochSecrets
    sealer: RecordSealer
    opener: RecordOpener


class RotationState(Enum):
    IDLE = 1
    ASKING = 2
    ASKED = 3
    SWITCHING = 4
    ANSWERING = 5
    ANSWERED = 6


# (state, frame received) -> (state after it, whether the dialler is the side that may receive it)
_ON_FRAME: Final = {
    (RotationState.IDLE, wire.REKEY): (RotationState.ANSWERING, False),
    (RotationState.ANSWERED, wire.SWITCH): (RotationState.IDLE, False),
    (RotationState.ASKED, wire.REKEY_ANSWER): (RotationState.SWITCHING, True),
}


class Rotation:
    """The keys of one carrier, from its handshake until `end`.

    Use `sealer` and `opener` for the next record. Send `frames` in the current epoch. If `final` is not None, seal it
    alone as the last record of the epoch, then call `final_sent`. While `paused`, open no further record: its key is
    being computed. `ready` is called when the pause ends or a frame waits. `ledger` is that of the whole session.
    """

    def __init__(
        self,
        keys: CarrierKeys,
        now: float,
        *,
        dialler: bool,
        session_id: bytes,
        provider: Provider,
        limits: RotationLimits,
        entropy: Entropy,
        offload: Offload,
        ready: Callable[[], None],
        packet_link: Callable[[], BasePacketLink],
        ledger: EpochLedger,
    ) -> None:
        self._dialler = dialler
        self._session_id = session_id
        self._provider = provider
        self._limits = limits
        self._entropy = entropy
        self._offload = offload
        self._ready = ready
        self._packet_link = packet_link
        self._ledger = ledger
        self.cipher = keys.cipher
        self.sealer = keys.sealer
        self.opener = keys.opener
        self.number = 0
        """Counts the epochs of this carrier."""
        self.since = now
        self.frames: list[bytes] = []
        self.final: bytes | None = None
        self.paused = False
        self._epoch = keys.epoch
        self._state = RotationState.IDLE
        self._started = now
        self._asked_for = False
        self._ended = False
        # Only during a rotation:
        self._initiator: RekeyInitiator | None = None
        self._pending: EpochSecrets | None = None
        self._next: tuple[EpochSecrets, RecordSealer] | None = None
        self._next_opener: RecordOpener | None = None
        ledger.begin(0, self.cipher.name, now)
        packet_link().epoch(self.cipher, 0, self._epoch, now)

    def end(self, now: float) -> None:
        """The carrier is gone: the result of a running computation is dropped."""
        self._ledger.sealed(self.sealer)
        self._ledger.opened(self.opener)
        self._ledger.end(now)
        self._ended = True

    def deadline(self) -> float:
        """When `tick` has something to do."""
        interval, spent = self._limits.interval, self._spent()
        if spent >= 2:
            return self.since
        if self._state is not RotationState.IDLE:
            return self._started + UNFINISHED
        if self._asked_for and not self._dialler:
            return self.since + interval * MISSED_INTERVALS + UNFINISHED
        if spent:
            return self.since
        return self.since + (min(interval, PLEASE_INTERVAL) if self._asked_for else interval)

    def tick(self, now: float) -> None:
        """Start, ask for, or give up a rotation. Raises CarrierError (REKEY) if the peer does not do its part."""
        interval, spent = self._limits.interval, self._spent()
        if (
            (self._state is not RotationState.IDLE and now >= self._started + UNFINISHED)
            or now >= self.since + interval * MISSED_INTERVALS + UNFINISHED
            or spent >= 2
        ):
            raise CarrierError(CloseReason.REKEY, "the keys could not be rotated in time")
        if self._dialler:
            if spent or now >= self.since + (min(interval, PLEASE_INTERVAL) if self._asked_for else interval):
                self.start(now)
        elif (
            (spent or now >= self.since + interval)
            and self._state is RotationState.IDLE
            and not self._asked_for
        ):
            self._asked_for = True
            self.frames.append(wire.encode_bare(wire.REKEY_PLEASE))
            self._ready()

    def start(self, now: float) -> None:
        """At the dialler: begin a rotation, unless one is running."""
        if self._state is not RotationState.IDLE:
            return
        self._state = RotationState.ASKING
        self._started = now
        initiator = self._initiator = RekeyInitiator(
            self._provider, self._session_id, self._epoch, self.number + 1, entropy=self._entropy
        )
        self._run(initiator.write, self._send_rekey)

    def receive(self, kind: int, message: bytes | None, now: float) -> None:
        """A frame of the rotation arrived; one that ends the epoch was alone in its record.

        Raises PeerError (REKEY) if it is out of turn or its message does not open.
        """
        if kind == wire.REKEY_PLEASE and self._dialler:
            if self._state is RotationState.IDLE:
                self._asked_for = True
                self.tick(now)
            return
        step = _ON_FRAME.get((self._state, kind))
        if step is None or step[1] is not self._dialler:
            raise PeerError(CloseReason.REKEY, "the peer sent a rotation frame out of turn")
        self._state = step[0]
        if kind == wire.SWITCH:
            self._switch(now)
            return
        self._started = now
        if kind == wire.REKEY:
            self._run(self._answer(message or b""), self._send_answer)
        elif (initiator := self._initiator) is not None:
            self.paused = True
            self._run(lambda: initiator.read(message or b""), lambda epoch: self._take_answer(epoch, now))

    def final_sent(self, now: float) -> None:
        """`final` has been sealed: the next record sent is the first of the new epoch."""
        if self._next is None:
            return
        self._ledger.sealed(self.sealer)
        epoch, self.sealer = self._next
        self._next = None
        self.final = None
        if self._dialler:
            self._begin(epoch, now)
        else:
            self._pending = epoch
            self._packet_link().epoch(self.cipher, self.number + 1, epoch, now)

    # --- the steps -------------------------------------------------------------------------------------------------

    def _spent(self) -> int:
        """How many times the busier direction has used up its limit on records, bytes or datagrams."""
        sealer, opener, limits = self.sealer, self.opener, self._limits
        return max(
            max(sealer.records, opener.records) // limits.records,
            max(sealer.bytes, opener.bytes) // limits.bytes,
            self._packet_link().datagrams() // limits.datagrams,
        )

    def _send_rekey(self, message: bytes) -> None:
        self._state = RotationState.ASKED
        self.frames.append(wire.encode_message(wire.REKEY, message))
        self._ready()

    def _answer(self, message: bytes) -> Callable[[], tuple[bytes, EpochSecrets]]:
        """The computation of the answer, bound to the present keys: they may have changed when it runs."""
        return partial(
            answer_rekey,
            self._provider,
            self._session_id,
            self._epoch,
            self.number + 1,
            message,
            entropy=self._entropy,
        )

    def _send_answer(self, answer: tuple[bytes, EpochSecrets]) -> None:
        message, epoch = answer
        self._state = RotationState.ANSWERED
        self._next_opener = RecordOpener(self.cipher, epoch.client_record)
        self._next = epoch, RecordSealer(self.cipher, epoch.exit_record)
        self.final = wire.encode_message(wire.REKEY_ANSWER, message)
        self._ready()

    def _take_answer(self, epoch: EpochSecrets, now: float) -> None:
        self.paused = False
        self._ledger.opened(self.opener)
        self.opener = RecordOpener(self.cipher, epoch.exit_record)
        self._next = epoch, RecordSealer(self.cipher, epoch.client_record)
        self.final = wire.encode_bare(wire.SWITCH)
        self._packet_link().epoch(self.cipher, self.number + 1, epoch, now)
        self._ready()

    def _switch(self, now: float) -> None:
        if self._next_opener is None or self._pending is None:
            raise PeerError(CloseReason.REKEY, "the peer switched keys before it had the answer")
        self._ledger.opened(self.opener)
        self.opener = self._next_opener
        self._begin(self._pending, now)

    def _begin(self, epoch: EpochSecrets, now: float) -> None:
        self._epoch = epoch
        self._initiator = self._pending = self._next = self._next_opener = None
        self.number += 1
        self.since = now
        self._ledger.begin(self.number, self.cipher.name, now)
        self._asked_for = False
        self._state = RotationState.IDLE

    def _run[T](self, job: Callable[[], T], then: Callable[[T], None]) -> None:
        def done(result: Callable[[], T]) -> None:
            if self._ended:
                return
            try:
                then(result())
            except HandshakeError as error:
                raise PeerError(CloseReason.REKEY, str(error)) from error

        self._offload(job, done)
