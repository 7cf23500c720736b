"""The exit's network interface: one TUN device through which the packets of all clients reach the internet.

    client's packet -> whole? -> from the client's own address? -> allowed by the policy? -> TUN -> kernel: forward, NAT
    kernel -> TUN -> whose address? -> that client's link

What a client may send is decided here, packet by packet: by the same policy as its connections, and inside the tunnel a
ping of the exit and nothing else, or other clients where they are not isolated. The kernel's part (ExitSide in
system.py) translates addresses, and is a second line for the rest.

    start -> release: the device goes; table, routes and settings stand, as after a kill -> a successor takes them over
                                                                                         -> close: they are undone

What stands until there is a successor keeps the connections of clients: without it, the kernel would take their packets
for its own and answer with a reset.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from contextlib import AsyncExitStack, ExitStack, closing
from dataclasses import replace
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Final

from cryprq_proxy.base import leftovers
from cryprq_proxy.base.buffers import SHARED
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.carriers.lane.packet_link import NO_ADDRESSES, PacketLink
from cryprq_proxy.carriers.lane.train import PacketTrain
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.crypto.payloads import Feature
from cryprq_proxy.errors import ConfigError, CryprqError, reason_of
from cryprq_proxy.exit.egress_policy import EgressPolicy
from cryprq_proxy.exit.limits import TokenBucket
from cryprq_proxy.lane.slices import HEADROOM, Run, Shape
from cryprq_proxy.rules.ranges import IPNetwork
from cryprq_proxy.status import TunNetworkStatus

from .device.coalesce import UdpJoiner
from .device.offload import COMPLETE, fit
from .device.packets import ICMP, ICMP6, Drop, Packet, parse, prohibited
from .journal import Journal, undo
from .reconciler import Reconciler
from .routing.address_pool import AddressPool, free_pools
from .settings import EXIT_JOURNAL, RESOLVER4, RESOLVER6, SHARED4, ExitNetworkSettings
from .system import Device, ExitSide, System

_log = logging.getLogger(__name__)

VERDICTS: Final = 8_192
"""Verdicts of the policy that are remembered, one for each destination and port."""
ANSWERS: Final = 200.0
"""ICMP errors a second for packets that the policy refuses."""
NO_PORT: Final = 1
"""The port by which packets without ports are judged."""
SUCCESSOR_SECONDS: Final = 10.0
"""For which a successor is waited for where clients have packets."""
_LOOK_SECONDS: Final = 0.1
_ECHO: Final = {4: ICMP, 6: ICMP6}
_ECHO_TYPES: Final = {4: (8, 0), 6: (128, 129)}
"""IP version -> the types of echo and echo reply (RFC 792, RFC 4443)."""
_SPOOFED: Final = "source is not the client's"
_FORBIDDEN: Final = "forbidden by the policy"
_NOBODY: Final = "for no client"
_WITHHELD: Final = "no packet filter"


class ExitNetwork:
    """The PacketNetwork of an exit (exit/providers.py), made by `start`; `release`, and `close` in any case. Packets
    that come after that are dropped."""

    features = Feature.PACKETS

    def __init__(
        self,
        system: System,
        settings: ExitNetworkSettings,
        policy: EgressPolicy,
        tun: Device,
        kernel: ExitSide,
        stack: AsyncExitStack,
    ) -> None:
        """Read `tun`, which `kernel` has configured. `stack` gives it up, with all else that only one exit can have."""
        self._system = system
        self._settings = settings
        self._released = False
        self._used = False
        """Whether a client has had addresses."""
        self._policy = policy
        self._tun = tun
        self._write = tun.write
        self._kernel = kernel
        self._stack = stack
        self._pool4 = AddressPool(settings.pool4, settings.own4, RESOLVER4)
        self._pool6 = AddressPool(settings.pool6, settings.own6, RESOLVER6)
        self._own = {4: settings.own4.packed, 6: settings.own6.packed}
        self._members: dict[PacketLink, tuple[bytes, ...]] = {}
        self._links: dict[bytes, PacketLink] = {}
        self._peers: dict[PacketLink, PeerId] = {}
        self._shown: dict[PacketLink, str] = {}
        self._avoided: dict[PacketLink, tuple[IPNetwork, ...]] = {}
        """What clients cannot take, by their last TAKEN."""
        self._verdicts: OrderedDict[tuple[bytes, int], bool] = OrderedDict()
        self._answers = TokenBucket(ANSWERS, ANSWERS, 0.0)
        self._train = SHARED.one(PacketTrain)
        self._answer = memoryview(bytearray(HEADROOM + 1280))
        self.drops: Counter[str] = Counter()
        self._joiner = UdpJoiner(self._send)
        loop = asyncio.get_running_loop()
        self._lost: asyncio.Future[OSError] = loop.create_future()
        tun.start(loop, self._joiner.packet, self._drained, self._lost.set_result)
        kernel.tell_of_table(self._withhold)
        self._reconciler = Reconciler(kernel.facts())
        self._following = spawn(kernel.follow_uplinks(self._readdress), "uplinks of the exit")

    @classmethod
    async def start(cls, system: System, settings: ExitNetworkSettings, policy: EgressPolicy) -> ExitNetwork:
        """Make the device and let its packets out. Raises ConfigError, with nothing changed, if that cannot be."""
        async with AsyncExitStack() as stack:
            journal = Journal(settings.state / EXIT_JOURNAL)
            stack.callback(journal.close)
            stack.enter_context(leftovers.claimed("exit"))
            # The table that a killed exit has left is not removed but replaced. Without it the kernel would follow no
            # connections for a moment, and afterwards take those that go on for invalid. Without the routes, answers
            # for clients would leave by the default route.
            how = system.undo("exit", settings.state)
            undo(journal, how.undoers, keep={how.filter, how.routes})
            recorded = {entry["kind"] for entry in journal.entries()}
            settings = free_pools(settings, await system.read_occupied(settings.device))
            if settings.pool4.overlaps(SHARED4):
                _log.warning(
                    "the pool %s lies in %s: clients with Tailscale cannot ask for names",
                    settings.pool4,
                    SHARED4,
                )
            failed = stack.enter_context(ExitStack())
            failed.callback(undo, journal, how.undoers)
            tun = system.open_device(settings)
            stack.callback(tun.close)
            settings = replace(settings, device=tun.name)
            kernel = await system.exit_side(settings, tun, journal.record, recorded=recorded)
            for warning in system.exit_warnings(settings):
                _log.warning("%s", warning)
            failed.pop_all()
            network = cls(system, settings, policy, tun, kernel, stack.pop_all())
        _log.info(
            "packets: %s, clients in %s%s",
            settings.device,
            settings.pool4,
            f" and {settings.pool6}" if kernel.ipv6 else "; no IPv6 here yet",
        )
        return network

    async def release(self) -> None:
        if self._released:
            return
        self._released = True
        self._following.cancel()
        await asyncio.wait([self._following])
        await self._reconciler.stop()
        await self._kernel.close()
        # Sessions may live on: another exit may take the device's place for the new ones.
        self._withhold(True)
        await self._stack.aclose()

    async def succeeded(self) -> None:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + SUCCESSOR_SECONDS
        # What another process does is no event here.
        while self._used and loop.time() < give_up and leftovers.holder("exit") is None:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)

    async def close(self) -> None:
        await self.release()
        if leftovers.holder("exit") is not None:
            return
        try:
            with (
                leftovers.claimed("exit"),
                closing(Journal(self._settings.state / EXIT_JOURNAL)) as journal,
            ):
                undo(journal, self._system.undo("exit", self._settings.state).undoers)
        except ConfigError:
            # A successor may have come just now.
            if leftovers.holder("exit") is None:
                raise

    async def lost(self) -> None:
        """Return never: raise CryprqError when another program has removed the device."""
        # Not cancelled with its caller: the device may still be lost while everything is undone.
        error = await asyncio.shield(self._lost)
        raise CryprqError(
            f"another program removed the device {self._settings.device} ({reason_of(error)}); start the exit again"
        )

    # --- clients ---------------------------------------------------------------------------------------------------

    def join(self, peer: PeerId, link: PacketLink, shown: str) -> None:
        self._assign(peer, link)
        self._peers[link] = peer
        self._shown[link] = shown
        self._used = True

    def _assign(self, peer: PeerId, link: PacketLink) -> None:
        self._release(link)
        avoided = self._avoided.get(link, ())
        ipv4 = self._pool4.address(peer, avoided).packed
        ipv6 = self._pool6.address(peer, avoided).packed if self._kernel.ipv6 else b""
        own = self._members[link] = (ipv4, ipv6) if ipv6 else (ipv4,)
        self._links |= dict.fromkeys(own, link)
        link.assign(ipv4, ipv6 or bytes(16))

    def _readdress(self) -> None:
        """IPv6 has come or gone: hand out addresses anew, to the sessions in their order."""
        self._links.clear()
        for link, peer in self._peers.items():
            self._assign_or_none(peer, link)

    def avoid(self, link: PacketLink, networks: tuple[IPNetwork, ...]) -> None:
        peer = self._peers.get(link)
        if peer is not None:
            self._avoided[link] = networks
            self._assign_or_none(peer, link)

    def _assign_or_none(self, peer: PeerId, link: PacketLink) -> None:
        try:
            self._assign(peer, link)
        except CryprqError as error:
            if link.addresses != NO_ADDRESSES:
                # Once: the client can ask without end for what does not exist.
                _log.warning("%s gets no packets: %s", self._shown.get(link, peer), error)
            link.assign(*NO_ADDRESSES)

    def leave(self, link: PacketLink) -> None:
        self._peers.pop(link, None)
        self._shown.pop(link, None)
        self._avoided.pop(link, None)
        self._release(link)

    def _release(self, link: PacketLink) -> None:
        for address in self._members.pop(link, ()):
            if self._links.get(address) is link:
                del self._links[address]
                # The same peer may have another session, which had the address before this one.
                for other, own in self._members.items():
                    if address in own:
                        self._links[address] = other

    def policy_changed(self) -> None:
        """Forget the remembered verdicts: they are no longer valid."""
        self._verdicts.clear()

    # --- packets ---------------------------------------------------------------------------------------------------

    def received(self, link: PacketLink, buffer: memoryview, start: int, end: int, run: Run) -> None:
        shape = fit(buffer, start, end, run)
        if isinstance(shape, Drop):
            self.drops[shape.value] += 1
            return
        packet = parse(buffer, start, end)
        if isinstance(packet, Drop):
            self.drops[packet.value] += 1
            return
        if packet.source not in self._members.get(link, ()):
            self.drops[_SPOOFED] += 1
            return
        key = packet.destination, packet.destination_port
        allowed = self._verdicts.get(key)
        if allowed is None:
            allowed = self._judge(key)
        if allowed or self._is_ping(buffer, start, packet):
            self._write(buffer, start, end, shape)
        else:
            self.drops[_FORBIDDEN] += 1
            self._refuse(link, buffer, start, end, packet)

    def _withhold(self, withhold: bool) -> None:
        """Drop what clients send, or no longer: without the kernel's table it would leave with their own addresses."""
        self._write = self._drop if withhold else self._tun.write

    def _drop(self, buffer: memoryview, start: int, end: int, shape: Shape) -> bool:
        self.drops[_WITHHELD] += 1
        return False

    def _judge(self, key: tuple[bytes, int]) -> bool:
        destination, port = key
        inside = self._inside(destination)
        if inside is None:
            literal = inet_ntop(AF_INET if len(destination) == 4 else AF_INET6, destination)
            allowed = self._policy.check_address(literal, port or NO_PORT)
        else:
            allowed = inside
        self._verdicts[key] = allowed
        if len(self._verdicts) > VERDICTS:
            self._verdicts.popitem(last=False)
        return allowed

    def _inside(self, destination: bytes) -> bool | None:
        """Whether a client may reach an address of the pool, whatever the policy says; None outside of it.

        Only other clients, and only where they are not isolated. The kernel's filter says the same, but another program
        may flush it. The first and last address are the exit's too: it gets their broadcasts (RFC 919) and anycasts
        (RFC 4291, section 2.6.1).
        """
        address = ip_address(destination)
        pool = self._pool4 if address.version == 4 else self._pool6
        if address not in pool.network:
            return None
        exits = (pool.own, pool.network.network_address, pool.network.broadcast_address)
        return not self._settings.isolate and address not in exits

    def _is_ping(self, buffer: memoryview, start: int, packet: Packet) -> bool:
        """Whether a packet is an ICMP echo, or its answer, to the exit's own address: nothing else gets there.

        A later fragment of ICMP can be nothing but a part of a message whose first fragment was judged.
        """
        protocol, kinds, own = _ECHO[packet.version], _ECHO_TYPES[packet.version], self._own[packet.version]
        if packet.destination != own or packet.protocol != protocol:
            return False
        return bool(packet.fragment) or buffer[start + packet.transport] in kinds

    def _refuse(self, link: PacketLink, buffer: memoryview, start: int, end: int, packet: Packet) -> None:
        """Answer the client, so that its program fails at once and not by a time-out."""
        if not self._answers.allow(asyncio.get_running_loop().time()):
            return
        answer = prohibited(buffer, start, end, packet, self._own[packet.version])
        if answer is not None:
            stop = HEADROOM + len(answer)
            self._answer[HEADROOM:stop] = answer
            link.send(self._answer, HEADROOM, stop, COMPLETE)

    def _drained(self) -> None:
        self._joiner.flush()
        self._train.flush()

    def _send(self, buffer: memoryview, start: int, end: int, shape: Shape) -> None:
        """Send a packet of the kernel to the client that has its address."""
        if buffer[start] >> 4 == 4:
            destination = bytes(buffer[start + 16 : start + 20])
        else:
            destination = bytes(buffer[start + 24 : start + 40])
        link = self._links.get(destination)
        if link is None:
            self.drops[_NOBODY] += 1
        else:
            link.send(buffer, start, end, shape, True)

    def status(self) -> TunNetworkStatus:
        return TunNetworkStatus(
            device=self._tun.status(),
            clients=len(self._members),
            ipv6=self._kernel.ipv6,
            repairs=self._reconciler.status(),
            drops=dict(self.drops),
        )
