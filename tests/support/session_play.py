"""A play of two sessions on the virtual clock, one of which may lie: a generator that a fuzzer and unit tests drive.

Both are real sessions with real applications, joined by up to MAX_PATHS paths. Most of the play is honest: streams,
data, datagrams, rotations, time, paths that join, stand still, are preferred, or are lost, on both sides or at first on
one. The liar's session adds frames of its own making to what it sends, in records of their own: known and
unknown streams, paths and epochs, numbers just inside and outside of what is allowed, too much data, bytes in any order
and with other content, floods, copies, frames cut short and changed. What its victim answers it reads, forgives what it
cannot understand, and goes on. So a lie meets a victim in any state, also in the middle of a rotation or of a turn
whose budget is used up.

`Play.run` raises whatever is no PeerError, also what a session has contained (`FaultWatch`), and RuntimeError for a
broken promise: a bound (`Judge`), a call of a handler after its end (`Witness`), something that is kept after the end,
and in a play without a liar any error and any byte that is lost or out of order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Final
from unittest import mock

from cryprq_proxy.crypto.primitives import Cipher
from cryprq_proxy.errors import CarrierError, CloseReason, NotAdmitted, PeerError, StreamReason, StreamRefused
from cryprq_proxy.session import (
    control_rates,
    number_set,
    reassembly,
    session_credit,
    stream_numbers,
    stream_table,
    wire,
)
from cryprq_proxy.session import session as session_module
from cryprq_proxy.session.path import FILL_MINIMUM, MAX_EARLY, SessionPath
from cryprq_proxy.session.records import OVERHEAD
from cryprq_proxy.session.session import Session
from cryprq_proxy.session.streams import Stream
from cryprq_proxy.session.wire import StreamProtocol
from cryprq_proxy.session.writer import RecordWriter
from tests.support import memory
from tests.support import session_lies as lies
from tests.support.choices import Choices
from tests.support.fault_watch import FaultWatch
from tests.support.frame_count import LATE_BURST, LATE_RATE, broken
from tests.support.links import App, LaterOffload, Link, ToyProvider
from tests.support.memory import BUDGET, CAPACITY, Direction, MemoryCarrier
from tests.support.session_judge import (
    AWAITED,
    CREDIT,
    GAPS,
    OPENS,
    PIECES,
    POOL,
    RETAINED,
    SESSION_PIECES,
    SMALL,
    Judge,
    OpenPacketLink,
    Witness,
)  # fmt: skip
from tests.support.session_lies import ADDRESSES, ForgivingDirection
from tests.support.settings import rotation_limits, session_limits

MAX_STEPS: Final = 60
MAX_PATHS: Final = 3
STREAMS: Final = (6, 200)
MAX_LIE: Final = 60_000
"""Bytes of frames that the liar's session writes at a time; more are sealed apart."""
REPEATS: Final = (1, 1, 1, 2, 40, control_rates.CONTROL_BURST + 50)
PATTERN: Final = bytes(range(251)) * 300
HISTORY: Final = 60
"""Frames that the liar remembers, to send them again."""

_buffer: Final = memoryview(bytearray(FILL_MINIMUM + BUDGET))


@contextlib.contextmanager
def small_bounds() -> Iterator[None]:
    """Bounds that a play is too short to reach are smaller in it."""
    with (
        mock.patch.object(stream_numbers, "MAX_AWAITED", AWAITED),
        mock.patch.object(stream_numbers, "INITIAL_STREAMS", OPENS),
        mock.patch.object(stream_table, "INITIAL_CREDIT", CREDIT),
        mock.patch.object(session_credit, "INITIAL_CREDIT", CREDIT),
        mock.patch.object(reassembly, "MAX_PIECES", PIECES),
        mock.patch.object(reassembly, "MAX_SESSION_PIECES", SESSION_PIECES),
        mock.patch.object(number_set, "MAX_GAPS", GAPS),
    ):
        yield


