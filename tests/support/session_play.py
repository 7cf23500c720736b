"""A play of two sessions on the virtual clock, one of which may lie: a generator that a fuzzer and unit tests drive.

Both are real sessions with real applications. Most of the play is honest: streams, data, datagrams, rotations, lost
carriers, time. The liar's session adds frames of its own making to what it sends, in records of their own: known and
unknown streams, numbers just inside and outside of what is allowed, too much data, floods, frames cut short and
changed. What its victim answers it reads, forgives what it cannot understand, and goes on. So a lie meets a victim in
any state, also in the middle of a rotation or of a turn whose budget is used up.

`Play.run` raises whatever is no PeerError, also what a session has contained (`FaultWatch`), and RuntimeError for a
broken promise: a bound (`Judge`), a call of a handler after its end (`Witness`), something that is kept after the end,
and in a play without a liar any error and any byte that is lost or out of order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from unittest import mock

from cryprq_proxy.crypto.primitives import Cipher
from cryprq_proxy.errors import CarrierError, CloseReason, PeerError, StreamReason, StreamRefused
from cryprq_proxy.session import control_rates, wire
from cryprq_proxy.session import session as session_module
from cryprq_proxy.session.records import OVERHEAD
from cryprq_proxy.session.session import MAX_EARLY, Session
from cryprq_proxy.session.streams import Stream
from cryprq_proxy.session.wire import StreamProtocol
from tests.support import session_lies as lies
from tests.support.choices import Choices
from tests.support.fault_watch import FaultWatch
from tests.support.frame_count import LATE_BURST, LATE_RATE, broken
from tests.support.links import App, LaterOffload, Link, ToyProvider
from tests.support.memory import CAPACITY, Direction
from tests.support.session_judge import AWAITED, POOL, RETAINED, Judge, OpenPacketLink, Witness
from tests.support.session_lies import ADDRESSES, ForgivingDirection
from tests.support.settings import rotation_limits, session_limits

MAX_STEPS: Final = 60
STREAMS: Final = (6, 200)
MAX_LIE: Final = 60_000
"""Bytes of frames that the liar's session writes at a time; more are sealed apart."""
REPEATS: Final = (1, 1, 1, 2, 40, control_rates.CONTROL_BURST + 50)
PATTERN: Final = bytes(range(251)) * 300


