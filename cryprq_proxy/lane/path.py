"""The path of the datagram lane: whether datagrams arrive, how large they may be, and the client's address.

    CONFIRM --- a probe is answered ---> SEARCH --- nothing larger passes ---> STEADY
       ^                                                                          |
       +------------ a full-size probe fails three times, the peer moved ---------+

Each side probes its own direction. CONFIRM sends two small probes together, of BASE and of LEAST bytes. SEARCH tries
the largest size that the interface allows, then halves the distance to the largest size that passed (as RFC 8899
does). STEADY repeats a probe of the full size. `up` says whether packets may take the lane. It becomes False when
small probes fail too, or when nothing came back in SILENCE seconds of sending; CONFIRM then repeats its probes, slowly
after a while, until one is answered. A side that only receives sends KEEPALIVE, so that silence is a sign of a broken
path.

The client's address may change. A new address must come with the highest counter so far, and then answer a CHALLENGE
(as in RFC 9000 section 9.3); until then the exit sends everything to the old address.

No I/O, no clock. `outgoing` collects the messages to seal and send. All sizes are UDP payloads in bytes and include
the lane's own 29.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Any, Final

from ..crypto.primitives import Entropy
from ..status import PathCounters
from .layout import CHALLENGE, KEEPALIVE, OVERHEAD, PROBE, PROBE_ACK, RESPONSE

BASE: Final = 1200
"""Bytes of a datagram that nearly every path carries."""
LEAST: Final = 600
"""Bytes of the smaller probe; a path that does not carry it is not used."""
STEP: Final = 16
"""The search ends when the sizes that pass and fail are this close, in bytes."""
TRIES: Final = 3
PATIENCE: Final = 1.0
"""Longest time in seconds between two tries; shorter once the round trip is known."""
HASTE: Final = 0.25
"""Shortest time in seconds between two tries."""
RETRY: Final = 5.0
"""Seconds between probes while the path is down."""
RETRY_SOON: Final = 0.3
"""The same in the first SOON seconds after it went down: streams may wait for the end of a black-out."""
SOON: Final = 10.0
IDLE: Final = 10.0
"""Seconds between full-size probes."""
BUSY: Final = 2.0
"""The same while this side sends: if only the outgoing direction fails, incoming datagrams hide that from SILENCE."""
RAISE: Final = 600.0
"""Seconds until a larger size is tried again (RFC 8899 section 5.1.1)."""
KEEPALIVE_AFTER: Final = 1.0
SILENCE: Final = 3.0
AMPLIFICATION: Final = 3
"""Bytes sent to an unproven address per byte that came from it."""
CHALLENGE_INTERVAL: Final = 0.5

_TOKEN: Final = struct.Struct("!Q")
_PROBE: Final = struct.Struct("!BQ")
_ACK: Final = struct.Struct("!BQH")
_ACK_BODY: Final = struct.Struct("!QH")
_CHALLENGE_SIZE: Final = OVERHEAD + _PROBE.size
_CONTROL: Final = OVERHEAD + _ACK.size
"""A datagram up to this size is KEEPALIVE, CHALLENGE, RESPONSE or PROBE_ACK (DATAGRAM and SLICE are larger). No
KEEPALIVE answers it, else two idle sides would answer each other for ever."""
_OUTSTANDING: Final = 16

type Address = tuple[Any, ...]
"""A socket address, as the socket gives it."""


class _Phase(Enum):
    WAITING = 1
    """At the exit, before the client's first datagram."""
    CONFIRM = 2
    SEARCH = 3
    STEADY = 4


@dataclass(slots=True)
class _Candidate:
    """An address from which the client may send now."""

    address: Address
    token: int
    received: int = 0
    sent: int = 0
    challenged: float = -inf


