"""What an exit tells its clients about itself: can it resolve names, has it default routes, and what time is it?

A client whose link is up and whose pages do not load can find out here why. Nobody else is asked but the exit's own
resolver, and for a name that says nothing about anybody.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from ipaddress import IPv6Network, ip_address, ip_network
from socket import AF_INET, AF_INET6, AddressFamily
from struct import Struct
from typing import Final

from .. import __version__
from ..base.clock import clock
from ..base.kept_clock import clock_is_kept
from ..base.own_addresses import own_addresses
from ..base.source_address import source_address
from ..base.tasks import spawn
from ..base.text import to_json
from ..errors import StreamReason, StreamRefused, words_of
from ..outbound.resolving.resolver import SystemResolver
from ..session.streams import Stream, StreamHandler
from ..status import ExitReport, OutwardReport, ResolverReport
from .descriptor_shares import Claim
from .peer_session import PeerSession

TRIAL_NAME: Final = "a.root-servers.net"
"""Of a server that every resolver which leads anywhere knows by name."""
LOOK_UP_SECONDS: Final = 6.0
"""Longer than one question to one DNS server takes by default; applications give up about then too."""
QUESTION: Final = Struct("!Q")
"""The time of who asks: milliseconds since 1970."""


class Reporter:
    """Looks at this machine, once for all who ask meanwhile."""

    def __init__(self, resolver: SystemResolver) -> None:
        self._resolver = resolver
        self._looking: asyncio.Task[bytes] | None = None

    async def told(self) -> bytes:
        """An ExitReport as JSON."""
        if self._looking is None:
            self._looking = spawn(self._look(), "exit report")
            self._looking.add_done_callback(self._looked)
        return await asyncio.shield(self._looking)

    def _looked(self, _: object) -> None:
        self._looking = None

    async def _look(self) -> bytes:
        resolver, own = await try_resolver(self._resolver), own_addresses()
        return to_json(
            ExitReport(
                version=__version__,
                clock=round(time.time(), 3),
                clock_kept=clock_is_kept(),
                ipv4=outward(AF_INET, own),
                ipv6=outward(AF_INET6, own),
                resolver=resolver,
            )
        )


async def try_resolver(resolver: SystemResolver) -> ResolverReport:
    """Have it find TRIAL_NAME, anew."""
    began, problem = clock(), ""
    try:
        async with asyncio.timeout(LOOK_UP_SECONDS):
            await resolver.resolve_anew(TRIAL_NAME, "this exit")
    except StreamRefused as refusal:
        problem = words_of(refusal.reason)
    except TimeoutError:
        problem = words_of(StreamReason.NAME_TIMED_OUT)
    return ResolverReport(problem=problem, seconds=round(clock() - began, 3))


def outward(family: AddressFamily, own: Iterable[str]) -> OutwardReport:
    """What a machine with the addresses `own` (as CIDRs) has of this family."""
    address = source_address(family)
    if address is None:
        return OutwardReport(addressed=any(_leads_outward(each, family) for each in own))
    return OutwardReport(addressed=True, route=True, address=address if ip_address(address).is_global else "")


def _leads_outward(cidr: str, family: AddressFamily) -> bool:
    """Whether it is a single address from which the Internet can be reached, with NAT if it is one of IPv4."""
    network = ip_network(cidr, strict=False)
    if network.num_addresses > 1 or isinstance(network, IPv6Network) != (family == AF_INET6):
        return False
    if network.is_loopback or network.is_link_local or network.is_multicast:
        return False
    return family == AF_INET or not network.is_private


class ReportStream(StreamHandler):
    """Answers on a REPORT stream. `claim` is released with it."""

    def __init__(self, reporter: Reporter, entry: PeerSession, stream: Stream, claim: Claim) -> None:
        self._entry = entry
        self._stream = stream
        self._claim = claim
        self._asked = b""
        self._told = b""
        stream.handler = self
        stream.accept()
        self._work = spawn(self._tell(reporter), "answer with a report")

    async def _tell(self, reporter: Reporter) -> None:
        self._told = await reporter.told()
        self.writable()

    def writable(self) -> None:
        while self._told and (room := self._stream.request_room()):
            self._stream.send(self._told[:room])
            self._told = self._told[room:]
            if not self._told:
                self._stream.finish()
                self._claim.release()

    def data_received(self, data: memoryview) -> None:
        """The time of the client, and nothing more."""
        self._stream.consumed(len(data))
        self._asked += data[: QUESTION.size + 1 - len(self._asked)]
        if len(self._asked) > QUESTION.size:
            self._end()
        elif len(self._asked) == QUESTION.size:
            (milliseconds,) = QUESTION.unpack(self._asked)
            self._entry.clock_off = round(milliseconds / 1e3 - time.time(), 3)

    def _end(self) -> None:
        self._stream.reset(StreamReason.GENERAL)
        self.reset(StreamReason.GENERAL)

    def reset(self, reason: StreamReason) -> None:
        self._told = b""
        self._work.cancel()
        self._claim.release()
