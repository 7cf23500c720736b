"""The kill switch: the client's filter as it must be at any moment, put back when another program removes it.

    follow_...   an exit's name, the tunnel's addresses, local networks or a person's rules have changed -> update
    look         a Fact of the reconciler: does the table stand as written? If not, put it back

This is the one place where the client's filter is changed: one change at a time, none after `shut`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from cryprq_proxy.address import Destination
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import CryprqError
from cryprq_proxy.status import KillSwitchStatus

from ..journal import Record
from ..reconciler import Fact
from ..routing.exit_endpoints import ExitEndpoints
from ..routing.lan import Lan, Network
from ..routing.tunnel_addresses import TunnelAddresses
from ..settings import TunnelSettings
from ..system import FilterError, System
from .deletions import Deletions
from .filter_settings import FilterSettings, PagePlace
from .policy import Policy

_log = logging.getLogger(__name__)

PAUSE_MARGIN: Final = 0.1
"""Seconds after which a pause that should be over is over in the kernel too."""


def before_the_tunnel(
    settings: TunnelSettings, exits: ExitEndpoints, policy: Policy, lan: Lan
) -> FilterSettings:
    """What the filter is made from while there is no tunnel yet, but for excluded cgroups."""
    return FilterSettings(
        tun=settings.device,
        mark=settings.mark,
        exits=exits.known(),
        lan=frozenset(lan.prefixes),
        lan_allowed=settings.lan,
        guests=frozenset(lan.guests),
        uplinks=lan.uplinks,
        excluded=frozenset(settings.exclude),
        included=frozenset(settings.include),
        excluded_uids=frozenset(
            uid for first, last in settings.exclude_uids for uid in range(first, last + 1)
        ),
        kill_switch=settings.kill_switch,
        rules=policy.filter,
        name_servers=settings.dns.lan_servers,
    )


class KillSwitch(Fact):
    """The filter of one tunnel, closed by `__init__`. After `shut` every change is refused.

    Changes block for some milliseconds, so they are made on a thread. They raise CryprqError. Connections whose reason
    has ended with a change are deleted beside the next ones (deletions.py).
    """

    name = "kill switch"
    vital = True
    polled = True

    def __init__(
        self,
        system: System,
        settings: TunnelSettings,
        exits: ExitEndpoints,
        policy: Policy,
        lan: Lan,
        record: Record,
        *,
        ours: bool,
    ) -> None:
        """Write the filter to the journal and put it up; blocks. `ours`: the journal names one of an earlier run.

        Raises CryprqError.
        """
        self._system = system
        self.changes = system.filter_changes
        self._settings = settings
        self.exits = exits
        self.policy = policy
        self.lan = lan
        self._addresses = TunnelAddresses()
        self._dns_port: int | None = None
        self._page: PagePlace | None = None
        self._resolvers: Callable[[], tuple[str, ...]] = tuple
        self._changing = asyncio.Lock()
        self._shut = False
        self._pause_end: asyncio.Task[None] | None = None
        self._deletions = Deletions(self._delete_ended)
        self._lockdown = system.lockdown(settings.state)
        self._filter = system.packet_filter(
            self._wanted(), record, ours=ours, keep_inbound=settings.keep_inbound
        )
        self._keep_for_rest()

    async def shut(self) -> None:
        """Refuse every further change, and wait for the end of one that is being made."""
        self._shut = True
        if self._pause_end is not None:
            self._pause_end.cancel()
        async with self._changing:
            pass
        await self._deletions.close()

    async def _change[T, *A](self, change: Callable[[*A], T], *arguments: *A) -> T:
        """Make a change on a thread. A caller that is cancelled still waits for the end of its change: no change may
        come after the filter was removed."""
        async with self._changing:
            if self._shut:
                raise CryprqError("system-wide mode is being undone; nothing can be changed any more")
            changed = asyncio.get_running_loop().run_in_executor(None, change, *arguments)
            try:
                return await asyncio.shield(changed)
            except asyncio.CancelledError:
                await asyncio.wait([changed])
                raise

    # --- what the filter depends on ---

    async def follow_resolvers(self, resolvers: Callable[[], tuple[str, ...]]) -> None:
        """The resolvers from before, as they are at each call: what a captive portal needs in a pause."""
        self._resolvers = resolvers
        await self.update()

    async def follow_addresses(self, addresses: TunnelAddresses, dns_port: int) -> None:
        """The addresses inside the tunnel, and the port where the forwarder listens on each."""
        self._addresses, self._dns_port = addresses, dns_port
        await self.update()

    async def follow_page(self, page: PagePlace | None) -> None:
        """Where our own page is. Where the filter cannot be changed, all is as before."""
        before, self._page = self._page, page
        try:
            await self.update()
        except BaseException:
            self._page = before
            raise

    async def follow_exits(self, exits: Iterable[Destination]) -> None:
        """All places where a link is dialled, and no others."""
        if self.exits.follow(exits):
            await self.update()

    async def follow_exit(self, name: str, addresses: Sequence[str]) -> None:
        """The newest addresses of one exit's name."""
        self.exits.learn(name, addresses)
        await self.update()

    async def follow_lan(self, lan: Lan) -> None:
        self.lan = lan
        await self.update()

    def collisions(self) -> tuple[Network, ...]:
        """The networks around this machine in which an address of the tunnel lies."""
        return self._addresses.held_by(self.lan)

    async def follow_policy(self, policy: Policy) -> None:
        """Other rules: when this returns, connections that they send elsewhere have been deleted. Where the filter
        cannot be changed, those from before stay."""
        before, self.policy = self.policy, policy
        try:
            changed = await self._change(self._update)
        except BaseException:
            self.policy = before
            raise
        if changed:
            await asyncio.shield(self._deletions.soon())

    async def update(self) -> None:
        """Make the filter what it must be now."""
        if await self._change(self._update):
            self._deletions.soon()

    def _update(self) -> bool:
        changed = self._filter.update(self._wanted())
        self._keep_for_rest()
        return changed

    def _keep_for_rest(self) -> None:
        if self._lockdown.on:
            self._lockdown.keep(self._filter.at_rest())

    def _wanted(self) -> FilterSettings:
        return replace(
            before_the_tunnel(self._settings, self.exits, self.policy, self.lan),
            tunnel4=self._addresses.ipv4,
            tunnel6=self._addresses.ipv6,
            dns_port=self._dns_port,
            excluded_cgroups=self._system.cgroups(self._settings.exclude_cgroups),
            portal_resolvers=self._portal_resolvers(),
            page=self._page,
        )

    def _portal_resolvers(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """Those from before, but for link-local ones: the filter cannot send packets to an address with a zone."""
        found = [ip_address(resolver) for resolver in self._resolvers()]
        return tuple(address for address in found if not address.is_link_local)

    # --- openings ---

    @asynccontextmanager
    async def open_for(self, resolvers: Sequence[str]) -> AsyncIterator[None]:
        """Let the link's own questions to these resolvers through, for the exit's name."""
        opening = self._filter.resolving([ip_address(address.partition("%")[0]) for address in resolvers])
        entered = False

        def enter() -> None:
            nonlocal entered
            opening.__enter__()
            entered = True

        try:
            await self._change(enter)
            yield
        finally:
            if entered:
                await self._change(opening.__exit__, None, None, None)

    async def pause(self, seconds: int) -> None:
        """Let this machine past the tunnel for so long."""
        await self._change(self._filter.pause, seconds)
        if self._pause_end is not None:
            self._pause_end.cancel()
        self._pause_end = spawn(self._end_pause(seconds + PAUSE_MARGIN), "end of the pause")

    async def _end_pause(self, seconds: float) -> None:
        """The kernel closes the filter by itself; then the connections of the pause are over."""
        await asyncio.sleep(seconds)
        try:
            await self._change(self._filter.end_pause)
        except CryprqError as error:
            _log.warning("connections that were begun in the pause may have to be opened anew: %s", error)
        else:
            self._deletions.soon()

    # --- looking after it ---

    async def look(self) -> str:
        """Compare the table with what was written; follow the resolvers from before, which tell nobody of changes.

        Where that cannot be done, the table is put back as if it were gone, which needs no look.
        """
        try:
            found = await self._change(self._difference)
        except Exception:
            with suppress(CryprqError, OSError):
                await self._restore()
            raise
        if not found:
            await self.update()
        return found

    def _difference(self) -> str:
        self._keep_for_rest()
        return self._filter.difference()

    async def put_back(self) -> None:
        await self._restore()
        if left := self._filter.pause_left():
            _log.info("the pause goes on for %d s", left)

    async def _restore(self) -> None:
        await self._change(self._filter.restore)
        self._deletions.soon()

    async def _delete_ended(self) -> None:
        loop = asyncio.get_running_loop()
        async with self._changing:
            if self._shut:
                return
            delete = await loop.run_in_executor(None, self._filter.ended)
        await loop.run_in_executor(None, delete)

    def status(self) -> KillSwitchStatus:
        """Ask the filter; blocks for some milliseconds. Where it does not answer, nothing is claimed to stand."""
        try:
            return KillSwitchStatus(
                on=self._settings.kill_switch,
                standing=self._filter.standing(),
                lockdown=self._lockdown.on,
                paused=self._filter.paused(),
                kept_in={cause: count.packets for cause, count in self._filter.counters().items()},
            )
        except FilterError as error:
            _log.warning("the kill switch cannot be looked at: %s", error)
            return KillSwitchStatus(on=self._settings.kill_switch)