class Play:
    """One play. `victim` keeps the promises; without a liar both sides do, and `victim` is the exit."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        setting = choices.number(1 << 16)
        self.busy = bool(setting >> 1 & 1)
        """Whether keys are used up by few records."""
        rotation = rotation_limits(interval=(600.0, 3.0)[setting & 1], records=(1 << 24, 60)[self.busy])
        self.streams = choices.pick(STREAMS)
        limits = session_limits(retained=RETAINED, window_pool=POOL, streams=self.streams, rotation=rotation)
        self.honest = choices.once_in(4)
        self.later = LaterOffload()
        self.apps: list[Witness] = []
        self.unanswered: list[Stream] = []
        self.deferred = bool(setting >> 2 & 1)
        offload = {"offload": self.later, "exit_offload": self.later} if self.deferred else {}
        with small_bounds():
            self.link = Link(
                limits,
                provider=ToyProvider(),
                cipher=Cipher.AES_256_GCM,
                serve=self._serve,
                connected=False,
                **offload,  # type: ignore[arg-type]
            )
        pair = (self.link.client, self.link.exit)
        self.liar, self.victim = pair[:: 1 if setting >> 3 & 1 else -1]
        if self.honest or setting >> 4 & 1:
            for session in pair:
                session.packet_link = OpenPacketLink()
        self.mute = not self.honest and bool(setting >> 6 & 1)
        """Whether the liar acknowledges nothing."""
        self.carriers: list[MemoryCarrier] = []
        self.early: SessionPath | None = None
        """The path for which the client has sent its third flight, and the exit has not answered yet."""
        self.early_bytes = bytearray()
        self.harmed = False
        """Whether a path stands still, or one side was told nothing of its end."""
        self.history: list[bytes] = []
        self.errors: list[PeerError] = []
        judged = (self.victim, self.liar) if self.honest else (self.victim,)
        link = self.link
        budgets = dict(zip(pair, zip(link.budgets, link.window_budgets, strict=True), strict=True))
        self.judges = [Judge(session, *budgets[session], link.slots, self.streams) for session in judged]
        self._join(introduce=bool(setting >> 5 & 1))

    def _serve(self, stream: Stream) -> App:
        app = self._witness(dialler=False)
        self.apps.append(app)
        match self.choices.number(4):
            case 0:
                self.unanswered.append(stream)
            case 1 if not self.honest:
                app.gone = True
                stream.refuse(StreamReason.NOT_ALLOWED)
            case _:
                stream.accept()
        return app

    def _witness(self, *, dialler: bool) -> Witness:
        manner = self.choices.number(6)
        return Witness(dialler=dialler, eager=manner < 4, slots=self.link.slots if manner & 1 else None)

    # --- paths -----------------------------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        return self.link.now

    def _join(self, *, introduce: bool) -> None:
        """Another path, behind the exit's verdict or before it."""
        if introduce:
            self.early = self.link.introduce()
            self.early_bytes.clear()
        else:
            self._keep(self.link.join())

    def _keep(self, carrier: MemoryCarrier) -> None:
        carrier.lingers = True
        if not self.honest:
            name = "to_right" if self.liar is self.link.exit else "to_left"
            before: Direction = getattr(carrier, name)
            forgiving = ForgivingDirection(before.source, before.target)
            forgiving.in_flight += before.in_flight
            setattr(carrier, name, forgiving)
        if self.mute:
            _mute(self._end_of(carrier, self.liar))
        piece = self.choices.pick((CAPACITY, CAPACITY, CAPACITY, 9_000, 9_000, 700, 61))
        budget = self.choices.pick((BUDGET, BUDGET, 200))
        for direction in (carrier.to_right, carrier.to_left):
            direction.piece, direction.budget = piece, budget
        self.carriers.append(carrier)

    @staticmethod
    def _end_of(carrier: MemoryCarrier, session: Session) -> SessionPath:
        return next(path for path in carrier.paths if path.session is session)

    def _fill_early(self) -> None:
        """Before the verdict the client sends what it may."""
        path = self.early
        while path is not None and (size := path.fill(_buffer, BUDGET, self.now)):
            self.early_bytes += _buffer[:size]

    def _admit(self) -> None:
        """The exit lets the client in, if it may still join by the secret that it has used."""
        path, self.early = self.early, None
        if path is None:
            return
        if self.honest and len(self.early_bytes) > MAX_EARLY + wire.MAX_PLAINTEXT + OVERHEAD:
            raise broken("the client did not wait for the verdict")
        if path.keys.send_epoch not in self.link.exit.rotation.known._resume:
            path.lost(self.now)
            return
        verdict = []
        if self.liar is self.link.exit and not self.honest:
            verdict = self.choices.pick(
                (
                    [],
                    [],
                    [wire.encode_close(CloseReason.LIMIT)],
                    [wire.encode_bare(wire.NO_SESSION)],
                    [bytes(60)],
                )
            )
        carrier = self.link.admit(path, *verdict)
        carrier.to_right.in_flight += self.early_bytes
        self._keep(carrier)

    def _look_at_carriers(self) -> None:
        """Join again after the last carrier is lost, as both roles do."""
        for carrier in self.carriers[:]:
            if not carrier.open:
                self.carriers.remove(carrier)
                if carrier.error is not None:
                    self._failed(carrier.error, None)
        if not self.carriers and self.early is None and self._is_open():
            self._join(introduce=self.choices.once_in(3))

    def _is_open(self) -> bool:
        return self.victim.closed is None and self.liar.closed is None

    def _advance(self, seconds: float) -> None:
        self._fill_early()
        if self.carriers:
            memory.advance(self.carriers, seconds)
        self.link.now += seconds
        for carrier in self.carriers:
            carrier.now = self.link.now

    # --- the play --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        with FaultWatch() as self.watch, small_bounds(), contextlib.ExitStack() as more:
            if not self.honest:
                more.enter_context(mock.patch.object(session_module, "MAX_SMALL", SMALL))
                more.enter_context(mock.patch.object(control_rates, "LATE_BURST", LATE_BURST))
                more.enter_context(mock.patch.object(control_rates, "LATE_RATE", LATE_RATE))
                self.victim.rates._late = LATE_BURST
            self._run()

    def _run(self) -> None:
        acts: tuple[Callable[[], None], ...] = (
            self._open, self._open_many, self._say, self._say, self._finish, self._leave, self._consume,
            self._datagram, self._packet, self._announce, self._wait, self._wait, self._join_more,
            self._measure, self._answer, self._compute, self._step, self._step, self._prefer, self._lose,
            self._lose_one_end, self._stand_still, self._relieve,
        )  # fmt: skip
        untruths: tuple[Callable[[], None], ...] = (
            *[self._lie] * 5, self._garble, self._crowd, self._scatter, self._leave_out, self._switch, self._repeat,
            self._fill_windows,
        )  # fmt: skip
        self._open()
        for _ in range(MAX_STEPS):
            if not self.choices.left or not self._is_open():
                break
            all_acts = acts if self.honest else acts + untruths
            self.choices.pick(all_acts)()
            self._fill_early()
            if self.early is not None and self.choices.once_in(4):
                self._admit()
            self._look_at_carriers()
            self._remember()
            self.watch.check()
            for judge in self.judges:
                judge.check()
        if self.honest:
            self._check_honest()
        self._end()

    def _failed(self, error: PeerError, session: Session | None) -> None:
        self.errors.append(error)
        if self.honest and not (
            isinstance(error, CarrierError) and (self.deferred or self.busy or self.harmed)
        ):
            # Only keys that are used up or computed too late, and silence, may cost an honest carrier.
            raise broken(f"two honest sessions disagree: {error}") from error
        if session is not None and not isinstance(error, CarrierError | NotAdmitted):
            session.close(error.reason)

    # Honest acts

    def _app(self) -> Witness | None:
        live = [app for app in self.apps if not app.gone and not app.ended and self._may_send(app)]
        return self.choices.pick(live) if live else None

    @staticmethod
    def _may_send(app: Witness) -> bool:
        """The exit sends nothing on a stream that it has not accepted."""
        return app.stream is not None and (app.dialler or app.stream.opened)

    def _open(self) -> None:
        client = self.link.client
        if client.closed is not None:
            return
        app = self._witness(dialler=True)
        protocol = self.choices.pick((StreamProtocol.TCP, StreamProtocol.UDP, StreamProtocol.RESOLVER))
        try:
            app.stream = client.open(protocol, self.choices.pick(ADDRESSES), app)
        except StreamRefused:
            table = client.table
            if (
                len(table.live) + len(table.numbers.awaited) < self.streams
                and table.numbers.opens < table.numbers.may_open
            ):
                raise broken("a stream was refused below the limit") from None
            return
        self.apps.append(app)

    def _open_many(self) -> None:
        """More than one turn of the exit takes."""
        if self.choices.once_in(2):
            for _ in range(self.choices.pick((40, 90))):
                self._open()

    def _say(self) -> None:
        app = self._app()
        if app is not None and not app.finishing:
            size = self.choices.pick((1, 100, 5_000, 70_000))
            start = len(app.told) % 251
            app.say(PATTERN[start : start + size])

    def _finish(self) -> None:
        app = self._app()
        if app is not None and not app.finishing:
            app.say(b"", finish=True)

    def _leave(self) -> None:
        app = self._app()
        if app is not None:
            app.leave(StreamReason.CANCELLED)

    def _consume(self) -> None:
        app = self._app()
        if app is not None:
            app.consume(self.choices.pick((None, 1, 3_000)))

    def _datagram(self) -> None:
        app = self._app()
        if app is not None and app.stream is not None and app.stream.protocol is StreamProtocol.UDP:
            payload = bytes(self.choices.pick((0, 20, 1_200, wire.MAX_DATAGRAM)))
            for _ in range(self.choices.pick((1, 1, 4))):
                app.stream.send_datagram(self.choices.pick(ADDRESSES), payload)

    def _packet(self) -> None:
        if isinstance(self.victim.packet_link, OpenPacketLink):
            packet = memoryview(bytes(self.choices.pick((1, 1_300, 60_000))))
            side = self._side()
            for _ in range(self.choices.pick((1, 1, 6))):
                side.send_packet(0, 0, 0, packet)

    def _announce(self) -> None:
        if isinstance(self.victim.packet_link, OpenPacketLink):
            frame = self.choices.pick((wire.encode_lane(0, 1), wire.encode_network(1, bytes(4), bytes(16))))
            self._side().announce(frame)
        elif self.choices.once_in(2):
            self.link.exit.announce(wire.encode_bare(wire.GOAWAY))
        elif self.link.exit.current is not None:
            self.link.exit.current.announce(wire.encode_advertise(ADDRESSES[0]))

    def _side(self) -> Session:
        return self.choices.pick((self.victim, self.liar))

    def _wait(self) -> None:
        if self.honest:
            self._compute()
        # The time to a verdict is bounded by who began the handshake.
        longest = 0.3 if self.early is not None else 20.0
        self._advance(min(self.choices.pick((0.001, 0.03, 0.5, 1.0, 20.0)), longest))

    def _join_more(self) -> None:
        if self.early is None and len(self.carriers) < MAX_PATHS:
            self._join(introduce=self.choices.once_in(3))

    def _prefer(self) -> None:
        """The client chooses the path."""
        client = self.link.client
        if client.paths and client.closed is None:
            client.prefer(self.choices.pick(tuple(client.paths)))

    def _lose(self) -> None:
        """A path is lost on both sides, at once or after some bytes, perhaps before the exit lets it in."""
        if self.early is not None and self.choices.once_in(2):
            self.early.lost(self.now)
            self.early = None
        elif self.carriers:
            carrier = self.choices.pick(self.carriers)
            direction = self.choices.pick((carrier.to_left, carrier.to_right))
            after = self.choices.pick((0, 0, 20, 50, 120, 300, 5_000, 70_000, 200_000))
            if after:
                direction.cut_after = direction.arrived + after
            else:
                carrier.cut()

    def _lose_one_end(self) -> None:
        """A path is lost, and the other side hears nothing of it from the network."""
        if self.carriers:
            self.harmed = True
            self.choices.pick(self.choices.pick(self.carriers).paths).lost(self.now)

    def _stand_still(self) -> None:
        """Nothing arrives on a path any more, in one direction or in both."""
        if self.carriers:
            self.harmed = True
            carrier = self.choices.pick(self.carriers)
            both = [carrier.to_left, carrier.to_right]
            for direction in self.choices.pick((both, both[:1], both[1:])):
                direction.piece = 0

    def _relieve(self) -> None:
        """What has stood still moves again."""
        for carrier in self.carriers:
            for direction in (carrier.to_left, carrier.to_right):
                direction.piece = direction.piece or CAPACITY

    def _measure(self) -> None:
        side = self._side()
        side.measure()
        if side.current is not None:
            side.current.probe(5.0, self.now)

    def _answer(self) -> None:
        """The exit connects or refuses what it has left unanswered."""
        if self.unanswered:
            stream = self.unanswered.pop(0)
            app = stream.handler  # another one if the stream has ended meanwhile
            refuses = self.choices.once_in(2) and not self.honest
            if refuses and isinstance(app, Witness) and not app.ended and not app.gone:
                app.gone = not stream.opened
                stream.refuse(StreamReason.TIMED_OUT)
            else:
                stream.accept()

    def _compute(self) -> None:
        """What waits for the thread that computes keys is done."""
        for job, done in self.later.waiting[:]:
            self.later.waiting.remove((job, done))
            try:
                self.later.waiting, others = [(job, done)], self.later.waiting
                self.later.run()
                self.later.waiting += others
            except PeerError as error:
                self._failed(error, self.victim)

    def _step(self) -> None:
        if self.carriers:
            memory.step(self.carriers)

    # Lies

    def _liars(self) -> list[MemoryCarrier]:
        """The carriers on which the liar can write."""
        return [each for each in self.carriers if each.open and not self._end_of(each, self.liar).ended]

    def _remember(self) -> None:
        if not self.honest:
            frames = [
                bytes(unit.frame) for path in self.liar.paths.values() for unit in list(path.log.units)[-9:]
            ]
            self.history += [frame for frame in frames if len(frame) < 3_000]
            del self.history[:-HISTORY]

    def _lie(self) -> None:
        """Send frames of the liar's own making: reliable ones so that it keeps and repeats them as its own."""
        liar = self.liar
        carriers = self._liars()
        if not carriers:
            return
        frames = [lies.frame(self.choices, self.victim) for _ in range(self.choices.number(3) + 1)]
        if self.choices.once_in(3):
            frames *= self.choices.pick(REPEATS)
        carrier = self.choices.pick(carriers)
        if self.choices.once_in(4) or sum(map(len, frames)) > MAX_LIE:
            self._seal(carrier, frames)
            return
        for frame in frames:
            if frame[0] < wire.RELIABLE:
                liar.retention.append(frame)
            else:
                self._end_of(carrier, liar).announce(frame)
        liar.wake()

    def _crowd(self) -> None:
        """Request many streams, and end some or all of them at once; as an exit, end all that the client has."""
        liar, table = self.liar, self.victim.table
        if not self._liars():
            return
        keep = self.choices.once_in(2)
        if liar.dialler:
            ids = range(
                table.numbers.last + 1, table.numbers.last + 1 + self.choices.pick((90, 90, 250, 3_000))
            )
            for id in ids:
                liar.retention.append(wire.encode_open(id, StreamProtocol.TCP, ADDRESSES[0]))
        else:
            ids = range(table.numbers.last, 0, -1)
            for id in ids:
                liar.retention.append(wire.encode_opened(id))
        for id in ids:
            if not keep:
                liar.retention.append(wire.encode_reset(id, StreamReason.CANCELLED, 0))
        liar.wake()

    def _scatter(self) -> None:
        """Bytes with holes between them, on one stream or on many, from the front or from the back."""
        carriers, streams = self._liars(), list(self.victim.streams.values())
        if not carriers or not streams:
            return
        carrier = self.choices.pick(carriers)
        if self.choices.once_in(2):
            streams = [self.choices.pick(streams)]
        count = self.choices.pick((5, 20, 20, 40, 60, 1_000))
        size, step = self.choices.pick(((1, 2), (1, 1), (3, 2), (700, 1_000), (9_000, 9_001)))
        numbers = range(count)[:: self.choices.pick((1, -1))]
        first = self.choices.number(3)
        carrier.to_left.piece = carrier.to_right.piece = CAPACITY
        for stream in streams[: 1 if size * count > MAX_LIE else 8]:
            for number in numbers:
                offset = stream.delivered + first + number * step
                header = wire.encode_data_header(wire.DATA, stream.id, offset)
                self._seal(carrier, [header + bytes((number & 255,)) * size])

    def _fill_windows(self) -> None:
        """Send on many streams as much as their windows allow."""
        carriers = self._liars()
        if carriers:
            carrier = self.choices.pick(carriers)
            for stream in list(self.victim.streams.values())[: self.choices.pick((1, 3, 8))]:
                size = min(stream.announced - stream.received, wire.MAX_DATA)
                if size:
                    header = wire.encode_data_header(wire.DATA, stream.id, stream.received)
                    self._seal(carrier, [header + bytes(size)])

    def _leave_out(self) -> None:
        """Leave out numbers of streams."""
        if self.liar.dialler and self._liars():
            first = self.victim.table.numbers.last + 1
            for number in range(self.choices.pick((4, 12, 40, 200))):
                id = first + number * self.choices.pick((1, 2, 3))
                self.liar.retention.append(wire.encode_open(id, StreamProtocol.TCP, ADDRESSES[0]))
            self.liar.wake()

    def _switch(self) -> None:
        """Change the keys, perhaps to those of an epoch that is not in use, and go on under them or not."""
        carriers = self._liars()
        if not carriers:
            return
        carrier = self.choices.pick(carriers)
        epoch = lies.epoch(self.choices, self.victim)
        self._seal(carrier, [wire.encode_epoch(wire.SWITCH, epoch)])
        secret = self.victim.rotation.known.secret(epoch)
        if secret is not None and not self.choices.once_in(4):
            self._end_of(carrier, self.liar).keys.switch_sending(epoch, secret, self.now)

    def _repeat(self) -> None:
        """Send copies of frames that went long ago, on any path."""
        carriers = self._liars()
        if carriers and self.history:
            carrier = self.choices.pick(carriers)
            for _ in range(self.choices.pick((1, 5, 30))):
                self._seal(carrier, [self.choices.pick(self.history)])

    def _garble(self) -> None:
        carriers = self._liars()
        if carriers:
            self._seal(self.choices.pick(carriers), [lies.garbled(self.choices, self.victim)])

    def _seal(self, carrier: MemoryCarrier, frames: list[bytes]) -> None:
        """Put records of these frames, each as full as it may be, between those that the liar's session writes."""
        path = self._end_of(carrier, self.liar)
        direction = carrier.to_right if carrier.to_right.source is path else carrier.to_left
        record = b""
        for frame in [*frames, b""]:
            if record and (
                not frame or len(record) + len(frame) > wire.MAX_PLAINTEXT or record[0] == wire.DATA
            ):
                direction.in_flight += path.keys.sealer.seal(record)
                record = b""
            record += frame[: wire.MAX_PLAINTEXT]

    # The end

    def _check_honest(self) -> None:
        """Without a liar everything arrives, in order and once, and nothing is left."""
        link = self.link
        self.unanswered, waiting = [], self.unanswered
        for stream in waiting:
            stream.accept()
        for _ in range(8):
            self._go_on()
            for app in self.apps:
                app.eager = True
                if not app.gone and not app.ended:
                    app.consume()
            self._advance(1.0)
        self._look_at_carriers()
        self._check_bytes()
        for app in self.apps:
            app.leave(StreamReason.CANCELLED)
        for _ in range(100):
            self._go_on()
            self._advance(0.05)
            if link.client.idle and link.exit.idle:
                break
        link.assert_clean()

    def _go_on(self) -> None:
        """Let nothing stand in the path of anything."""
        self._compute()
        for carrier in self.carriers:
            if any(path.ended for path in carrier.paths):
                carrier.cut()
        if self.early is not None:
            self._fill_early()
            self._admit()
        self._look_at_carriers()
        for carrier in self.carriers:
            for direction in (carrier.to_left, carrier.to_right):
                direction.piece, direction.budget = CAPACITY, BUDGET

    def _check_bytes(self) -> None:
        link = self.link
        for app in self.apps:
            if app.dialler and app.stream is not None and app.stream.id in link.served:
                other = link.served[app.stream.id]
                assert isinstance(other, Witness)
                for sender, receiver in ((app, other), (other, app)):
                    whole = not any(one.gone or one.ended for one in (app, other))
                    if not sender.told.startswith(receiver.received):
                        raise broken("other bytes arrived than were sent")
                    if whole and sender.told != receiver.received:
                        raise broken(
                            f"{len(sender.told) - len(receiver.received)} bytes of a stream did not arrive"
                        )

    def _end(self) -> None:
        """Close the victim, if nothing else has, and look for what is left."""
        self.victim.close(CloseReason.NORMAL)
        self.liar.close(CloseReason.NORMAL)
        for judge in self.judges:
            for _ in range(100):
                judge.session.turn.renew()
            judge.check_closed(self.now)
        for app in self.apps:
            of_victim = app.dialler == self.victim.dialler
            if of_victim and not app.gone and not app.ended and not self._is_finished(app):
                raise broken(f"a handler was not told of the end: {app.events}")

    @staticmethod
    def _is_finished(app: Witness) -> bool:
        return app.stream is not None and app.finishing and ("eof",) in app.events


def _mute(path: SessionPath) -> None:
    """Let it acknowledge nothing."""
    write_own = path._write_own

    def write(writer: RecordWriter, now: float) -> None:
        path._ack_due = False
        write_own(writer, now)

    path._write_own = write  # type: ignore[method-assign]
