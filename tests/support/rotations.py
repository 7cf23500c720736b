"""Two rotations joined without sessions: paths that come and go, and reliable frames that go again when one is lost.

A path carries records in order, sealed and opened with its real keys, so two sides that differ about an epoch or a
border are found out by the first record behind it. What moves, and when, is up to the test.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import cast

from cryprq_proxy.crypto.handshake import EpochSecrets, record_keys
from cryprq_proxy.crypto.primitives import Cipher, Provider
from cryprq_proxy.errors import CarrierError
from cryprq_proxy.session import wire
from cryprq_proxy.session.datagrams import BasePacketLink
from cryprq_proxy.session.epochs import EpochLedger
from cryprq_proxy.session.frame_reader import decode_frames
from cryprq_proxy.session.key_limits import RotationLimits
from cryprq_proxy.session.path_keys import CarrierKeys, PathKeys
from cryprq_proxy.session.records import RecordOpener, RecordSealer
from cryprq_proxy.session.rotation import Offload, Rotation, inline
from tests.support.links import SESSION_ID, ToyProvider, epoch, seeded
from tests.support.settings import rotation_limits

CIPHER = Cipher.CHACHA20_POLY1305
START = 1000.0


class HeardEpochs(BasePacketLink):
    """Remembers what a lane would be told. `count`: its datagrams."""

    def __init__(self) -> None:
        self.epochs: list[tuple[int, EpochSecrets]] = []
        self.count = 0

    def epoch(self, cipher: Cipher, number: int, secrets: EpochSecrets, now: float) -> None:
        self.epochs.append((number, secrets))
        self.count = 0

    def datagrams(self) -> int:
        return self.count


class PathEnd:
    """One side of a path. `out`: records on their way to `other`; `log`: reliable frames that it has carried."""

    def __init__(self, side: RotationSide, keys: PathKeys) -> None:
        self.side = side
        self.keys = keys
        self.joined = keys.send_epoch
        self.out: deque[bytes] = deque()
        self.log: list[tuple[int, bytes]] = []
        self.other: PathEnd | None = None
        """None until the peer has let the path in."""
        self.alive = True
        self.ack_due = False

    def send(self, frame: bytes) -> None:
        if frame[0] < wire.RELIABLE:
            self.log.append((self.keys.records_sent, frame))
        self.out.append(self.keys.sealer.seal(frame))

    def fill(self, now: float) -> None:
        """Go over to the present epoch, if that is to be done, and acknowledge."""
        rotation, keys = self.side.rotation, self.keys
        if rotation.sending > keys.send_epoch:
            secret = rotation.known.secret(rotation.sending)
            assert secret is not None
            self.send(wire.encode_epoch(wire.SWITCH, rotation.sending))
            keys.switch_sending(rotation.sending, secret, now)
        if self.ack_due:
            self.ack_due = False
            self.send(wire.encode_records(wire.ACK, keys.number, keys.records_received))

    def carry(self, count: int, now: float) -> None:
        """So many records that mean nothing."""
        for _ in range(count):
            self.send(wire.encode_number(wire.PING, 0))
            assert self.deliver(now)

    def deliver(self, now: float) -> bool:
        """Let one record arrive; False if there is none, or nobody to read it."""
        other = self.other
        if not self.out or other is None or not (self.alive and other.alive):
            return False
        other.read(self.out.popleft(), now)
        return True

    def arrive(self, now: float) -> None:
        """Let all of them arrive."""
        while self.deliver(now):
            pass

    def read(self, record: bytes, now: float) -> None:
        keys, rotation = self.keys, self.side.rotation
        plaintext, _ = keys.opener.open(memoryview(record), 0)
        assert plaintext is not None
        ((kind, _, value),) = decode_frames(bytes(plaintext))
        self.ack_due |= kind not in (wire.ACK, wire.PING)
        if kind == wire.SWITCH:
            assert isinstance(value, int)
            keys.switch_receiving(value, rotation.known.secret(value), now)
            rotation.peer_switched(value, now)
        elif kind == wire.ACK:
            _, keys.acknowledged = cast("tuple[int, int]", value)
            self.log = [(number, frame) for number, frame in self.log if number >= keys.acknowledged]
        elif kind == wire.PING:
            pass
        elif kind == wire.REKEY_PLEASE:
            rotation.asked(cast("int", value), now)
        else:
            rotation.receive(kind, *cast("tuple[int, int, bytes]", value), now)


class RotationSide:
    """One side: what a rotation needs of its session.

    `sent`: all reliable frames so far; `waiting`: those that no path carries now.
    """

    def __init__(self, dialler: bool, limits: RotationLimits, offload: Offload) -> None:
        self.dialler = dialler
        self.link = HeardEpochs()
        self.ends: dict[int, PathEnd] = {}
        self.sent: list[bytes] = []
        self.waiting: deque[bytes] = deque()
        self.switches = self.renewals = 0
        self.rotation = Rotation(
            epoch(0),
            CIPHER,
            START,
            dialler=dialler,
            session_id=SESSION_ID,
            provider=cast("Provider", ToyProvider()),
            limits=limits,
            entropy=seeded(int(dialler)),
            offload=offload,
            session=self,
            ledger=EpochLedger(),
        )
        self.rotation.begin_lane(START)

    @property
    def packet_link(self) -> BasePacketLink:
        return self.link

    @property
    def path_keys(self) -> Iterable[PathKeys]:
        return [end.keys for end in self.ends.values()]

    def send_control(self, frame: bytes, /) -> None:
        self.sent.append(frame)
        self.waiting.append(frame)

    def switch(self) -> None:
        self.switches += 1

    def renewed(self) -> None:
        self.renewals += 1

    def attach(self, number: int, joined: int, now: float) -> PathEnd:
        """A path that joined by the resume secret of epoch `joined`."""
        out, into = record_keys(epoch(100 + number).records, number)[:: 1 if self.dialler else -1]
        keys = CarrierKeys(CIPHER, RecordSealer(CIPHER, out), RecordOpener(CIPHER, into))
        end = PathEnd(self, PathKeys(number, keys, now, dialler=self.dialler, epoch=joined))
        self.ends[number] = end
        if number:
            self.rotation.joined(joined, now)
        return end

    def lose(self, number: int) -> None:
        """The path has ended, as this side sees it: what it has carried goes again."""
        end = self.ends.pop(number, None)
        if end is not None:
            end.alive = False
            self.waiting.extend(frame for _, frame in end.log)


class Rotations:
    """Both sides. `now` is the time of all calls."""

    def __init__(
        self,
        limits: RotationLimits | None = None,
        *,
        exit_limits: RotationLimits | None = None,
        offload: Offload = inline,
        exit_offload: Offload = inline,
        paths: int = 1,
    ) -> None:
        self.now = START
        limits = limits or rotation_limits(interval=1e9)
        self.client = RotationSide(True, limits, offload)
        self.exit = RotationSide(False, exit_limits or limits, exit_offload)
        self.sides = (self.client, self.exit)
        self.paths = 0
        self.errors: list[CarrierError] = []
        """By which paths have ended."""
        for _ in range(paths):
            self.join()

    def join(self) -> int:
        """A new path, at once on both sides. Returns its number."""
        begun = self.begin_join()
        assert self.let_in(begun)
        return begun.keys.number

    def begin_join(self) -> PathEnd:
        """The client has sent the third flight of a short handshake, and what it likes behind it."""
        number, self.paths = self.paths, self.paths + 1
        return self.client.attach(number, self.client.rotation.current if number else 0, self.now)

    def let_in(self, end: PathEnd) -> bool:
        """The exit reads it; False if it does not take the resume secret of that epoch any more."""
        if not end.alive or end.joined not in self.exit.rotation.known._resume:
            self.client.lose(end.keys.number)
            return False
        other = self.exit.attach(end.keys.number, end.joined, self.now)
        end.other, other.other = other, end
        return True

    def cut(self, number: int) -> None:
        for side in self.sides:
            side.lose(number)

    def pump(self, side: RotationSide, end: PathEnd) -> None:
        """Let `end` carry all that waits."""
        while side.waiting:
            end.send(side.waiting.popleft())

    def settle(self) -> None:
        """Move everything until nothing moves, what waits by the newest path of each side."""
        for _ in range(12):
            for side in self.sides:
                if side.ends:
                    self.pump(side, next(reversed(side.ends.values())))
                for end in list(side.ends.values()):
                    end.fill(self.now)
            for side in self.sides:
                for end in list(side.ends.values()):
                    while end.deliver(self.now):
                        pass

    def advance(self, seconds: float) -> None:
        """Let time pass, with ticks at the deadlines; a path that raises is lost."""
        until = self.now + seconds
        idle = 0
        while True:
            calls = [
                (side.rotation.deadline(end.keys), side, end)
                for side in self.sides
                for end in side.ends.values()
            ]
            deadline, side, end = min(calls, key=lambda call: call[0], default=(until + 1, None, None))
            if deadline > until or side is None or end is None:
                break
            idle = idle + 1 if deadline <= self.now else 0
            assert idle < 10, "a rotation asks for ticks that have no effect"
            self.now = max(self.now, deadline)
            try:
                side.rotation.tick(self.now, end.keys)
            except CarrierError as error:
                self.errors.append(error)
                self.cut(end.keys.number)
            self.settle()
        self.now = until

    @property
    def current(self) -> tuple[int, int]:
        return self.client.rotation.current, self.exit.rotation.current

    def assert_together(self, number: int) -> None:
        """Both sides are in epoch `number`, with the same secrets, and so are all paths."""
        for side in self.sides:
            rotation = side.rotation
            assert rotation.current == rotation.sending == number
            assert len(rotation.known.resume_secrets) == 1
            for keys in side.path_keys:
                assert (keys.send_epoch, keys.receive_epoch) == (number, number)
        assert self.client.rotation.known.newest == self.exit.rotation.known.newest
        assert self.client.link.epochs == self.exit.link.epochs
        assert [heard for heard, _ in self.client.link.epochs] == list(range(number + 1))