class Play:
    """One play. `victim` keeps the promises; without a liar both sides do, and `victim` is the exit."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        setting = choices.number(256)
        rotation = rotation_limits(
            interval=(600.0, 3.0)[setting & 1], records=(1 << 24, 40)[setting >> 1 & 1]
        )
        self.streams = choices.pick(STREAMS)
        limits = session_limits(retained=RETAINED, window_pool=POOL, streams=self.streams, rotation=rotation)
        self.honest = choices.once_in(4)
        self.later = LaterOffload()
        self.apps: list[Witness] = []
        self.unanswered: list[Stream] = []
        self.deferred = bool(setting >> 2 & 1)
        offload = {"offload": self.later, "exit_offload": self.later} if self.deferred else {}
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
        self.verdict_due = bool(setting >> 5 & 1)
        """Whether the client has sent its third flight, and the exit has not answered yet."""
        self.errors: list[PeerError] = []
        budgets = dict(zip(pair, self.link.budgets, strict=True))
        judged = (self.victim, self.liar) if self.honest else (self.victim,)
        self.judges = [Judge(session, budgets[session], self.streams) for session in judged]
        self._connect()

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

    def _connect(self) -> None:
        client, exit = self.link.client, self.link.exit
        if self.link.carriers:
            self.link.now = self.link.carrier.now
            self.link.carrier.cut()
        try:
            if self.verdict_due:
                self.link.introduce()
            else:
                self.link.connect(client.received, exit.received)
        except PeerError as error:
            # Only for counts that a lie has made impossible.
            self._failed(error, self.victim)
            return
        carrier = self.link.carrier
        if not self.honest:
            name = "to_right" if self.liar is exit else "to_left"
            setattr(carrier, name, ForgivingDirection(self.victim, self.liar))
        self.link.carrier.to_right.piece = self.link.carrier.to_left.piece = self.choices.pick(
            (CAPACITY, CAPACITY, CAPACITY, 9_000, 9_000, 700, 61)
        )

    # --- the play --------------------------------------------------------------------------------------------------

    def run(self) -> None:
        with (
            FaultWatch() as self.watch,
            mock.patch.object(session_module, "MAX_AWAITED", AWAITED),
            mock.patch.object(control_rates, "LATE_BURST", LATE_BURST),
            mock.patch.object(control_rates, "LATE_RATE", LATE_RATE),
        ):
            self._run()

    def _run(self) -> None:
        acts: tuple[Callable[[], None], ...] = (
            self._open, self._open_many, self._say, self._say, self._finish, self._leave, self._consume,
            self._datagram, self._packet, self._announce, self._wait, self._wait, self._resume,
            self._measure, self._answer, self._compute, self._step, self._step,
        )  # fmt: skip
        untruths: tuple[Callable[[], None], ...] = (*[self._lie] * 4, self._garble, self._crowd)
        self._open()
        for _ in range(MAX_STEPS):
            if not self.choices.left or self.victim.closed is not None or self.liar.closed is not None:
                break
            all_acts = acts if self.honest else acts + untruths
            self.choices.pick(all_acts)()
            if self.verdict_due and self.choices.once_in(4):
                self._admit()
            self._look_at_carrier()
            self.watch.check()
            for judge in self.judges:
                judge.check()
        if self.verdict_due:
            self._admit()
        if self.honest:
            self._check_honest()
        self._end()

    def _admit(self) -> None:
        """The exit lets the client in."""
        if self.honest and self.link.carrier.to_right.sent > MAX_EARLY + wire.MAX_PLAINTEXT + OVERHEAD:
            raise broken("the client did not wait for the verdict")
        self.verdict_due = False
        self.link.admit()

    def _look_at_carrier(self) -> None:
        """Resume after a lost carrier, as both roles do."""
        carrier = self.link.carrier
        if carrier.open:
            return
        if carrier.error is not None:
            self._failed(carrier.error, None)
        if self.victim.closed is None and self.liar.closed is None:
            self._connect()

    def _failed(self, error: PeerError, session: Session | None) -> None:
        self.errors.append(error)
        if self.honest and not (self.deferred and isinstance(error, CarrierError)):
            # Only keys that are computed too late may cost an honest carrier.
            raise broken(f"two honest sessions disagree: {error}") from error
        if session is not None and not isinstance(error, CarrierError):
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
            if len(client.streams) + len(client._awaited) < self.streams:
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
            frame = self.choices.pick((wire.encode_lane(0, 1), wire.encode_network(bytes(4), bytes(16))))
            self._side().announce(frame)
        else:
            here = wire.encode_advertise(ADDRESSES[0])
            self.link.exit.announce(self.choices.pick((wire.encode_bare(wire.GOAWAY), here)))

    def _side(self) -> Session:
        return self.choices.pick((self.victim, self.liar))

    def _wait(self) -> None:
        if self.honest:
            self._compute()
        # The time to a verdict is bounded by who began the handshake.
        longest = 0.3 if self.verdict_due else 20.0
        self.link.carrier.advance(min(self.choices.pick((0.001, 0.03, 1.0, 20.0)), longest))

    def _resume(self) -> None:
        if not self.verdict_due:
            self._connect()

    def _measure(self) -> None:
        side = self._side()
        side.measure()
        side.probe(5.0, self.link.carrier.now)

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
        self.link.carrier.step()

    def _lie(self) -> None:
        """Send frames of the liar's own making: numbered ones so that it keeps and repeats them as its own."""
        liar = self.liar
        if not liar.attached:
            return
        frames = [lies.frame(self.choices, self.victim) for _ in range(self.choices.number(3) + 1)]
        if self.choices.once_in(3):
            frames *= self.choices.pick(REPEATS)
        if self.choices.once_in(4) or sum(map(len, frames)) > MAX_LIE:
            self._seal(frames)
            return
        for frame in frames:
            if frame[0] <= wire.RESET:
                liar._append(frame)
            else:
                liar._announcements.append(frame)
        liar.wake()

    def _crowd(self) -> None:
        """Request many streams, and end some or all of them at once; as an exit, end all that the client has."""
        liar = self.liar
        if not liar.attached:
            return
        keep = self.choices.once_in(2)
        if liar.dialler:
            first = self.victim._last_id + 1
            ids = range(first, first + self.choices.pick((90, 90, 250, 3_000)))
            for id in ids:
                liar._append(wire.encode_open(id, StreamProtocol.TCP, ADDRESSES[0]))
        else:
            ids = range(self.victim._last_id, 0, -1)
            for id in ids:
                liar._append(wire.encode_opened(id))
        for id in ids:
            if not keep:
                liar._append(wire.encode_reset(id, StreamReason.CANCELLED))
        liar.wake()

    def _garble(self) -> None:
        if self.liar.attached:
            self._seal([lies.garbled(self.choices, self.victim)])

    def _seal(self, frames: list[bytes]) -> None:
        """Put records of these frames, each as full as it may be, between those that the liar's session writes."""
        record = b""
        for frame in [*frames, b""]:
            if record and (not frame or len(record) + len(frame) > wire.MAX_PLAINTEXT):
                self._from_liar().in_flight += self.liar.rotation.sealer.seal(record)
                record = b""
            record += frame[: wire.MAX_PLAINTEXT]

    def _from_liar(self) -> Direction:
        carrier = self.link.carrier
        return carrier.to_right if carrier.to_right.source is self.liar else carrier.to_left

    # The end

    def _check_honest(self) -> None:
        """Without a liar everything arrives, in order and once, and nothing is left."""
        link = self.link
        self.unanswered, waiting = [], self.unanswered
        for stream in waiting:
            stream.accept()
        for _ in range(8):
            self._compute()
            self._look_at_carrier()
            link.carrier.to_left.piece = link.carrier.to_right.piece = CAPACITY
            for app in self.apps:
                app.eager = True
                if not app.gone and not app.ended:
                    app.consume()
            link.carrier.advance(1.0)
        self._look_at_carrier()
        self._check_bytes()
        for app in self.apps:
            app.leave(StreamReason.CANCELLED)
        for _ in range(4):
            self._compute()
            link.carrier.advance(1.0)
        link.assert_clean()

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
        now = self.link.carrier.now if self.link.carriers else self.link.now
        for judge in self.judges:
            for _ in range(100):
                judge.session.turn.renew()
            judge.check_closed(now)
        for app in self.apps:
            of_victim = app.dialler == self.victim.dialler
            if of_victim and not app.gone and not app.ended and not self._is_finished(app):
                raise broken(f"a handler was not told of the end: {app.events}")

    @staticmethod
    def _is_finished(app: Witness) -> bool:
        return app.stream is not None and app.finishing and ("eof",) in app.events
