"""The system's resolver on macOS: a service of our own in the dynamic store, whose DNS dictionary is for all names.

    State:/Network/Service/cryprq-proxy/DNS    ServerAddresses           the forwarder
                                               SupplementalMatchDomains  the empty domain, which is every name
                                               SupplementalMatchOrders   before all others

The settings of the other services stay as they are, so that nothing of theirs has to be put back: the earlier resolvers
are read from them (`upstreams`), and our key alone is removed. configd tells mDNSResponder of each change; the caches
are emptied beside that. The store is lost at a reboot.

Another program may remove or change the key: scutil tells no events to one that does not stay, so it is looked at each
second. After a pause, in which the key is away, it is put back here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Final

from cryprq_proxy.base.macos_marks import RESOLVER_KEY
from cryprq_proxy.base.resolv_conf import MAX_NAMESERVERS
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import ConfigError, CryprqError

from ..journal import Entry, Record, Undoer, same_boot
from ..resolver.left_alone import LeftAlone
from ..routing.lan import is_private
from ..system import ResolverSetting
from . import programs, scutil
from .programs import Command, ProgramError, Run

_log = logging.getLogger(__name__)

KIND: Final = "mac_resolver"
"""Of this module's entries in the journal; the other field is `addresses`."""
GLOBAL_KEY: Final = "State:/Network/Global/DNS"
"""The resolver of the primary service."""
MAX_ADDRESSES: Final = 8
ORDER: Final = "1"
"""Of our match: the lowest is asked first."""
FLUSH: Final = (Command(("dscacheutil", "-flushcache")), Command(("killall", "-HUP", "mDNSResponder")))
"""What empties the two caches of names."""


class ScutilResolver(ResolverSetting):
    """Through the dynamic store."""

    kind = "scutil"

    def __init__(self, record: Record, run: Run = programs.run) -> None:
        self._record = record
        self._run = run
        self._addresses: tuple[str, ...] = ()
        self._recorded: tuple[str, ...] = ()
        """What the journal knows: it need not grow with each change back."""
        self._upstreams: tuple[str, ...] | None = None
        self._aside: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    async def set(self, addresses: Sequence[str], index: int, name: str) -> None:
        """Let all names be resolved at `addresses` (IP literals). The interface is not used. Raises ConfigError."""
        wanted = tuple(str(ip_address(address)) for address in addresses)
        async with self._changing:
            await asyncio.to_thread(self._read_upstreams)
            if self._recorded != wanted:
                self._record({"kind": KIND, "addresses": list(wanted)})
                self._recorded = wanted
            before, self._addresses = self._addresses, wanted
            if self._aside is not None:
                return
            try:
                await asyncio.to_thread(self._apply)
            except CryprqError as error:
                self._addresses = before
                await asyncio.to_thread(_take_away_quietly, self._run)
                raise ConfigError(f"the resolver of this system cannot be set: {error}") from None

    async def look(self) -> str:
        if not self._addresses or self._aside is not None:
            return ""
        async with self._changing:
            return await asyncio.to_thread(self._difference)

    async def put_back(self) -> None:
        async with self._changing:
            if self._addresses and self._aside is None:
                await asyncio.to_thread(self._apply)

    def upstreams(self) -> tuple[str, ...]:
        if self._upstreams is None:
            self._read_upstreams()
        return self._upstreams or ()

    async def out_of_reach(self, addresses: Sequence[str]) -> str:
        reached = {ip_address(address).version for address in addresses}
        await asyncio.to_thread(self._read_upstreams)
        servers = [ip_address(server) for server in self.upstreams()]
        # Questions to the local network do not enter the device; those of a server on this machine may.
        if any(
            each.is_loopback or (each.version in reached and not is_private(ip_network(each.packed)))
            for each in servers
        ):
            return ""
        return (
            "the resolvers of this system are on the local network, or there are none, and questions to port 53 do "
            f"not go there; name another one in the network's settings, for example {addresses[0]}"
        )

    async def stand_aside(self, seconds: int) -> None:
        async with self._changing:
            if not self._addresses:
                return
            await asyncio.to_thread(_take_away, self._run)
            if self._aside is not None:
                self._aside.cancel()
            self._aside = spawn(self._stand_again(seconds), "end of the pause of the resolver")

    async def _stand_again(self, seconds: int) -> None:
        await asyncio.sleep(seconds)
        async with self._changing:
            self._aside = None
            try:
                await asyncio.to_thread(self._apply)
            except CryprqError as error:
                # The reconciler tries again.
                _log.warning("the resolver is not back after the pause yet: %s", error)

    async def close(self) -> None:
        if self._aside is not None:
            self._aside.cancel()

    def _apply(self) -> None:
        scutil.set_key(
            self._run,
            RESOLVER_KEY,
            {
                "ServerAddresses": ("*", *self._addresses),
                "SupplementalMatchDomains": ("*", '""'),
                "SupplementalMatchOrders": ("*", "#", ORDER),
            },
        )
        if found := self._difference():
            raise ProgramError(f"scutil has taken the setting, but there are {found}")
        flush(self._run)

    def _difference(self) -> str:
        """What stands under our key, in words; nothing if it is ours."""
        self._read_upstreams()
        found = scutil.show(self._run, RESOLVER_KEY)
        if found is None:
            return "no servers of ours"
        if _addresses(found) != self._addresses:
            return "other servers in our setting"
        if found.get("SupplementalMatchDomains") != [""]:
            return "other domains in our setting"
        return ""

    def _read_upstreams(self) -> None:
        """Raises nothing: what cannot be read is as it was."""
        try:
            found = _addresses(scutil.show(self._run, GLOBAL_KEY) or {})
            servers = self._others(found) or self._others(scutil.nameservers(self._run))
        except ProgramError as error:
            _log.debug("the earlier resolvers cannot be read: %s", error)
            return
        self._upstreams = servers

    def _others(self, found: Sequence[str]) -> tuple[str, ...]:
        servers = [address for address in dict.fromkeys(found) if _literal(address)]
        return tuple(each for each in servers if each not in self._addresses)[:MAX_NAMESERVERS]


