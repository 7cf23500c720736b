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
from enum import Enum
from functools import partial
from typing import Any, Final, Protocol

from ..crypto.handshake import EpochSecrets
from ..crypto.primitives import Cipher, Entropy, Provider
from ..crypto.rekey import RekeyInitiator, answer_rekey
from ..errors import CarrierError, CloseReason, HandshakeError, PeerError
from . import wire
from .datagrams import BasePacketLink
from .epochs import EpochLedger
from .key_limits import AgingKeys, RotationLimits
from .known_epochs import KnownEpochs
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
    """The epochs of one session, from that of its first handshake until `end`. `since` is when the one under which this
    side sends came into use; for `current` and `sending` see KnownEpochs."""

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
        self._entropy = entropy
        self._offload = offload
        self._session: RotatedSession = session
        self._ledger = ledger
        self.cipher = cipher
        self.known = KnownEpochs(epoch)
        self.since = now
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

    @property
    def current(self) -> int:
        return self.known.current

    @property
    def sending(self) -> int:
        return self.known.sending

    def end(self) -> None:
        """The session is over: no secret is kept, and the result of a running computation is dropped."""
        self.known.end()
        self._initiator = None
        # Neither may keep the session in memory: it would wait for a collection of garbage.
        self._session, self._offload = _Over(), inline

    def begin_lane(self, now: float) -> None:
        """The session has just begun, and its packet link is there."""
        if self.known.newest is not None:
            self._session.packet_link.epoch(self.cipher, self.current, self.known.newest, now)

    # --- for the paths ---------------------------------------------------------------------------------------------

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
        self.known.bound = True
        self._session.renewed()

    def peer_switched(self, epoch: int, now: float) -> None:
        """The peer's SWITCH to `epoch` was read, on any path: it has the secrets."""
        if self._state is RotationState.ANSWERED and epoch == self.current:
            self._state = RotationState.IDLE
            self._use(now)

    # --- time ------------------------------------------------------------------------------------------------------

    def presses(self, keys: PathKeys) -> bool:
        """Whether no stream data may be sent under these keys any more."""
        return self._limits.presses(keys.sealer.records, keys.sealer.bytes)

    def lane_presses(self) -> bool:
        """As `presses`, of the keys of the lane."""
        return self._limits.lane_presses(self._session.packet_link.datagrams())

    def deadline(self, keys: AgingKeys) -> float:
        """When `tick` has something to do for the path of `keys`, or for the session."""
        if self.known.newest is None:
            return NEVER
        used = self._used(keys)
        return min(self._last_time(keys, used), self._due(used), self._forget_at())

    def tick(self, now: float, keys: AgingKeys) -> None:
        """Start or ask for a rotation, if one is due.

        Raises CarrierError (REKEY) if the path of `keys` must be closed: its keys are too old or too much used, or a
        rotation is not finished in time.
        """
        if self.known.newest is None:
            return
        used = self._used(keys)
        if now >= self._last_time(keys, used):
            raise CarrierError(CloseReason.REKEY, "the keys could not be rotated in time")
        if now >= self._forget_at():
            self.known.forget_before()
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
        if self.known.bound:
            return self.since
        return self.since + (min(interval, PLEASE_INTERVAL) if self._asked_for else interval)

    def _used(self, keys: AgingKeys) -> int:
        """How many times the path's keys, or the lane's, are used up, counted up to 2."""
        return self._limits.used(keys, self._session.packet_link.datagrams())

    def _forget_at(self) -> float:
        """When no path needs the epoch before `current` any more: those that have not left it are closed."""
        if not self.known.waits_for_paths or self._state is RotationState.ANSWERED:
            return NEVER
        return self.since + UNFINISHED

    # --- frames ----------------------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """At the dialler: begin a rotation, unless one is running."""
        if self._state is not RotationState.IDLE or self.known.newest is None:
            return
        self._state = RotationState.ASKING
        self._started = now
        initiator = self._initiator = RekeyInitiator(
            self._provider, self._session_id, self.known.newest, self.current + 1, entropy=self._entropy
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
        if message is None or self._state is RotationState.ANSWERING or self.known.newest is None:
            return
        self._state = RotationState.ANSWERING
        self._started = now
        answer = partial(
            answer_rekey,
            self._provider,
            self._session_id,
            self.known.newest,
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
        self.known.add(epoch)
        self._asked_for = False
        self._joined_at = NEVER
        self._session.packet_link.epoch(self.cipher, self.current, epoch, now)

    def _use(self, now: float) -> None:
        """Both sides have the secrets: send under them."""
        self.known.use()
        self.since = now
        self._ledger.begin(self.current, self.cipher.name, now)
        self._session.switch()
        self._session.renewed()

    def _run[T](self, job: Callable[[], T], then: Callable[[T], None]) -> None:
        def done(result: Callable[[], T]) -> None:
            if self.known.newest is None:
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
