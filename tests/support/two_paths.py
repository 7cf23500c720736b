"""Two sessions with two paths between them, of which one is in use: a test holds either of them up, or cuts it."""

from __future__ import annotations

import pytest

from cryprq_proxy.session.path import SessionPath
from cryprq_proxy.session.session import Session
from tests.support.links import App, Link, ToyProvider
from tests.support.memory import Direction, MemoryCarrier, advance, settle

SIDES = pytest.mark.parametrize("side", ["client", "exit"])
LONG_DOUBT = 1.0
"""Seconds after which a path on which nothing comes is in doubt."""


class Two:
    """A link with two paths, of which the first one is in use. `one` is at `side` and sends, `other` receives."""

    def __init__(self, side: str = "client", **options: object) -> None:
        self.link = Link(provider=ToyProvider(), **options)  # type: ignore[arg-type]
        self.client, self.exit = self.link.client, self.link.exit
        self.side: Session = getattr(self.link, side)
        self.first = self.link.carrier
        self.second = self.link.join()
        self.carriers = [self.first, self.second]
        self.settle()
        ends = self.pair()
        self.one, self.other = ends if side == "client" else ends[::-1]
        self.advance(2.0)
        assert self.client.current is self.first.paths[0] and self.exit.current is self.first.paths[1]

    def pair(self) -> tuple[App, App]:
        app = self.link.open()
        self.settle()
        assert app.stream is not None
        return app, self.link.served[app.stream.id]

    def settle(self) -> None:
        settle(self.open)

    def advance(self, seconds: float) -> None:
        advance(self.open, seconds)
        self.link.now = self.open[0].now

    @property
    def open(self) -> list[MemoryCarrier]:
        return [carrier for carrier in self.carriers if carrier.open]

    def join(self) -> MemoryCarrier:
        self.carriers.append(self.link.join())
        return self.carriers[-1]

    def path(self, carrier: MemoryCarrier) -> SessionPath:
        """The end of `carrier` at the side that sends."""
        return carrier.paths[self.side is self.exit]

    def flow(self, carrier: MemoryCarrier) -> Direction:
        """The direction in which that side sends."""
        return carrier.to_right if self.side is self.client else carrier.to_left

    def back(self, carrier: MemoryCarrier) -> Direction:
        """The other direction."""
        return carrier.to_left if self.side is self.client else carrier.to_right

    def prefer(self, carrier: MemoryCarrier) -> None:
        """Both sides know it before anything else moves."""
        number = carrier.paths[0].number
        self.client.prefer(number)
        serial = self.client._prefer_serial
        self.exit.receive_prefer(serial, number)

    def hold(self, *carriers: MemoryCarrier) -> None:
        """Nothing arrives there any more."""
        for carrier in carriers:
            carrier.to_right.piece = carrier.to_left.piece = 0

    def release(self, *carriers: MemoryCarrier) -> None:
        for carrier in carriers:
            carrier.to_right.piece = carrier.to_left.piece = 1 << 20


def kinds(path: SessionPath) -> list[int]:
    return [unit.frame[0] for unit in path.log.units]