async def choose(record: Record, *, leave: bool = False, run: Run = programs.run) -> ResolverSetting:
    """The setting of this system, or one that changes nothing if `leave`. What an earlier run without its journal has
    left is taken away. Raises CryprqError."""
    if await asyncio.to_thread(take_away_left, run):
        _log.info("the resolver was left by an earlier run; it is as before now")
    found = ScutilResolver(record, run)
    return LeftAlone(found) if leave else found


def take_away_left(run: Run = programs.run) -> str:
    """Remove our setting though no journal names it. Returns what that was, in words. Raises ProgramError."""
    if scutil.show(run, RESOLVER_KEY) is None:
        return ""
    _take_away(run)
    return "resolver"


def undoers(run: Run = programs.run) -> dict[str, Undoer]:
    """For the journal's `undo`."""
    return {KIND: partial(_undo, run)}


def _undo(run: Run, entry: Entry) -> None:
    """Remove our setting, if it is there; after a reboot it is gone. Raises ConfigError, ProgramError."""
    addresses: Any = entry.get("addresses")
    if (
        not isinstance(addresses, list)
        or not 0 < len(addresses) <= MAX_ADDRESSES
        or not all(isinstance(each, str) and _literal(each) for each in addresses)
    ):
        raise ConfigError("the journal holds an entry for the resolver that this program did not write")
    if same_boot(entry) and scutil.show(run, RESOLVER_KEY) is not None:
        _take_away(run)


def _take_away(run: Run) -> None:
    scutil.remove(run, RESOLVER_KEY)
    if scutil.show(run, RESOLVER_KEY) is not None:
        raise ProgramError(f"scutil does not remove {RESOLVER_KEY}: try again as root")
    flush(run)


def _take_away_quietly(run: Run) -> None:
    """After a failure, of which the person is told."""
    try:
        _take_away(run)
    except ProgramError as error:
        _log.debug("the resolver is not taken away: %s", error)


def flush(run: Run) -> None:
    """Let the system forget the names that it knows. That it cannot is no failure: they grow old."""
    for command in FLUSH:
        try:
            programs.change(run, command)
        except ProgramError as error:
            _log.debug("a cache of names is not emptied: %s", error)


def _addresses(found: dict[str, Any]) -> tuple[str, ...]:
    servers = found.get("ServerAddresses", [])
    return tuple(servers) if isinstance(servers, list) else ()


def _literal(address: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(address)
    except ValueError:
        return None
