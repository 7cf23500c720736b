"""Two sessions joined in memory, and applications that talk through them.

`Link` is the pair: `connect` gives it a path with keys of its own (made from a counter, as if a handshake had agreed on
them), `resume` does what the two roles do after a loss, `join` adds a path beside the others. `App` plays the
application on one end of a stream: it sends what it is told to, keeps what arrives, and writes down every call.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from cryprq_proxy.address import Destination
from cryprq_proxy.crypto.handshake import EpochSecrets, record_keys
from cryprq_proxy.crypto.primitives import Cipher, Entropy, KemKey, Provider, select_provider, sha256
from cryprq_proxy.errors import StreamReason
from cryprq_proxy.session.path import MAX_EARLY, SessionPath
from cryprq_proxy.session.path_keys import CarrierKeys
from cryprq_proxy.session.records import RecordOpener, RecordSealer
from cryprq_proxy.session.retention import SLOT_HEADROOM, MemoryBudget, SlotPool
from cryprq_proxy.session.rotation import Offload, inline
from cryprq_proxy.session.session import Session, SessionLimits
from cryprq_proxy.session.streams import Half, Stream, StreamHandler
from cryprq_proxy.session.turns import TurnBudget
from cryprq_proxy.session.windows import WindowBudget
from cryprq_proxy.session.wire import ACCEPT, StreamProtocol, encode_bare
from tests.support.memory import MemoryCarrier
from tests.support.settings import session_limits

FAST = select_provider()
TARGET = Destination("192.0.2.1", 443)
SESSION_ID = bytes(range(16))


def epoch(number: int) -> EpochSecrets:
    """The secrets of an epoch, or of a path's handshake."""
    labels = (b"records", b"client lane", b"exit lane", b"chain", b"resume", b"hash")
    return EpochSecrets(*(sha256(number.to_bytes(4) + label) for label in labels))


def seeded(seed: int) -> Entropy:
    source = random.Random(seed)
    return lambda size: source.randbytes(size)


class ToyProvider:
    """Sizes of ML-KEM-768 and nothing of its strength: for runs that rotate many thousand times."""

    name = "toy"
    fast = True

    class Key:
        public = bytes(1184)

        def decapsulate(self, ciphertext: bytes) -> bytes:
            return hashlib.sha256(ciphertext).digest()

    def generate_kem(self, entropy: Entropy = random.randbytes) -> KemKey:
        return self.Key()

    def encapsulate(self, public: bytes, entropy: Entropy = random.randbytes) -> tuple[bytes, bytes]:
        ciphertext = entropy(32) * 34
        return hashlib.sha256(ciphertext).digest(), ciphertext


def _nothing(callback: Callable[[], None]) -> None:
    """The carrier in memory renews the budgets itself."""


def _same(value: Any) -> Any:
    return value


