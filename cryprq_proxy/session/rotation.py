"""Rotation: a hybrid exchange inside the link gives the session a fresh epoch every few minutes.

    dialler                                               exit
    IDLE
    ASKING (computes)
          --- REKEY n+1 ------------------------------>   IDLE
    ASKED                                                 ANSWERING (computes)
          <------------------------ REKEY_ANSWER n+1 ---  ANSWERED: knows n+1, goes on sending under n
    READING (computes)
    IDLE, sends under n+1
          --- SWITCH n+1, on each path --------------->   IDLE, sends under n+1: the epoch is *confirmed*
          <----------------- SWITCH n+1, on each path ---

REKEY and its answer are reliable and go by any path, in parts (message_parts.py), so a rotation outlives the paths.
Copies of them are late, and ignored. Only the dialler starts; the exit may ask with REKEY_PLEASE. A path that has
joined makes a rotation due, which replaces the secret by which it did; if none comes, the exit asks, and closes the
path in the end. Nothing pauses. The dialler begins no rotation before each of its paths has come to the present epoch
in both directions, so no more than two epochs are in use.

A path may also join by the resume secret of n+1: that confirms the epoch as SWITCH does.

`Offload` runs the computations, so that a slow implementation of ML-KEM can run on another thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, Final, Protocol

from ..crypto.handshake import EpochSecrets
from ..crypto.primitives import Cipher, Entropy, Provider
from ..crypto.rekey import RekeyInitiator, answer_rekey
from ..errors import CarrierError, CloseReason, HandshakeError, LocalError, PeerError
from . import wire
from .datagrams import BasePacketLink
from .epochs import EpochLedger
from .message_parts import MessageParts
from .path_keys import PathKeys

UNFINISHED: Final = 30.0
"""Seconds after which a path is closed on which a rotation is not finished."""
PLEASE_INTERVAL: Final = 1.0
"""Shortest time in seconds between rotations that are asked for, by the exit or because a path has joined."""
JOIN_PATIENCE: Final = 5.0
"""Seconds after which an exit asks for the rotation that is due when a path has joined."""
MISSED_INTERVALS: Final = 3
NEVER: Final = float("inf")

type Offload = Callable[[Callable[[], Any], Callable[[Callable[[], Any]], None]], None]
"""`offload(job, done)` runs `job` somewhere, then calls `done(result)` on the session's thread; `result()` returns
what the job returned or raises what it raised."""


def inline(job: Callable[[], Any], done: Callable[[Callable[[], Any]], None]) -> None:
    """The Offload for fast implementations: run the job at once, on this thread."""
    done(job)


@dataclass(frozen=True, slots=True)
class RotationLimits:
    """When keys are rotated. `records`, `bytes` and `datagrams` are of one key. A path is closed at twice one of them,
    or after three missed intervals."""

    interval: float
    """Seconds."""
    records: int
    bytes: int
    datagrams: int = 1 << 27
    """On the lane."""


class AgingKeys(Protocol):
    """What a rotation needs of the keys of a path (path_keys.py), or of the lane."""

    @property
    def since(self) -> float: ...
    @property
    def joined(self) -> float: ...
    def used(self, records: int, size: int, /) -> bool: ...
    def settled(self, epoch: int, /) -> bool: ...


class RotatedSession(Protocol):
    """What a rotation needs of its session."""

    @property
    def packet_link(self) -> BasePacketLink: ...
    @property
    def path_keys(self) -> Iterable[PathKeys]:
        """Of the paths that live."""

    def send_control(self, frame: bytes, /) -> None:
        """Send a reliable frame."""

    def switch(self) -> None:
        """`sending` has changed: each path is to go over to it."""

    def renewed(self) -> None:
        """`resume_secrets` has changed."""


class RotationState(Enum):
    IDLE = 1
    ASKING = 2
    ASKED = 3
    READING = 4
    ANSWERING = 5
    ANSWERED = 6


class Rotation:
    """The epochs of one session, from that of its first handshake until `end`.

    `current` is the newest epoch that is known here, `sending` the one under which this side sends: the one before
    while an exit waits for its confirmation. `since` is when `sending` came into use.
    """

    def __init__(
        self,
        epoch: EpochSecrets,
        cipher: Cipher,
        now: float,
        *,
        dialler: bool,
        session_id: bytes,
        provider: Provider,
        limits: RotationLimits,
        entropy: Entropy,
        offload: Offload,
        session: RotatedSession,
        ledger: EpochLedger,
    ) -> None:
        """`cipher` is that of the lane, and of the path by which the session came."""
        self._dialler = dialler
        self._session_id = session_id
        self._provider = provider
        self._limits = limits
        self._pressing = 3 * limits.records >> 1, 3 * limits.bytes >> 1
        """Records and bytes under one key after which stream data waits for the rotation."""
        self._pressing_lane = 3 * limits.datagrams >> 1
        self._entropy = entropy
        self._offload = offload
        self._session: RotatedSession = session
        self._ledger = ledger
        self.cipher = cipher
        self.current = self.sending = 0
        self.since = now
        self._epoch: EpochSecrets | None = epoch
        """The secrets of `current`; None when the session is over."""
        self._records = {0: epoch.records}
        self._resume = {0: epoch.resume}
        """By epoch, the newest first: of `current` and, for some time, of the one before."""
        self.bound = False
        """Whether a signed join is not yet followed by a rotation: no path joins by a ticket meanwhile."""
        self._state = RotationState.IDLE
        self._started = now
        self._settled = -1
        """The newest epoch to which all paths have come in both directions, as far as it was looked at."""
        self._asked_for = False
        """Whether a rotation is due before its time; at the exit, whether it has asked for one."""
        self._joined_at = NEVER
        """At the exit: when the first path joined by the secret of the present epoch."""
        self._initiator: RekeyInitiator | None = None
        """Only during a rotation."""
        self._parts = MessageParts()
        """Of the last REKEY, or of its answer."""
        ledger.begin(0, cipher.name, now)

    def end(self) -> None:
        """The session is over: no secret is kept, and the result of a running computation is dropped."""
        self._epoch = self._initiator = None
        self._records, self._resume = {}, {}
        # Neither may keep the session in memory: it would wait for a collection of garbage.
        self._session, self._offload = _Over(), inline

    def begin_lane(self, now: float) -> None:
        """The session has just begun, and its packet link is there."""
        if self._epoch is not None:
            self._session.packet_link.epoch(self.cipher, self.current, self._epoch, now)

    # --- for the paths ---------------------------------------------------------------------------------------------

    def secret(self, epoch: int) -> bytes | None:
        """The `records` secret of an epoch, for a border; None if it is not, or no longer, known."""
        return self._records.get(epoch)

    @property
    def resume_secrets(self) -> tuple[bytes, ...]:
        """By which a path may join by a ticket, newest first: two at an exit that waits for the confirmation of
        `current`, none after a signed join."""
        return () if self.bound else tuple(self._resume.values())

    @property
    def joining_secret(self) -> bytes:
        """By which the next path joins, at the client. Raises CarrierError if the session has ended."""
        for secret in self._resume.values():
            return secret
        raise CarrierError(CloseReason.RESUME, "the session ended while a path joined it")

    @property
    def claim_secrets(self) -> dict[int, bytes]:
        """By which a session may be claimed with signatures, by epoch."""
        return self._resume

    def resume_epoch(self, secret: bytes) -> int:
        """The epoch to which one of `resume_secrets` belongs. The path that joins by it takes this number along:
        meanwhile the secret may be forgotten. Raises LocalError for any other secret."""
        for epoch, resume in self._resume.items():
            if resume == secret:
                return epoch
        raise LocalError("no path may join by this secret")

    def joined(self, epoch: int, now: float) -> None:
        """A path has joined by the resume secret of `epoch`: a rotation is due."""
        self._settled = -1
        if self._dialler:
            self._asked_for = True
            return
        self.peer_switched(epoch, now)
        if epoch == self.current:
            self._joined_at = min(self._joined_at, now)

    def bind(self, epoch: int, now: float) -> None:
        """The peers have proved their identities once more, by the resume secret of `epoch`, and all other paths have
        ended: until the next epoch is in use, paths join by signatures only. So who knows the secrets of this one has
        no part in the making of the next."""
        self.peer_switched(epoch, now)
        self.bound = True
        self._session.renewed()

    def peer_switched(self, epoch: int, now: float) -> None:
        """The peer's SWITCH to `epoch` was read, on any path: it has the secrets."""
        if self._state is RotationState.ANSWERED and epoch == self.current:
            self._state = RotationState.IDLE
            self._use(now)

    # --- time ------------------------------------------------------------------------------------------------------

    def presses(self, keys: PathKeys) -> bool:
        """Whether no stream data may be sent under these keys any more. At twice their limit the path is closed, and
        much may be on it already when a rotation begins: what is left of the limit is for the rotation."""
        records, size = self._pressing
        return keys.sealer.records >= records or keys.sealer.bytes >= size

    def lane_presses(self) -> bool:
        """As `presses`, of the keys of the lane."""
        return self._session.packet_link.datagrams() >= self._pressing_lane

    def deadline(self, keys: AgingKeys) -> float:
        """When `tick` has something to do for the path of `keys`, or for the session."""
        if self._epoch is None:
            return NEVER
        used = self._used(keys)
        return min(self._last_time(keys, used), self._due(used), self._forget_at())

    def tick(self, now: float, keys: AgingKeys) -> None:
        """Start or ask for a rotation, if one is due.

        Raises CarrierError (REKEY) if the path of `keys` must be closed: its keys are too old or too much used, or a
        rotation is not finished in time.
        """
        if self._epoch is None:
            return
        used = self._used(keys)
        if now >= self._last_time(keys, used):
            raise CarrierError(CloseReason.REKEY, "the keys could not be rotated in time")
        if now >= self._forget_at():
            del self._records[self.current - 1]
        if now < self._due(used):
            return
        if self._dialler:
            self.start(now)
        else:
            self._asked_for = True
            self._session.send_control(wire.encode_epoch(wire.REKEY_PLEASE, self.current + 1))

    def _last_time(self, keys: AgingKeys, used: int) -> float:
        """When the path of `keys` ends, which are used up so many times, unless a rotation is finished before."""
        if used > 1:
            return keys.since
        last = keys.since + self._limits.interval * MISSED_INTERVALS
        # A path that comes later gets the whole time.
        if self._state is not RotationState.IDLE:
            last = min(last, max(self._started, keys.joined))
        elif not keys.settled(self.current):
            last = min(last, max(self.since, keys.joined))
        elif keys.joined >= self._joined_at:
            # Another path may hold the rotation up for as long as it has to settle.
            last = min(last, keys.joined + UNFINISHED)
        return last + UNFINISHED

    def _due(self, used: int) -> float:
        """When to start or ask for a rotation, of which keys that are used up so many times are the reason; NEVER while
        that must wait."""
        if self._state is not RotationState.IDLE or (self._asked_for and not self._dialler):
            return NEVER
        current = self.current
        if self._settled < current:
            if not all(keys.settled(current) for keys in self._session.path_keys):
                return NEVER
            self._settled = current
        interval = self._limits.interval
        if used:
            return self.since
        if not self._dialler:
            return min(self.since + interval, self._joined_at + JOIN_PATIENCE)
        if self.bound:
            return self.since
        return self.since + (min(interval, PLEASE_INTERVAL) if self._asked_for else interval)

    def _used(self, keys: AgingKeys) -> int:
        """How many times the path's keys, or the lane's, are used up, counted up to 2."""
        limits, datagrams = self._limits, self._session.packet_link.datagrams()
        if not keys.used(limits.records, limits.bytes) and datagrams < limits.datagrams:
            return 0
        twice = keys.used(2 * limits.records, 2 * limits.bytes) or datagrams >= 2 * limits.datagrams
        return 2 if twice else 1

    def _forget_at(self) -> float:
        """When no path needs the epoch before `current` any more: those that have not left it are closed."""
        if len(self._records) < 2 or self._state is RotationState.ANSWERED:
            return NEVER
        return self.since + UNFINISHED

    # --- frames ----------------------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """At the dialler: begin a rotation, unless one is running."""
        if self._state is not RotationState.IDLE or self._epoch is None:
            return
        self._state = RotationState.ASKING
        self._started = now
        initiator = self._initiator = RekeyInitiator(
            self._provider, self._session_id, self._epoch, self.current + 1, entropy=self._entropy
        )
        self._run(initiator.write, self._send_rekey)

    def asked(self, epoch: int, now: float) -> None:
        """REKEY_PLEASE came for `epoch`. Raises PeerError (REKEY) if it is out of turn."""
        self._check_side(self._dialler)
        if epoch > self.current + 1:
            raise out_of_turn()
        if epoch > self.current:
            self._asked_for = True
            if now >= self._due(max(map(self._used, self._session.path_keys), default=0)):
                self.start(now)

    def receive(self, kind: int, epoch: int, part: int, data: bytes, now: float) -> None:
        """A part of REKEY or REKEY_ANSWER came, on any path; `epoch` is the one that it is to make.

        Raises PeerError (REKEY) if it is out of turn, or the message does not open.
        """
        self._check_side((kind == wire.REKEY) is not self._dialler)
        if epoch <= self.current:
            if kind == wire.REKEY and epoch > self.sending:
                self._parts.add(epoch, part, data)
            return  # a late copy
        if epoch > self.current + 1:
            raise out_of_turn()
        if kind == wire.REKEY:
            self._receive_rekey(epoch, part, data, now)
        else:
            self._receive_answer(epoch, part, data, now)

    def _check_side(self, right: bool) -> None:
        if not right:
            raise PeerError(CloseReason.REKEY, "the peer sent a rotation frame that is not its to send")

    def _receive_rekey(self, epoch: int, part: int, data: bytes, now: float) -> None:
        if self._state is RotationState.ANSWERED:
            # On the lane it may overtake what confirms the present epoch, and does so itself.
            self.peer_switched(self.current, now)
        message = self._parts.add(epoch, part, data)
        if message is None or self._state is RotationState.ANSWERING or self._epoch is None:
            return
        self._state = RotationState.ANSWERING
        self._started = now
        answer = partial(
            answer_rekey,
            self._provider,
            self._session_id,
            self._epoch,
            self.current + 1,
            message,
            entropy=self._entropy,
        )
        self._run(answer, lambda answered: self._send_answer(*answered, now))

    def _receive_answer(self, epoch: int, part: int, data: bytes, now: float) -> None:
        initiator = self._initiator
        if self._state is RotationState.READING:
            return  # a late copy
        if self._state is not RotationState.ASKED or initiator is None:
            raise out_of_turn()
        message = self._parts.add(epoch, part, data)
        if message is None:
            return
        self._state = RotationState.READING
        self._run(partial(initiator.read, message), lambda epoch: self._take_answer(epoch, now))

    # --- the steps -------------------------------------------------------------------------------------------------

    def _send_rekey(self, message: bytes) -> None:
        self._state = RotationState.ASKED
        self._send(wire.REKEY, message)

    def _send(self, kind: int, message: bytes) -> None:
        for frame in wire.encode_message(kind, self.current + 1, message):
            self._session.send_control(frame)

    def _send_answer(self, message: bytes, epoch: EpochSecrets, now: float) -> None:
        self._state = RotationState.ANSWERED
        self._send(wire.REKEY_ANSWER, message)
        self._know(epoch, now)
        self._session.renewed()

    def _take_answer(self, epoch: EpochSecrets, now: float) -> None:
        self._state = RotationState.IDLE
        self._initiator = None
        self._know(epoch, now)
        self._use(now)

    def _know(self, epoch: EpochSecrets, now: float) -> None:
        """The secrets of the next epoch are there."""
        number = self.current + 1
        self._records = {number: epoch.records, self.current: self._records[self.current]}
        self._resume = {number: epoch.resume, self.current: self._resume[self.current]}
        self._epoch, self.current = epoch, number
        self._asked_for = False
        self._joined_at = NEVER
        self._session.packet_link.epoch(self.cipher, number, epoch, now)

    def _use(self, now: float) -> None:
        """Both sides have the secrets: send under them."""
        self.sending = self.current
        self._resume = {self.current: self._resume[self.current]}
        self.bound = False
        self.since = now
        self._ledger.begin(self.current, self.cipher.name, now)
        self._session.switch()
        self._session.renewed()

    def _run[T](self, job: Callable[[], T], then: Callable[[T], None]) -> None:
        def done(result: Callable[[], T]) -> None:
            if self._epoch is None:
                return
            try:
                then(result())
            except HandshakeError as error:
                raise PeerError(CloseReason.REKEY, str(error)) from error

        self._offload(job, done)


def out_of_turn() -> PeerError:
    return PeerError(CloseReason.REKEY, "the peer sent a rotation frame out of turn")


class _Over:
    """In place of a session that has ended."""

    packet_link: Final = BasePacketLink()
    path_keys: Final[tuple[PathKeys, ...]] = ()

    def send_control(self, frame: bytes, /) -> None: ...
    def switch(self) -> None: ...
    def renewed(self) -> None: ...
