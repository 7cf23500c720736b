"""The client's system-wide mode: from the first rule of the filter to the last thing undone.

    Tunnel.start     the exits' names, if no filter of an earlier run stands
                     journal: undo what a killed process left, but for the filter and the routes
                     filter up: nothing gets out any more but the link and the LAN
                     device up, routes: they hold everything in where another program removes the filter
    Tunnel.resolve   the exits' names, through the filter's narrow opening
    Tunnel.run       link up, addresses from the exit -> interface.py: forwarder, packets, system resolver
                     reconciler.py puts back what other programs change, the filter from its start on
    Tunnel.close     all of it in reverse

Each change stands in the journal before it is made. A clean stop undoes the journal, as `cleanup` and the next start do
after a crash: there is one undo. The filter comes first and goes last. A stop that nobody asked for leaves the filter
in place, as a crash does; so does a start that fails where an earlier run had left it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final

from msgspec import structs

from cryprq_proxy.address import Destination
from cryprq_proxy.base import leftovers
from cryprq_proxy.base.program import to_run
from cryprq_proxy.client.exits import Exits
from cryprq_proxy.errors import ConfigError, CryprqError, reason_of
from cryprq_proxy.lane.slices import Run
from cryprq_proxy.rules.engine import RuleSet
from cryprq_proxy.session.wire import MAX_TAKEN
from cryprq_proxy.status import Traffic, TunStatus

from .dns.setup import check
from .firewall.filter_settings import ExitEndpoint
from .firewall.kill_switch import KillSwitch
from .firewall.own_page import ServePage
from .firewall.policy import Policy, contradiction
from .interface import Foundation, NoInterface, TunInterface, read_blocked
from .journal import Journal, undo
from .reconciler import Reconciler
from .resolver.bootstrap import Bootstrap, resolve_early
from .resolver.known_addresses import FILE, KnownAddresses
from .routing.exit_endpoints import ExitEndpoints
from .routing.lan import Network
from .routing.tunnel_addresses import TunnelAddresses
from .settings import CLIENT_JOURNAL, TunnelSettings
from .system import ResolverSetting, System

_log = logging.getLogger(__name__)

RESOLVING_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class TunnelPlan:
    """What system-wide mode is to do, checked as far as that goes without touching this machine."""

    system: System
    settings: TunnelSettings
    exits: tuple[Destination, ...]
    """All places where the link may be dialled."""
    policy: Policy

    @classmethod
    def of(
        cls, system: System, settings: TunnelSettings, exits: Sequence[Destination], rules: RuleSet
    ) -> TunnelPlan:
        """Raises ConfigError for settings that contradict each other or that this system cannot keep, and for such
        rules."""
        policy = checked_policy(system, settings, rules)
        check(settings.dns)
        return cls(system, settings, tuple(exits), policy)

    @property
    def mark(self) -> int:
        """SO_MARK of the link's own sockets; 0 for none."""
        return self.system.mark

    async def start(self) -> Tunnel:
        return await Tunnel.start(self)

    async def resolver(self, journal: Journal) -> ResolverSetting:
        """The system's resolver, not set yet."""
        settings = self.settings
        return await self.system.resolver(journal.record, leave=settings.leave_resolver, state=settings.state)

    async def known_addresses(self, journal: Journal, *, closed: bool) -> KnownAddresses:
        """The addresses of the exits' names: the last ones, or present ones where no filter is `closed`.

        Only then a resolver on this machine gets out. Raises ConfigError.
        """
        settings = self.settings
        names = {exit.host for exit in self.exits if not exit.is_ip}
        known = KnownAddresses.load(settings.state / FILE, names)
        if names and not closed and not journal.entries():
            system_resolver = await self.resolver(journal)
            await resolve_early(names, system_resolver.upstreams(), known, mark=self.mark)
        return known


