"""The lane's real carriers between the two hosts of a Stage, over a network of datagrams (air.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from cryprq_proxy.carriers.lane import client as client_module
from cryprq_proxy.carriers.lane import listener as listener_module
from cryprq_proxy.carriers.lane.batch import UdpOffload
from cryprq_proxy.carriers.lane.carrier import LaneCarrier
from cryprq_proxy.carriers.lane.client import ClientLane
from cryprq_proxy.carriers.lane.driver import LaneDriver
from cryprq_proxy.carriers.lane.listener import LaneListener
from cryprq_proxy.carriers.lane.packet_link import PacketLink
from cryprq_proxy.errors import PeerError
from cryprq_proxy.recovery.bbr import Bbr
from tests.support.air import Air
from tests.support.simulated_stage import Stage
from tests.support.simulator import Host, Route

BOTH: Final = UdpOffload(True, True)
PLAIN: Final = UdpOffload(False, False, "off")
EXIT: Final = ("198.51.100.1", 4433)


class Link(PacketLink):
    """What a Stage looks at besides."""

    told = says = 0
    epochs: tuple[int, ...] = ()
    lanes: tuple[int, ...] = ()


class AiredLane:
    """That of a stage. It is up as soon as the clock has run for a moment."""

    def __init__(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, offload: UdpOffload = BOTH, seed: int = 0
    ) -> None:
        self.stage, clock = stage, stage.clock
        air = self.air = Air(clock, seed)

        class AiredSocket:
            """In place of UdpSocket, which is called and has one class method."""

            connected = staticmethod(air.connected)

            def __new__(cls, *args: object) -> object:  # type: ignore[misc]
                return air.make(*args)  # type: ignore[arg-type]

        for module in (client_module, listener_module):
            monkeypatch.setattr(module, "UdpSocket", AiredSocket)

        def now() -> float:
            return clock.now

        self.listener = LaneListener(air.loop.typed, [EXIT], offload, clock=now)
        links = [Link(host.session) for host in stage.network.hosts]
        self.client = ClientLane(air.loop.typed, links[0], offload, clock=now)
        self.exit: LaneCarrier = self.listener.carrier(links[1])
        for host, link, lane in zip(stage.network.hosts, links, (self.client, self.exit), strict=True):
            link.lane = lane
            host.session.packet_link = link
            lane.carry(host.session.attach_lane(clock.now), _failing(host), Bbr)
            host.session.begin_lane(clock.now)
        stage.links = links  # type: ignore[assignment]
        stage.lane = self  # type: ignore[assignment]
        self.client.move(EXIT)

    @property
    def drivers(self) -> tuple[LaneDriver, LaneDriver]:
        """The client's and the exit's."""
        drivers = self.client.driver, self.exit.driver
        assert drivers[0] is not None and drivers[1] is not None
        return drivers[0], drivers[1]

    # --- as a SimulatedLane ----------------------------------------------------------------------------------------

    def change(self, **changes: float) -> None:
        for name, value in changes.items():
            setattr(self.air, name, value)

    def go_on(self) -> None:
        self.air.blocked = lambda source, target: False
        self.air.refuse = lambda: None

    def close(self) -> None:
        self.client.close()
        self.exit.close()
        self.listener.close()


def _failing(host: Host) -> Callable[[PeerError], None]:
    def fail(error: PeerError) -> None:
        host.errors.append(error)
        host.session.close(error.reason)

    return fail


SLOW: Final = Route(rate=1e6, delay=0.05)
"""A TCP connection that nobody prefers."""