class Path:
    """One side's path.

    The owner calls `tick` at `deadline`. After every call but `sent` it sends what is in `outgoing`: (message,
    address); None stands for the current address (`address`; at the client, the exit's), if it `affords` that. While
    the path is `steady` the owner needs to read `deadline` after each `tick` and `too_big` only; while it `dozes` too,
    or does so no longer, after each call.
    """

    def __init__(self, dialler: bool, ceiling: int, entropy: Entropy, now: float) -> None:
        """`ceiling`: the largest UDP payload that the interface allows (1472 and 1452 at an MTU of 1500)."""
        self._dialler = dialler
        self._entropy = entropy
        self.address: Address | None = None
        """The client's address; known at the exit after its first datagram."""
        self.outgoing: list[tuple[bytes, Address | None]] = []
        self.counters = PathCounters()
        self.up = False
        self.reason = "no datagram of the client has come yet"
        self.proved = dialler
        """Whether the peer has answered at `address`, or the client has chosen it: anybody can be named as a source."""
        # Bytes that came from an address that is not proved, and that were sent to it.
        self._came = self._gone = 0
        self.round_trip: float | None = None
        """Seconds; smoothed. Of the probes, and of the streams while they move: their owner sets it then."""
        self.least_round_trip = inf
        """The shortest one: without queues, and without what a busy host takes."""
        self._candidate: _Candidate | None = None
        self._fell_at = -inf
        self._probes: dict[int, tuple[int, float]] = {}
        """Token -> size, when sent."""
        self._phase = _Phase.WAITING
        self._reset(ceiling, now)
        if dialler:
            self.restart(ceiling, now)

    def restart(self, ceiling: int, now: float) -> None:
        """At the client: the network changed. Forget what was known about the path."""
        self.up = False
        self.reason = "the first probes are not answered yet"
        self._reset(ceiling, now)
        self._confirm(now)

    def _reset(self, ceiling: int, now: float) -> None:
        self._ceiling = max(ceiling, LEAST)
        self.size = min(BASE, self._ceiling)
        """The largest UDP payload that may be sent now."""
        self.round_trip = None
        self.least_round_trip = inf
        self._probes.clear()
        # The smallest size that is believed not to pass, and the size that is probed now.
        self._high = self._ceiling + 1
        self._test = self.size
        self._tries = 0
        self._doubted = False
        """Whether the tries are those of `doubt`."""
        # When: the next probe is due (_next), a probe of any size was last acknowledged (_answered_at), the last probe
        # was sent (_probed), a datagram came (_owed) or was sent (_silent_since) that is not answered yet.
        self._next = inf
        self._verified = now
        self._sent_at = -inf
        self._answered_at = -inf
        self._raise_at = inf
        self._owed = inf
        self._silent_since = inf
        # Bytes of probes in the present receive; PROBE_ACK answers them.
        self._probed_by = 0
        self._probed = -inf
        self._ticked = now
        self.dozes = False
        """Whether only probes are due: no side waits for the other. A steady path that does not doze looks for silence
        each second, so that nobody needs to read `deadline` for each datagram."""

    @property
    def steady(self) -> bool:
        """Whether it is up, and `size` is known to pass."""
        return self.up and self._phase is _Phase.STEADY

    @property
    def searching(self) -> bool:
        """Whether `size` is only the largest so far."""
        return self._phase in (_Phase.CONFIRM, _Phase.SEARCH)

    # --- what the owner reports ------------------------------------------------------------------------------------

    def sent(self, now: float) -> bool:
        """Packets or datagrams were sent to the peer. Called for every send. Returns whether it has dozed so far."""
        self._owed = inf
        self._sent_at = now
        if self._silent_since == inf:
            self._silent_since = now
            if self.dozes:
                self._rouse(now)
                return True
        return False

    def too_big(self, size: int, now: float) -> None:
        """The kernel refused a datagram of `size` bytes (EMSGSIZE)."""
        if size >= self._high:
            return
        self._high = size
        if size <= LEAST:
            self._fall("the local network takes no datagrams of a useful size", now)
            return
        if self.size >= size:
            self.counters.shrinks += 1
            self.size = BASE if size > BASE else LEAST
        if self._phase in (_Phase.SEARCH, _Phase.STEADY):
            self._search(now)

    def received_from(self, address: Address, size: int, highest: bool, now: float) -> None:
        """`size` authentic bytes came from `address`; `highest`: one of them had the highest counter so far.

        Call it after `message` has had all messages of the same receive.
        """
        self._silent_since = inf
        if size - self._probed_by > _CONTROL and self._owed == inf:
            self._owed = now
            if self.dozes:
                self._rouse(now)
        self._probed_by = 0
        if not self._dialler:
            if self.address is None:
                self.address = address
                self.reason = "the client's datagrams come in, and probes are not answered yet"
                self._confirm(now)
            if address == self.address:
                self._came += size
            elif highest:
                self._challenge(address, size, now)
        if not self.up and self._phase is _Phase.CONFIRM:
            # One direction works again; do not wait long to try the other.
            self._next = min(self._next, max(now, self._probed + PATIENCE))

    def doubt(self, now: float) -> None:
        """What was sent last is not acknowledged in time. Perhaps only its size fails, and what asks about that, being
        small, is answered: try the full size now."""
        if self.steady and not self._tries and self.size > LEAST:
            self._doubted = True
            self._rouse(now)
            self._probe(now)

    def affords(self, size: int) -> bool:
        """Whether `size` bytes may go to `address` now, which count as sent then: to one that is not proved, no more
        than three times what came from it (RFC 9000 section 8.1)."""
        if not self.proved:
            if self._gone + size > AMPLIFICATION * self._came:
                return False
            self._gone += size
        return True

    def message(self, kind: int, body: memoryview, size: int, address: Address, now: float) -> None:
        """A message of the lane came in a datagram of `size` bytes from `address`. Ignores malformed messages and
        kinds that do not concern the path."""
        if kind == PROBE and len(body) >= _TOKEN.size:
            self._probed_by += size
            self._emit(_ACK.pack(PROBE_ACK, _TOKEN.unpack_from(body)[0], min(size, 0xFFFF)))
        elif kind == PROBE_ACK and len(body) == _ACK_BODY.size:
            token, arrived = _ACK_BODY.unpack(body)
            self._acknowledged(token, arrived, now)
        elif kind == CHALLENGE and len(body) == _TOKEN.size and self._dialler:
            self._emit(_PROBE.pack(RESPONSE, *_TOKEN.unpack(body)))
            if self._phase is _Phase.CONFIRM:
                # The answers to the probes so far went to our old address.
                self._next = now
        elif kind == RESPONSE and len(body) == _TOKEN.size:
            self._migrate(_TOKEN.unpack(body)[0], address, now)

    # --- time ------------------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """When `tick` has something to do."""
        if self._phase is _Phase.WAITING:
            return inf
        due = min(self._due(), self._owed + KEEPALIVE_AFTER)
        return min(due, self._ticked + 1.0) if self.up and not self.dozes else due

    def tick(self, now: float) -> None:
        """Send a due probe or KEEPALIVE; notice silence."""
        self._ticked = now
        if self._phase is _Phase.WAITING:
            return
        if self.up and now - self._silent_since >= SILENCE:
            self._fall(f"nothing came back in {SILENCE:.0f} s of sending", now)
        if now >= self._due():
            self._probe(now)
        if now - self._owed >= KEEPALIVE_AFTER:
            self._emit(bytes((KEEPALIVE,)))
        self.dozes = self.steady and self._silent_since == inf == self._owed

    def _rouse(self, now: float) -> None:
        self.dozes = False
        self._ticked = now

    def _due(self) -> float:
        if self._phase is not _Phase.STEADY or self._tries:
            return self._next
        return min(self._verified + (BUSY if self._sent_at > self._verified else IDLE), self._raise_at)

    def _timeout(self) -> float:
        # A false alarm in STEADY costs speed for a while, so STEADY waits PATIENCE unless it is in doubt.
        if self.round_trip is None or (self._phase is _Phase.STEADY and not self._doubted):
            return PATIENCE
        return min(PATIENCE, max(HASTE, 4 * self.round_trip))

    # --- probing ---------------------------------------------------------------------------------------------------

    def _probe(self, now: float) -> None:
        """The next probe is due: the last one was not answered, or its interval is over."""
        if self._phase is _Phase.STEADY and not self._tries and now >= self._raise_at:
            self._high = self._ceiling + 1
            self._search(now)
            return
        if self._tries >= TRIES:
            if self._phase is _Phase.SEARCH:
                self._high = self._test
                self._search(now)
                return
            if self._phase is _Phase.STEADY and self._answered_at > self._verified:
                self.counters.shrinks += 1
                self._high = self._ceiling + 1
                self.size = BASE if self.size > BASE else LEAST
                self._confirm(now)
            elif self._doubted:
                # Nothing is answered, so the size is not what fails. A short black-out is no fall.
                self._doubted, self._tries = False, 0
            elif self.up:
                self._fall("probes are not answered: UDP is blocked or lost on the path", now)
            elif self._tries == TRIES:
                self.reason = "probes are not answered: UDP is blocked or lost on the path"
        self._tries += 1
        self._next = now + self._pause(now)
        if self._phase is _Phase.CONFIRM:
            base = min(BASE, self._ceiling)
            self._send_probe(base, now)
            if base > LEAST:
                self._send_probe(LEAST, now)
        else:
            self._send_probe(self._test, now)
            if self._phase is _Phase.STEADY and self._tries > 1 and self._test > LEAST:
                # Its answer shows that only the size fails, not the path.
                self._send_probe(LEAST, now)

    def _pause(self, now: float) -> float:
        """Seconds until the next try."""
        if not self.up and now - self._fell_at < SOON:
            return RETRY_SOON
        return self._timeout() if self._tries <= TRIES else RETRY

    def _send_probe(self, size: int, now: float) -> None:
        token = int.from_bytes(self._entropy(8))
        self._probes[token] = (size, now)
        if len(self._probes) > _OUTSTANDING:
            del self._probes[next(iter(self._probes))]
        self._probed = now
        self.counters.probes += 1
        self._emit(_PROBE.pack(PROBE, token).ljust(size - OVERHEAD, b"\0"))

    def _confirm(self, now: float) -> None:
        """Ask whether anything passes at all."""
        self._doubted = False
        self._phase = _Phase.CONFIRM
        self._tries = 0
        self._next = now
        self._raise_at = inf

    def _search(self, now: float) -> None:
        """Choose the next size to try, between `size`, which passes, and `_high`, which does not."""
        self._tries = 0
        if self._high - self.size <= min(STEP, self._ceiling - self.size):
            self._phase = _Phase.STEADY
            self._test = self.size
            self._verified = now
            self._raise_at = now + RAISE
        elif self.size >= self._ceiling:
            self._phase = _Phase.STEADY
            self._test = self.size
            self._verified = now
            self._raise_at = inf
        else:
            self._phase = _Phase.SEARCH
            self._test = self._ceiling if self._high > self._ceiling else (self.size + self._high) // 2
            self._next = now

    def _acknowledged(self, token: int, size: int, now: float) -> None:
        probe = self._probes.pop(token, None)
        if probe is None or probe[0] != size:
            return
        self.proved = True
        self.counters.answered += 1
        self._answered_at = now
        sample = max(now - probe[1], 0.0)
        self.round_trip = sample if self.round_trip is None else 0.75 * self.round_trip + 0.25 * sample
        self.least_round_trip = min(self.least_round_trip, sample)
        if size >= self._high:
            # This size passes after all.
            self._high = self._ceiling + 1
        if self._phase is _Phase.CONFIRM:
            self.up = True
            self.reason = "probes are answered"
            self._silent_since = inf
            self.size = size
            self._search(now)
        elif size > self.size:
            self.size = size
            self._search(now)
        elif self._phase is _Phase.STEADY and size == self.size:
            self._tries, self._doubted = 0, False
            self._verified = now

    def _fall(self, reason: str, now: float) -> None:
        if self.up:
            self.counters.falls += 1
            self._fell_at = now
        self.up = False
        self.reason = reason
        self._silent_since = self._owed = inf
        self.size = min(BASE, self._ceiling)
        self._confirm(now)
        self._tries = TRIES
        self._next = now + self._pause(now)
        self._high = self._ceiling + 1

    def _emit(self, message: bytes, address: Address | None = None) -> None:
        self.outgoing.append((message, address))
        if address is None:
            self._owed = inf

    # --- the client's address, at the exit ---------------------------------------------------------------------------

    def _challenge(self, address: Address, size: int, now: float) -> None:
        """The client may be at `address` now. There is one candidate: the address that sent last."""
        candidate = self._candidate
        if candidate is None or candidate.address != address:
            candidate = self._candidate = _Candidate(address, int.from_bytes(self._entropy(8)))
        candidate.received += size
        if (
            now >= candidate.challenged + CHALLENGE_INTERVAL
            and candidate.sent + _CHALLENGE_SIZE <= AMPLIFICATION * candidate.received
        ):
            candidate.challenged = now
            candidate.sent += _CHALLENGE_SIZE
            self._emit(_PROBE.pack(CHALLENGE, candidate.token), address)

    def _migrate(self, token: int, address: Address, now: float) -> None:
        candidate = self._candidate
        if candidate is None or candidate.address != address or candidate.token != token:
            return
        self.address = address
        self.proved = True
        self._candidate = None
        self.counters.migrations += 1
        # A new address means a new path: its size and round trip are unknown.
        self._reset(self._ceiling, now)
        self.up = True
        self.reason = "the client's datagrams come in from its new address"
        self._confirm(now)
