"""What the process around an exit may hand in. The defaults of both protocols are those of their absence.

A packet network exchanges IP packets with clients in system-wide mode (tun/exit_network.py has the real one). Invites
let peers in that are not listed yet (pairing/invite_store.py).
"""

from __future__ import annotations

import asyncio
import enum
from typing import Final, Protocol

from ..carriers.lane.packet_link import PacketLink
from ..crypto.identity import PeerId
from ..crypto.payloads import Feature
from ..errors import CryprqError
from ..lane.slices import Run
from ..rules.ranges import IPNetwork
from ..status import TunNetworkStatus


class PacketNetwork(Protocol):
    """The exit's running network interface. `features` is what clients are offered because of it."""

    features: Feature = Feature(0)

    async def lost(self) -> None:
        """Return or raise when the interface is gone."""
        await asyncio.get_running_loop().create_future()

    async def release(self) -> None:
        """Remove the interface, so that another exit can have it. What stands beside it is left to that one."""
        return

    async def succeeded(self) -> None:
        """After `release`: return when another exit has taken over what is left, or when it is pointless to wait."""
        return

    async def close(self) -> None:
        """`release`, and undo what nobody has taken over. Raises CryprqError for what could not be undone."""
        return

    def policy_changed(self) -> None:
        """Judge destinations anew: the egress policy has other addresses."""
        return

    def join(self, peer: PeerId, link: PacketLink, shown: str) -> None:
        """Send packets for `peer` to `link` from now on, and to no earlier link of that peer. Assigns it addresses, and
        other ones later when they change. The log calls it `shown`. Raises CryprqError if no address is free."""
        raise CryprqError("this exit carries no packets")

    def avoid(self, link: PacketLink, networks: tuple[IPNetwork, ...]) -> None:
        """Assign `link` addresses outside of these networks, which the client cannot take; zeros if there are none."""
        return

    def leave(self, link: PacketLink) -> None:
        """Forget `link`; harmless if it never joined."""
        return

    def received(self, link: PacketLink, buffer: memoryview, start: int, end: int, run: Run) -> None:
        """Send a packet that came from a client."""
        return

    def status(self) -> TunNetworkStatus | None:
        """What `cryprq-proxy status` shows."""
        return None


class NoPacketNetwork(PacketNetwork):
    """For an exit that carries streams and datagrams only: packets are dropped."""


NO_PACKETS: Final = NoPacketNetwork()


class Redeemed(enum.Enum):
    """What became of the secret of an invite that a peer has shown."""

    NOT = enum.auto()
    """It is invalid, expired, or another peer has used it."""
    NOW = enum.auto()
    """The peer has used it, and is on the list."""
    BEFORE = enum.auto()
    """The peer has used it earlier. It may have been revoked since."""


class Invites(Protocol):
    """One-time secrets that put a peer on the list."""

    async def redeem(self, secret: bytes, peer: PeerId) -> tuple[Redeemed, str]:
        """Use up the invite with this secret (16 bytes) and list `peer`, both on disk when this returns NOW and the
        peer's name on the list. Never raises."""
        return Redeemed.NOT, ""

    def close(self) -> None:
        """Redeem nothing more."""
        return


class NoInvites(Invites):
    """For an exit whose list is not to be changed."""


NO_INVITES: Final = NoInvites()
