"""What comes by the lane, in any order and perhaps twice: acted on at once, held, or refused.

Each reliable frame is absolute and idempotent, so their order does not matter, with one exception: what belongs to a
stream needs its OPEN, and waits for it (frames_ahead.py).

One datagram may hold frames that are the work of several turns (turns.py). They wait here for the next one.

What is refused must not be acknowledged: the peer sends it again. Of a datagram all is refused or nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from ..errors import CloseReason, PeerError
from . import wire
from .frame_reader import read_frames
from .rotation import Rotation
from .stream_receiver import StreamReceiver
from .stream_table import StreamTable
from .turns import BYTES_PER_UNIT, DATA_COST, FRAME_COSTS, RECORD_WORK, TurnBudget
from .wire import DATA, MAX_OFFSET, Frame

MAX_UNREAD: Final = 65_536
"""Bytes of datagrams whose frames wait for the next turn; one more may begin to."""
_OF_A_STREAM: Final = frozenset({wire.DATA, wire.FIN, wire.RESET, wire.WINDOW})
"""What a client sends of a stream besides its OPEN."""


class InboxSession(Protocol):
    """What this needs of a session."""

    @property
    def closed(self) -> CloseReason | None: ...
    @property
    def table(self) -> StreamTable: ...
    @property
    def receiver(self) -> StreamReceiver: ...
    @property
    def rotation(self) -> Rotation: ...
    @property
    def turn(self) -> TurnBudget: ...
    def check_kept(self) -> None: ...


class LaneInbox:
    """That of one LanePath. `act` is called with a frame's kind, stream and value; `wake` asks for a call of `go_on`
    in this turn of the loop."""

    __slots__ = ("_act", "_bytes", "_due", "_frames", "_session", "_wake")

    def __init__(
        self, session: InboxSession, act: Callable[[int, int, object], None], wake: Callable[[], None]
    ) -> None:
        self._session = session
        self._act = act
        self._wake = wake
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        """Of the datagrams in which these came."""
        self._due = False

    def take_data(self, stream: int, offset: int, data: memoryview) -> bool:
        """Bytes of a stream; False if they are refused. Raises PeerError."""
        session = self._session
        if not stream or not data or offset + len(data) > MAX_OFFSET:
            raise PeerError(CloseReason.PROTOCOL, "the peer sent malformed stream data on the lane")
        session.turn.spend(DATA_COST + len(data) // BYTES_PER_UNIT)
        table, receiver = session.table, session.receiver
        if stream not in table.live and table.numbers.to_come(stream):
            return receiver.ahead.hold([(DATA, stream, (offset, data))])
        if not receiver.has_room(stream, offset):
            return False
        receiver.receive_data(stream, offset, data)
        return True

    def take_frames(self, plaintext: bytes) -> bool:
        """Frames; False if they are refused. Raises PeerError."""
        session = self._session
        if self._bytes > MAX_UNREAD:
            return False
        session.turn.spend(RECORD_WORK)
        ahead: list[Frame] = []
        others: list[Frame] = []
        opened: set[int] = set()
        table, receiver = session.table, session.receiver
        for frame in read_frames(plaintext):
            kind, id, value = frame
            if kind >= wire.RELIABLE and kind != wire.CLOSE:
                name = wire.Kind(kind).name
                raise PeerError(CloseReason.PROTOCOL, f"the peer sent a {name} frame on the lane")
            if kind in (wire.REKEY, wire.REKEY_ANSWER) and session.rotation.known.bound:
                return False
            if kind == wire.OPEN:
                opened.add(id)
            elif id and kind in _OF_A_STREAM and id not in opened and table.numbers.to_come(id):
                ahead.append(frame)
                continue
            elif kind == DATA and not receiver.has_room(id, value[0]):  # type: ignore[index]
                return False
            others.append(frame)
        if ahead and not receiver.ahead.hold(ahead):
            return False
        self._frames.extend(others)
        self._bytes += len(plaintext)
        self.go_on()
        return True

    def go_on(self) -> None:
        """Act on what has come, as far as the turn allows. Raises PeerError."""
        session = self._session
        frames, turn = self._frames, session.turn
        while frames and turn.left > 0 and session.closed is None:
            kind, id, value = frames.popleft()
            turn.spend(FRAME_COSTS[kind])
            self._act(kind, id, value)
        if not frames:
            self._bytes = 0
        elif not self._due:
            self._due = True
            turn.wait(self._renew)
        session.check_kept()

    def _renew(self) -> None:
        self._due = False
        self._wake()

    def clear(self) -> None:
        """The session is over."""
        self._frames.clear()
        self._bytes = 0