def checked_policy(system: System, settings: TunnelSettings, rules: RuleSet) -> Policy:
    """Raises ConfigError for rules that system-wide mode with these settings cannot keep."""
    policy = Policy(rules)
    system.refuse(settings, policy.filter)
    wrong = contradiction(rules, lan=settings.lan, include=bool(settings.include))
    if wrong:
        raise ConfigError(wrong)
    return policy


class Tunnel:
    """The ClientNetwork of system-wide mode (client/packet_ports.py), made by `start` with the filter closed.

    Give it to the Client, then `run`, then await `lost`; `close` in any case.
    """

    def __init__(
        self, foundation: Foundation, bootstrap: Bootstrap, ending: JournalEnding, stack: AsyncExitStack
    ) -> None:
        """`stack` undoes what stands already."""
        self._settings = foundation.settings
        self._system = foundation.system
        self._foundation = foundation
        self._kill_switch = foundation.kill_switch
        self._bootstrap = bootstrap
        self._ending = ending
        self._stack = stack
        self._reconciler = Reconciler(
            [
                foundation.kill_switch,
                *foundation.routes.facts(foundation.kill_switch.exits.known),
                foundation.routes,
            ]
        )
        stack.push_async_callback(self._reconciler.stop)
        self._offered = TunnelAddresses()
        self._addressed = asyncio.Event()
        self._refused: tuple[Network, ...] = ()
        """Local networks that held an address of the exit."""
        self._link_up = True
        self._interface = NoInterface()
        self._lost: asyncio.Future[OSError] = asyncio.get_running_loop().create_future()
        self.fail_closed = ending.fail_closed
        """Whether the kill switch is to stay after a failure."""

    @classmethod
    async def start(cls, plan: TunnelPlan) -> Tunnel:
        """Close the filter. Raises ConfigError, with nothing changed, where this machine lacks something."""
        system, settings = plan.system, plan.settings
        if system.lockdown(settings.state).on and not settings.kill_switch:
            raise ConfigError(
                "--kill-switch off lets everything out, which lockdown is to hold in: leave it out, or call "
                + leftovers.LOCKDOWN_LIFTS
            )
        async with AsyncExitStack() as stack:
            journal = Journal(settings.state / CLIENT_JOURNAL)
            stack.callback(journal.close)
            stack.enter_context(leftovers.claimed("client"))
            left = {entry["kind"] for entry in journal.entries()}
            how = system.undo("client", settings.state)
            ours = how.filter in left
            left_closed = system.filter_left(recorded=ours)
            system.prepare(settings)
            device = system.open_device(settings)
            stack.callback(device.close)
            settings = replace(settings, device=device.name)
            lan = await system.read_lan(settings.device)
            known = await plan.known_addresses(journal, closed=left_closed)
            ending = JournalEnding(journal, system, settings, fail_closed=left_closed)
            stack.push(ending.undo)
            kill_switch = KillSwitch(
                system, settings, ExitEndpoints(plan.exits), plan.policy, lan, journal.record, ours=ours
            )
            stack.push_async_callback(kill_switch.shut)
            # Once more, so that it goes before the filter.
            stack.callback(device.close)
            ending.undo_all_but({how.filter, how.routes}, "what an earlier run changed could not be undone")
            await device.configure(())
            routing = system.routing(settings, device.versions(), journal.record, kill_switch.follow_lan)
            stack.push_async_callback(routing.close)
            await routing.apply(ours=how.routes in left)
            await routing.follow_exits(addresses_of(kill_switch))
            system_resolver = await plan.resolver(journal)
            await kill_switch.follow_resolvers(system_resolver.upstreams)

            @asynccontextmanager
            async def opening(resolvers: Sequence[str]) -> AsyncIterator[None]:
                async with kill_switch.open_for(resolvers), routing.past(resolvers):
                    yield

            bootstrap = Bootstrap(system_resolver.upstreams, opening, mark=plan.mark, known=known)
            foundation = Foundation(system, settings, kill_switch, system_resolver, device, routing)
            return cls(foundation, bootstrap, ending, stack.pop_all())

    async def resolve(self, name: str) -> Sequence[str]:
        """The Resolve of the link: an exit's name, asked for past the tunnel. Raises CryprqError.

        An IPv4 address is one without a route; the filter lets its translation out as well.
        """
        async with asyncio.timeout(RESOLVING_SECONDS):
            try:
                addresses = await self._bootstrap.translate(IPv4Address(name))
            except ValueError:
                addresses = await self._bootstrap.resolve(name)
        await self._kill_switch.follow_exit(name, addresses)
        await self._foundation.routes.follow_exits(addresses_of(self._kill_switch))
        self._reconciler.wake()
        return addresses

    async def run(self, link: Exits) -> None:
        """Route everything into the tunnel, as soon as the exit has handed out addresses. Raises CryprqError."""
        await self._addressed.wait()
        offered = self._offered
        if offered.ipv4 is None:
            raise CryprqError(self._no_address())
        interface = await TunInterface.start(self._foundation, link, offered, self._lost.set_result)
        self._stack.push_async_callback(interface.close)
        self._interface = interface
        # Both may have changed meanwhile.
        interface.offer(self._offered)
        if not self._link_up:
            interface.link_changed(False)

    async def lost(self) -> None:
        """Return never: raise CryprqError when another program has removed the device."""
        # Not cancelled with its caller: the device may still be lost while everything is undone.
        error = await asyncio.shield(self._lost)
        stays = "; the kill switch stands until then" if self._settings.kill_switch else ""
        raise CryprqError(
            f"another program removed the device {self._settings.device} ({reason_of(error)}); "
            f"start {to_run('--tun')} again{stays}"
        )

    async def close(self, *failure: Any) -> None:
        """As __aexit__: undo everything, in reverse. After a failure the kill switch stays if `fail_closed` is set.

        Raises CryprqError for what could not be undone.
        """
        self._ending.fail_closed = self.fail_closed
        await self._stack.__aexit__(*failure)

    # --- what the link says (ClientNetwork) ---

    def received(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        self._interface.write_run(buffer, start, end, run)

    def addressed(self, ipv4: bytes, ipv6: bytes) -> None:
        self._offered = TunnelAddresses.of(ipv4, ipv6)
        self._addressed.set()
        if self._offered.ipv4 is None and self._refused:
            _log.error("%s", self._no_address())
        else:
            self._interface.offer(self._offered)

    def collisions(self, ipv4: bytes, ipv6: bytes) -> Sequence[Network]:
        """Those of the local networks that hold an address which the exit hands out."""
        offered = TunnelAddresses.of(ipv4, ipv6)
        found = offered.held_by(self._kill_switch.lan)
        if found:
            _log.warning(
                "the exit hands out %s, which lies in a local network here (%s): it is asked for another address",
                ", ".join(str(interface.ip) for interface in offered.interfaces()),
                ", ".join(map(str, found)),
            )
            # All that were refused, so that the next address lies in none of them either.
            self._refused = tuple(dict.fromkeys((*found, *self._refused)))[:MAX_TAKEN]
            return self._refused
        return ()

    def lets_out(self, address: Destination) -> bool:
        """Whether the filter does; an address that an exit names opens nothing."""
        wanted = ExitEndpoint(ip_address(address.host), address.port)
        return wanted in self._kill_switch.exits.known()

    def _no_address(self) -> str:
        if not self._refused:
            return "the exit carries no packets at the moment; its log says why"
        return (
            "the exit has no address outside of the local networks here "
            f"({', '.join(map(str, self._refused))}): its operator must choose another pool (tun.pool4)"
        )

    def link_changed(self, up: bool) -> None:
        self._link_up = up
        self._interface.link_changed(up)

    def lane_changed(self) -> None:
        self._interface.lane_changed()

    # --- commands ---

    async def apply_rules(self, rules: RuleSet) -> None:
        """Other rules, for connections and questions from now on. Raises CryprqError; then those from before stay."""
        await self._kill_switch.follow_policy(checked_policy(self._system, self._settings, rules))

    async def follow_exits(self, exits: Sequence[Destination]) -> None:
        """Let links out to these places, and to no others. Raises CryprqError."""
        await self._kill_switch.follow_exits(exits)
        await self._foundation.routes.follow_exits(addresses_of(self._kill_switch))
        self._reconciler.wake()

    async def read_names(
        self, blocklists: Sequence[Path], block: Sequence[str], allow: Sequence[str]
    ) -> Callable[[], None]:
        """Read the names that the forwarder blocks. What is returned puts them in force. Raises ConfigError."""
        names = await read_blocked(blocklists, block, allow)

        def apply() -> None:
            foundation = self._foundation
            dns = replace(
                foundation.settings.dns, blocklists=tuple(blocklists), block=tuple(block), allow=tuple(allow)
            )
            self._foundation = replace(foundation, settings=replace(foundation.settings, dns=dns))
            self._interface.block(names)

        return apply

    async def pause(self, seconds: int) -> None:
        """Let this machine past the tunnel for so long. Raises CryprqError."""
        await self._kill_switch.pause(seconds)
        await self._foundation.routes.stand_aside(seconds)
        await self._foundation.resolver.stand_aside(seconds)

    async def open_page(self, serve: ServePage) -> int:
        return await self._interface.open_page(serve)

    def traffic(self) -> Traffic:
        return self._interface.traffic()

    async def status(self) -> TunStatus:
        """What `cryprq-proxy status` shows, and `cryprq-proxy leaktest` must know."""
        settings, kill_switch = self._settings, self._kill_switch
        interface = self._interface.status()
        return structs.replace(
            interface,
            repairs=(*self._reconciler.status(), *interface.repairs),
            kill_switch=await asyncio.get_running_loop().run_in_executor(None, kill_switch.status),
            exits=tuple(sorted((str(exit.address), exit.port) for exit in kill_switch.exits.known())),
            uplinks=tuple(sorted(kill_switch.lan.uplinks)),
            lan=tuple(map(str, kill_switch.lan.prefixes)) if settings.lan else (),
            exclude=tuple(map(str, settings.exclude)),
            include=tuple(map(str, settings.include)),
            exclude_uids=settings.exclude_uids,
            exclude_cgroups=settings.exclude_cgroups,
            rules=kill_switch.policy.status(),
        )


def addresses_of(kill_switch: KillSwitch) -> frozenset[IPv4Address | IPv6Address]:
    """Where the filter lets the link be dialled."""
    return frozenset(exit.address for exit in kill_switch.exits.known())


class JournalEnding:
    """Undoes the journal at the end. After a failure the kill switch may stay; while lockdown is on, its block stands
    after every end."""

    def __init__(
        self, journal: Journal, system: System, settings: TunnelSettings, *, fail_closed: bool
    ) -> None:
        self._journal = journal
        self._how = system.undo("client", settings.state)
        self._lockdown = system.lockdown(settings.state)
        self._kill_switch = settings.kill_switch
        self.fail_closed = fail_closed

    def undo(self, *failure: Any) -> None:
        """As __exit__. Raises CryprqError for what could not be undone."""
        if failure[0] is None or not self.fail_closed or not self._kill_switch:
            undo(self._journal, self._how.undoers)
            if self._lockdown.on:
                _log.warning("%s", leftovers.LOCKDOWN_STANDS)
            return
        if self._lockdown.on:
            self.undo_all_but(set(), "not everything could be undone")
            _log.warning("%s", leftovers.LOCKDOWN_STANDS)
            return
        self.undo_all_but({self._how.filter}, "not everything could be undone")
        _log.warning(
            "the kill switch stands: nothing gets out until %s runs again, or %s",
            to_run("--tun"),
            to_run("cleanup"),
        )

    def undo_all_but(self, kinds: set[str], complaint: str) -> None:
        """A failure is logged behind `complaint`, and its entry stays in the journal for the next time."""
        try:
            undo(self._journal, self._how.undoers, keep=kinds)
        except CryprqError as error:
            _log.warning("%s: %s", complaint, error)