class LaterOffload:
    """An Offload that runs nothing until it is told to."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], Any], Callable[[Callable[[], Any]], None]]] = []

    def __call__(self, job: Callable[[], Any], done: Callable[[Callable[[], Any]], None]) -> None:
        self.waiting.append((job, done))

    def run(self) -> None:
        """Everything that waits now; what a job raises comes out of its result, as from a future."""
        waiting, self.waiting = self.waiting, []
        for job, done in waiting:
            try:
                value = job()
            except Exception as error:
                failure = error

                def failed(failure: Exception = failure) -> Any:
                    raise failure

                done(failed)
            else:
                done(partial(_same, value))


class App(StreamHandler):
    """One end of a stream. `eager` consumes what arrives at once; `slots` sends from slots, as a relay does, one in
    each turn, and without them a turn sends all that there is room for.

    `events` holds every call in order, "data" once for a run of them; `received` the bytes.
    """

    def __init__(self, *, eager: bool = True, slots: SlotPool | None = None) -> None:
        self.stream: Stream | None = None
        self.eager = eager
        self.slots = slots
        self.events: list[Any] = []
        self.received = bytearray()
        self.unconsumed = 0
        self.datagrams: list[tuple[Destination, bytes]] = []
        self.outgoing = bytearray()
        self.finishing = False
        self.on_data: Callable[[], None] | None = None
        self.on_eof: Callable[[], None] | None = None

    def say(self, data: bytes, *, finish: bool = False) -> None:
        """Send `data` as soon as the stream takes it, and then end this direction if told to."""
        self.outgoing += data
        self.finishing |= finish
        self.pump()

    def pump(self) -> None:
        while self._pump():
            pass

    def _pump(self) -> bool:
        """Send one piece, or the end; True if there may be more to send."""
        stream = self.stream
        assert stream is not None
        if self.outgoing and (room := stream.request_room()):
            size = room if self.slots is None else min(room, stream.frame_limit)
            piece = bytes(self.outgoing[:size])
            del self.outgoing[:size]
            if self.slots is None:
                stream.send(piece)
            else:
                slot = self.slots.take()
                slot[SLOT_HEADROOM : SLOT_HEADROOM + len(piece)] = piece
                stream.send_slot(slot, len(piece))
            if self.outgoing or self.finishing:
                return True
        if self.finishing and not self.outgoing and stream.send_half is Half.OPEN:
            stream.finish()
        return False

    def consume(self, size: int | None = None) -> None:
        size = self.unconsumed if size is None else min(size, self.unconsumed)
        self.unconsumed -= size
        if size and self.stream is not None:
            self.stream.consumed(size)

    @property
    def ended(self) -> bool:
        """Whether nothing more may be called."""
        return bool(self.events) and self.events[-1][0] in ("refused", "reset")

    def _note(self, *event: Any) -> None:
        assert not self.ended, f"{event} after {self.events[-1]}"
        self.events.append(event)

    # --- handler ---

    def opened(self) -> None:
        self._note("opened")

    def refused(self, reason: StreamReason) -> None:
        self._note("refused", reason)

    def data_received(self, data: memoryview) -> None:
        assert data
        if not self.events or self.events[-1] != ("data",):
            self._note("data")
        self.received += data
        self.unconsumed += len(data)
        if self.eager:
            self.consume()
        if self.on_data is not None:
            self.on_data()

    def eof_received(self) -> None:
        self._note("eof")
        if self.on_eof is not None:
            self.on_eof()

    def reset(self, reason: StreamReason) -> None:
        self._note("reset", reason)

    def writable(self) -> None:
        assert not self.ended
        if self._pump() and self.stream is not None:
            self.stream.wait_for_turn()  # as a relay does: not more than one turn

    def datagram_received(self, destination: Destination, payload: memoryview) -> None:
        self.datagrams.append((destination, bytes(payload)))


class Link:
    """A client's and an exit's session. `serve` makes the App of each stream that arrives at the exit; without it
    they are accepted at once. `served` has them by stream id."""

    def __init__(
        self,
        limits: SessionLimits | None = None,
        *,
        exit_limits: SessionLimits | None = None,
        serve: Callable[[Stream], App] | None = None,
        provider: Provider | ToyProvider = FAST,
        cipher: Cipher = Cipher.CHACHA20_POLY1305,
        offload: Offload = inline,
        exit_offload: Offload = inline,
        soon: Callable[[Callable[[], None]], object] = _nothing,
        connected: bool = True,
        last_stream: int = 0,
    ) -> None:
        limits = limits or session_limits()
        self.budgets = (MemoryBudget(256 << 20), MemoryBudget(256 << 20))
        self.window_budgets = (WindowBudget(256 << 20), WindowBudget(256 << 20))
        self.slots = SlotPool()
        self.cipher = cipher
        self.served: dict[int, App] = {}
        self.serve = serve or self.accept
        self.carriers = 0
        """How many paths there have been."""
        self.now = 1000.0

        def session(dialler: bool, limits: SessionLimits, offload: Offload, **more: Any) -> Session:
            return Session(
                dialler=dialler,
                session_id=SESSION_ID,
                epoch=epoch(0),
                cipher=cipher,
                provider=cast("Provider", provider),
                entropy=seeded(int(dialler)),
                limits=limits,
                budget=self.budgets[not dialler],
                window_budget=self.window_budgets[not dialler],
                slots=self.slots,
                turn=TurnBudget(soon),
                now=self.now,
                offload=offload,
                **more,
            )

        self.client = session(True, limits, offload, last_stream=last_stream)
        self.exit = session(False, exit_limits or limits, exit_offload, accept_stream=self._accept)
        self.carrier: MemoryCarrier
        if connected:
            self.connect()

    def _accept(self, stream: Stream) -> None:
        app = self.serve(stream)
        app.stream = stream
        stream.handler = app
        self.served[stream.id] = app

    @staticmethod
    def accept(stream: Stream) -> App:
        stream.accept()
        return App()

    def open(
        self,
        app: App | None = None,
        protocol: StreamProtocol = StreamProtocol.TCP,
        destination: Destination = TARGET,
    ) -> App:
        app = app or App()
        app.stream = self.client.open(protocol, destination, app)
        return app

    def pair(self, **options: Any) -> tuple[App, App]:
        """Both ends of a new stream, open."""
        app = self.open(App(**options))
        self.carrier.settle()
        assert app.stream is not None
        return app, self.served[app.stream.id]

    def connect(self) -> MemoryCarrier:
        """A new path with new keys, the one that `carrier` is from now on."""
        self.carrier = self.join()
        return self.carrier

    def join(self) -> MemoryCarrier:
        """A new path beside those that are there; the caller moves its bytes."""
        return MemoryCarrier(*self.paths(), self.now)

    def paths(self) -> tuple[SessionPath, SessionPath]:
        """Both ends of a new path, the client's first, for a carrier of the test's own."""
        self.carriers += 1
        return self._attach(self.client), self._attach(self.exit)

    def _attach(self, session: Session, admitted: Callable[[], None] | None = None) -> SessionPath:
        return session.attach(
            self.carriers - 1, self._keys(session), self.now, admitted, epoch=self.client.rotation.current
        )

    def _keys(self, session: Session) -> CarrierKeys:
        number, cipher = self.carriers - 1, self.cipher
        out, into = record_keys(epoch(number).records, number)[:: 1 if session.dialler else -1]
        return CarrierKeys(cipher, RecordSealer(cipher, out), RecordOpener(cipher, into))

    def introduce(self, admitted: Callable[[], None] = lambda: None) -> SessionPath:
        """The next path: the client has sent its third flight, and the exit has not read it yet."""
        self.carriers += 1
        return self._attach(self.client, admitted)

    def admit(self, path: SessionPath, *verdict: bytes) -> MemoryCarrier:
        """The exit says ACCEPT, or something else, on the path that `introduce` has made, and begins."""
        keys = self._keys(self.exit)
        record = keys.sealer.seal(b"".join(verdict) or encode_bare(ACCEPT))
        exit_path = self.exit.attach(
            self.carriers - 1, keys, self.now, epoch=path.keys.send_epoch, early=MAX_EARLY
        )
        self.carrier = MemoryCarrier(path, exit_path, self.now)
        self.carrier.to_left.in_flight += record
        return self.carrier

    def resume(self) -> MemoryCarrier:
        """After a loss: another path."""
        self.now = self.carrier.now
        self.carrier.cut()
        return self.connect()

    def forge(self, victim: Session, *frames: bytes) -> None:
        """Let `victim` receive one record with these frames, as from a peer that breaks the rules."""
        client, exit = self.carrier.paths
        path, peer = (client, exit) if victim is self.client else (exit, client)
        record = peer.keys.sealer.seal(b"".join(frames))
        victim.turn.renew()
        assert path.receive(memoryview(record), self.carrier.now) == len(record)
        while victim.turn.left <= 0:
            victim.turn.renew()
            path.receive(memoryview(b""), self.carrier.now)

    def quiesce(self) -> None:
        """Let everything be sent and acknowledged."""
        self.carrier.advance(0.1)

    def assert_clean(self) -> None:
        """No trace of any stream is left on either side."""
        for session, budget in zip((self.client, self.exit), self.budgets, strict=True):
            assert not session.streams
            assert not session.table.numbers.awaited
            assert session.retention.kept == 0 and not session.retention.waits
            assert budget.used == 0
            assert session.windows.free == session.limits.window_pool
            assert self.window_budgets[not session.dialler].used == 0
            assert session.scheduler.queued == 0
            assert session.scheduler.next() is None
            assert not session.table.windows_due
            assert not session.receiver.pieces.used
        for one, other in ((self.client, self.exit), (self.exit, self.client)):
            credit = other.table.received_credit
            assert credit.received == one.table.sent_bytes
