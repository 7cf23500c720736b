"""The sender's half of one path: what is in flight, what became of it, and how much may leave now.

    room -> wants_ask, skip -> sent            for each train
    acked                                      for each acknowledgement that came by this path
    deadline -> tick                           losses by time, probe time-outs
    app_limited                                when there is nothing more to send although there is room

The owner seals and sends. Cargo is in one place at any time: it comes back either acknowledged or lost, once.
"""

from __future__ import annotations

from typing import NamedTuple

from .congestion import CongestionControl
from .pacer import Pacer


class Part[Cargo](NamedTuple):
    """Some datagrams of a train: the first, and the one behind the last, counted from the train's begin."""

    cargo: Cargo
    first: int
    behind: int


class Settled[Cargo](NamedTuple):
    """What is settled about cargo."""

    acked: list[Part[Cargo]]
    """The peer has these."""
    lost: list[Part[Cargo]]
    """These are lost, or probably lost: the owner has them again."""
    probe: bool
    """A probe time-out: at least one datagram that elicits an acknowledgement must leave now, even if it carries
    nothing. `room` has room for two."""


class Recovery[Cargo]:
    """That of one path. Times are seconds, sizes bytes on the wire."""

    def __init__(self, control: CongestionControl, pacer: Pacer, now: float) -> None:
        self.control = control
        self.pacer = pacer
        self.in_flight = 0
        """Bytes."""
        self.timeouts = 0
        """Probe time-outs in a row, without any acknowledgement."""
        self.loss = 0.0
        """The share of datagrams that were lost lately, 0.0 to 1.0."""

    # --- out, in the order of the calls ----------------------------------------------------------------------------

    def room(self, now: float) -> int:
        """Bytes that may leave now: of the window, of the pacer, or for a probe. 0 if it is less than a datagram."""
        return 1 << 30

    def wants_ask(self, size: int) -> bool:
        """Whether a train of `size` bytes, which leaves next, should ask for an acknowledgement at once."""
        return True

    def skip(self, counter: int) -> bool:
        """Whether to leave out `counter`, the next one, and send nothing with it: so it is now and then, to catch a
        peer that acknowledges what it cannot have. Ask before each train."""
        return False

    def sent(
        self,
        first: int,
        count: int,
        segment: int,
        size: int,
        now: float,
        cargo: Cargo | None,
        *,
        eliciting: bool = True,
        asked: bool = False,
    ) -> None:
        """A train left: `count` datagrams with counters from `first` on, `size` bytes, all but the last of `segment`.

        Without cargo nobody is told what becomes of it. `eliciting`: the peer acknowledges it within `ACK_DELAY`;
        `asked`: at once. Datagrams that are not told of here may be acknowledged, too; they count for nothing.
        """

    def app_limited(self) -> None:
        """There is room, and nothing to send: what is in flight does not measure the path."""

    # --- in --------------------------------------------------------------------------------------------------------

    # acked(frame: AckFrame, counter, now) -> Settled: `counter` is the one that the next datagram would have.
    # AckFrame comes from received.decode. Raises PeerError (PROTOCOL) for an optimistic acknowledgement.

    # --- time ------------------------------------------------------------------------------------------------------

    def deadline(self) -> float:
        """The time at which `tick` must be called; infinite if nothing that elicits is in flight."""
        return float("inf")

    def tick(self, now: float) -> Settled[Cargo]:
        """Time has passed: what is lost by it, and the cargo of the two oldest trains after a probe time-out."""
        return Settled([], [], False)

    def next_at(self, now: float) -> float:
        """When `room` is 0: the time at which the pacer lets something leave; infinite if only an acknowledgement
        makes room."""
        return now

    def abandon(self) -> None:
        """The owner wants no cargo back: it goes elsewhere. What is in flight still counts until it is settled."""

    def reset(self, now: float) -> None:
        """The path is another one (roaming): round trip and rate begin anew; what is in flight stays in flight."""
