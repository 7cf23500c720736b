"""The exit's packet filter: where packets of clients go, and the address that they go out with.

    input      clients do not reach the exit itself, but for a ping of its tunnel address
    forward    from the tunnel: outwards only, not to other clients; into it: answers only, and by no other device
    sources    NAT: a client's packets leave with the exit's address

The program (tun/exit_network.py) checks source and egress policy of each packet; the check of the source here is a
second line.

The chains judge what comes from or goes to our tunnel device, and accept everything else: the host's own traffic is
the host's matter. The reverse is not so: what another table drops stays dropped, whatever we accept. `warnings` says
so where Docker or a firewall drops forwarded packets.

Packets to the pool of addresses that come in on another device are dropped before they are routed (CVE-2019-14899).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple, Self

from cryprq_proxy.base import leftovers
from cryprq_proxy.base.netlink_watch import filter_changes
from cryprq_proxy.rules.ranges import IPNetwork

from ...firewall.deletions import Deletions
from ...journal import Record
from ...reconciler import Fact
from ...settings import ExitNetworkSettings
from ...system import Withhold
from . import conntrack, nft
from .conntrack import Choose, CtEntry
from .nft import CLAMP, EXIT, REFUSE, Ask, NftError, Run, block, counters, name, replacing
from .standing import Standing

type Delete = Callable[[Choose], object]
"""As conntrack.delete."""

COUNTERS: Final = ("spoofed", "isolated", "local", "unsolicited", "guard", "misrouted", "invalid")
"""What was not let through, by cause: sources outside of the pool; between clients; to the exit itself; into the
tunnel without having been asked for; to the pool from other devices; to the pool by other devices; from clients and
belonging to no connection, so that the address would not be translated."""


class _Pool(NamedTuple):
    version: int
    ip: str
    pool: IPNetwork
    address: IPv4Address | IPv6Address


def _pools(settings: ExitNetworkSettings, ipv6: bool) -> list[_Pool]:
    pools = [_Pool(4, "ip", settings.pool4, settings.own4)]
    if ipv6:
        pools.append(_Pool(6, "ip6", settings.pool6, settings.own6))
    return pools


def script(settings: ExitNetworkSettings, *, ipv6: bool) -> str:
    """The whole table as one transaction; the counters begin at 0. Without `ipv6` this exit refuses it.

    Raises ConfigError for an invalid name of the device.
    """
    tun, pools = name(settings.device), _pools(settings, ipv6)
    lines = counters(COUNTERS, {})
    lines += REFUSE
    for title, rules in (
        ("guard", _guard(tun, pools)),
        ("from_clients", _from_clients(tun, pools, settings.isolate)),
        ("to_clients", _to_clients()),
        ("input", _input(tun, pools)),
        ("forward", _forward(tun, pools)),
        ("sources", _sources(tun, pools)),
    ):
        lines += block(f"chain {title}", rules)
    return replacing(EXIT, lines)


def _guard(tun: str, pools: list[_Pool]) -> Iterable[str]:
    yield "type filter hook prerouting priority raw; policy accept;"
    for family in pools:
        yield f'iifname != {{ {tun}, "lo" }} {family.ip} daddr {family.pool} counter name guard drop'


def _sources_belong(pools: list[_Pool]) -> Iterable[str]:
    """A packet with a wrong source gets no answer, which would go to another machine."""
    for family in pools:
        yield f"{family.ip} saddr != {family.pool} counter name spoofed drop"
    if len(pools) == 1:
        yield "meta nfproto ipv6 counter name spoofed drop"


def _from_clients(tun: str, pools: list[_Pool], isolate: bool) -> Iterable[str]:
    yield from _sources_belong(pools)
    if isolate:
        yield f"oifname {tun} counter name isolated goto refuse"
    else:
        yield f"oifname {tun} accept"
    yield "ct state invalid counter name invalid drop"
    yield CLAMP


def _to_clients() -> Iterable[str]:
    yield "ct state != { established, related } counter name unsolicited drop"
    yield CLAMP


def _input(tun: str, pools: list[_Pool]) -> Iterable[str]:
    yield "type filter hook input priority filter; policy accept;"
    yield f"iifname != {tun} accept"
    yield from _sources_belong(pools)
    yield "ct state established,related accept"
    for family in pools:
        echo = "icmp" if family.version == 4 else "icmpv6"
        yield f"{family.ip} daddr {family.address} {echo} type echo-request accept"
    yield "counter name local goto refuse"


def _forward(tun: str, pools: list[_Pool]) -> Iterable[str]:
    yield "type filter hook forward priority filter; policy accept;"
    # An answer whose address NAT has set back, where another program's route leads to clients.
    for family in pools:
        yield f"oifname != {tun} {family.ip} daddr {family.pool} counter name misrouted drop"
    yield f"iifname {tun} goto from_clients"
    yield f"oifname {tun} goto to_clients"


def _sources(tun: str, pools: list[_Pool]) -> Iterable[str]:
    """By the pool and not by the device: at this hook the device that a packet came in on is not known any more."""
    # A number, and before other programs' rules, which may know the pool's range as something else.
    yield "type nat hook postrouting priority 95; policy accept;"
    for family in pools:
        yield f'oifname != {{ {tun}, "lo" }} {family.ip} saddr {family.pool} masquerade'


class ExitFilter(Fact):
    """The exit's table in the kernel, made by `up`. The journal's undo (nft.py) takes it away."""

    name = "packet filter"
    vital = True
    polled = True
    changes = staticmethod(filter_changes)

    def __init__(self, settings: ExitNetworkSettings, ipv6: bool, run: Run, ask: Ask, delete: Delete) -> None:
        """For `up` only: put the table up. Raises NftError."""
        self._delete = delete
        self._deletions = Deletions(self._delete_untranslated)
        self._gone = False
        """Whether the table is not there as written, as far as is known."""
        self._settings = settings
        self._ipv6 = ipv6
        self._run = run
        self._changing = asyncio.Lock()
        self._standing = Standing(EXIT, ask)
        self._withhold: Withhold = _leave_all
        self._write()

    @classmethod
    def up(
        cls,
        settings: ExitNetworkSettings,
        record: Record,
        *,
        ipv6: bool,
        ours: bool,
        run: Run = nft.run,
        ask: Ask = nft.ask,
        delete: Delete = conntrack.delete,
    ) -> Self:
        """Write the exit's table to the journal and put it up, in place of one that an earlier run left behind.

        `record` is the journal's; `ours` says that an older entry of the journal names the table. Forwarding itself
        (the sysctls) is the caller's. Blocks for some milliseconds. Raises NftError, and ConfigError if the table
        belongs to another program; then nothing was changed.
        """
        nft.claim(EXIT, ours, record, ask)
        made = cls(settings, ipv6, run, ask, delete)
        # Begun while an exit that was killed had no table.
        delete(made._is_untranslated)
        return made

    async def follow(self, *, ipv6: bool) -> None:
        """From now on, carry IPv6 or refuse it. Raises NftError."""
        async with self._changing:
            self._ipv6 = ipv6
            await asyncio.get_running_loop().run_in_executor(None, self._write)

    def tell(self, withhold: Withhold) -> None:
        """From now on, call `withhold` with True when the table does not stand as written, and with False when it does
        and what began without it has been deleted: that leaves untranslated."""
        self._withhold = withhold

    async def look(self) -> str:
        async with self._changing:
            if leftovers.table_stands("exit") is False:
                # Before nft is asked: until it has answered, packets would leave with the clients' own addresses.
                self._gone = True
                self._withhold(True)
            try:
                found = await asyncio.get_running_loop().run_in_executor(None, self._difference)
            except NftError:
                self._gone = True
                self._withhold(True)
                raise
            self._gone = bool(found)
            self._withhold(self._gone or self._deletions.pending)
            return found

    def _difference(self) -> str:
        """Asks twice: where nft fails once, no client is held up for it."""
        try:
            return self._standing.look()
        except NftError:
            return self._standing.look()

    async def put_back(self) -> None:
        async with self._changing:
            await asyncio.get_running_loop().run_in_executor(None, self._write)
            self._gone = False
            self._deletions.soon()

    async def close(self) -> None:
        """Wait for the end of what is being deleted. Nothing may be put back any more."""
        await self._deletions.close()

    async def _delete_untranslated(self) -> None:
        """What began while there was no table is known to conntrack as not translated, for as long as it goes on."""
        await asyncio.get_running_loop().run_in_executor(None, self._delete, self._is_untranslated)
        if not self._deletions.due:
            self._withhold(self._gone)

    def _is_untranslated(self, entry: CtEntry) -> bool:
        source, destination = entry.original.source, entry.original.destination
        pool = self._settings.pool4 if source.version == 4 else self._settings.pool6
        return source in pool and destination not in pool and not entry.is_snat

    def _write(self) -> None:
        self._run(script(self._settings, ipv6=self._ipv6))
        self._standing.written()


def _leave_all(withhold: bool) -> None:
    """Before anybody wants to be told."""


def warnings(tun: str, ask: Ask = nft.ask) -> list[str]:
    """A sentence for each chain of another table that drops forwarded packets unless a rule of it accepts them.

    Tables of the old iptables (iptables-legacy) are not seen. Raises NftError.
    """
    found = []
    for item in ask("list", "chains") or []:
        chain = item.get("chain", {})
        if chain.get("hook") == "forward" and chain.get("policy") == "drop" and chain.get("table") != EXIT:
            where = f"{chain['name']} of table {chain['family']} {chain['table']}"
            found.append(
                f"the packet filter chain {where} drops forwarded packets: clients reach nothing unless a rule "
                f"there accepts what comes from and goes to {tun}"
            )
    return found
