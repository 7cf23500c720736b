"""What system-wide mode needs of an operating system, and the system that it runs on.

    Device            packets in and out, addresses and size
    Routing           everything into the device, but for the exceptions; tells of another network
    ResolverSetting   where programs ask for names
    PacketFilter      the kill switch, its openings, and the end of connections whose reason has ended
    Undo              what undoes the kinds of entries in a role's journal, and what finds changes without a journal

`System` makes them. tun/linux/system.py and tun/macos/system.py fill all of it; nothing else in tun/ knows a program,
file or socket of one system. What a system cannot do is refused by `System.refuse`, in one sentence.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from cryprq_proxy.base.changes import Changes
from cryprq_proxy.base.paths import Role
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.rules.ranges import IPNetwork

from .device.device import OnPacket, PacketDevice
from .firewall.filter_rules import FilterRules
from .firewall.filter_settings import Cgroup, ExitEndpoint, FilterSettings
from .firewall.inbound import Inbound
from .journal import Record, Undoer
from .leaktest.system import LeakTestSystem
from .reconciler import Fact
from .routing.address_pool import Occupied
from .routing.lan import Lan
from .settings import ExitNetworkSettings, TunnelSettings

if TYPE_CHECKING:
    from .dns.forwarder import Forwarder

type LanChanged = Callable[[Lan], Awaitable[None]]
type Withhold = Callable[[bool], None]
"""Called with True while clients' packets would leave untranslated, and with False when they may leave again."""


class Device(PacketDevice):
    """A network device of ours, made down and without addresses: `configure` is the next step."""

    def index(self) -> int:
        """The kernel's number of it; 0 where nothing asks for it. Raises OSError while it has another name."""
        raise NotImplementedError

    async def configure(
        self, addresses: Sequence[IPv4Interface | IPv6Interface]
    ) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """Give it these addresses and no others, its MTU, and bring it up. May be called again.

        Returns the addresses that are set: without IPv6 in this kernel, the IPv4 ones only. Raises ConfigError.
        """
        raise NotImplementedError

    def versions(self) -> frozenset[int]:
        """The IP versions that it can have routes of."""
        raise NotImplementedError

    async def set_mtu(self, mtu: int) -> None:
        """Change the MTU, `MIN_MTU` or more. Raises ConfigError."""
        raise NotImplementedError

    async def difference(self) -> str:
        """What is not as it was configured, in words; nothing if all of it stands. Raises ConfigError."""
        raise NotImplementedError

    async def restore(self) -> None:
        """Configure it again, under its own name. Raises ConfigError."""
        raise NotImplementedError


class Routing(Fact):
    """The routes of one client. After `apply`, also if it failed, the owner looks no more and undoes the journal.

    `look` follows other networks and exceptions by itself, and tells of them by the two callbacks.
    """

    name = "routes and rules"
    lan_changed: LanChanged
    """Gets the local networks when they change."""
    uplink_changed: Callable[[], None]
    """Called when the uplink has another device, gateway or source address, not while there is none."""

    async def apply(self, *, ours: bool = False) -> None:
        """Route all traffic as the settings say. `ours`: the journal names routes of an earlier run, which this takes
        over.

        Raises ConfigError, with nothing changed, if something is missing or others have what is ours. Raises
        CryprqError if the kernel refuses a later change.
        """
        raise NotImplementedError

    async def carry(self, versions: frozenset[int]) -> None:
        """The exit carries these families now; the others are refused at once. Raises CryprqError."""
        raise NotImplementedError

    async def follow_exits(self, addresses: Collection[IPv4Address | IPv6Address]) -> None:
        """The link is dialled at these addresses, past the tunnel. Raises CryprqError."""

    @asynccontextmanager
    async def past(self, addresses: Sequence[str]) -> AsyncIterator[None]:
        """While inside, this program's questions to these resolvers go past the tunnel. Raises CryprqError."""
        yield

    async def stand_aside(self, seconds: int) -> None:
        """For so long, let what is not in the tunnel yet go by the ordinary routes. Raises CryprqError."""

    async def close(self) -> None:
        """End what still works on it; then the journal can undo it."""

    def facts(self, exits: Callable[[], Collection[ExitEndpoint]]) -> Sequence[Fact]:
        """What else is to be kept with it."""
        return ()


class ResolverSetting(Fact):
    """Sends the DNS questions of all programs to given addresses. The journal undoes it."""

    name = "system resolver"
    polled = True
    kind: str
    """For people: "systemd-resolved", "resolv.conf", "scutil" or "left alone"."""

    async def set(self, addresses: Sequence[str], index: int, name: str) -> None:
        """Resolve everything at `addresses` (IP literals) from now on.

        `index` and `name` are the tunnel's interface. May be called again with other addresses. Raises ConfigError,
        with nothing changed.
        """
        raise NotImplementedError

    def upstreams(self) -> tuple[str, ...]:
        """The earlier resolvers, as known now: IP literals, IPv6 ones perhaps with a zone; may be empty."""
        raise NotImplementedError

    async def out_of_reach(self, addresses: Sequence[str]) -> str:
        """Why programs' questions would not reach a forwarder at `addresses` if nothing were set; empty if they would.

        Raises ConfigError.
        """
        return ""

    async def stand_aside(self, seconds: int) -> None:
        """For so long, let programs ask the earlier resolvers. Raises CryprqError."""

    async def close(self) -> None:
        """Look after it no more; what is set stays until the journal is undone."""


class FilterError(ConfigError):
    """The packet filter is missing, not permitted, not supported or refuses what it is given; nothing was changed."""


class Count(NamedTuple):
    """What a rule has seen."""

    packets: int
    bytes: int


NO_COUNTS: Final[Mapping[str, Count]] = {}


class PacketFilter(Protocol):
    """The client's filter in the kernel. It stays if this process ends without undoing it.

    All methods block for some milliseconds and raise FilterError.
    """

    def update(self, settings: FilterSettings) -> bool:
        """From now on it is that of `settings`, in one step; what is open stays open and the counters go on. Returns
        whether anything has changed."""
        ...

    def restore(self) -> None:
        """Put it back if another program has removed or changed it. What is left of a pause is put back too."""
        ...

    def difference(self) -> str:
        """What another program has done to it, in words; nothing if it stands as written."""
        ...

    def standing(self) -> bool:
        """Whether the kernel has it and asks it."""
        ...

    def ended(self) -> Callable[[], object]:
        """What ends the connections whose reason has ended under the present settings; it may run beside further
        changes."""
        ...

    def at_rest(self) -> Any:
        """What this system's lockdown is made from; None where it has none."""
        ...

    def counters(self) -> Mapping[str, Count]:
        """What was kept in, by cause; zeros if it does not stand."""
        ...

    def resolving(self, resolvers: Iterable[IPv4Address | IPv6Address]) -> AbstractContextManager[None]:
        """While inside, the link may ask these resolvers on port 53. May be entered again before it is left."""
        ...

    def pause(self, seconds: int) -> None:
        """New connections of this machine go past the tunnel for so long, whether this process lives or not. Raises
        LocalError if out of range."""
        ...

    def end_pause(self) -> None:
        """Close what is over by now, with the connections that were begun in the pause."""
        ...

    def pause_left(self) -> int:
        """Whole seconds that the pause was asked for from now on, whatever another program has done."""
        ...

    def paused(self) -> int:
        """Whole seconds for which the kernel lets everything out."""
        ...


class LockdownBlock(Protocol):
    """The block that stands while no client runs."""

    @property
    def on(self) -> bool: ...

    def keep(self, at_rest: Any) -> None:
        """Where it is on, follow the running client's filter: PacketFilter.at_rest. A failure is logged, once."""
        ...


class NoLockdown:
    """Where the system has none."""

    on = False

    def keep(self, at_rest: Any) -> None:
        """Nothing follows."""


class LetOut(NamedTuple):
    """What the filter of lockdown lets out, for a leak test."""

    exits: tuple[tuple[str, int], ...]
    allowed: tuple[IPNetwork, ...]
    """The local network and exclusions, as far as the filter lets them out."""


class Undo(NamedTuple):
    """How the changes of one role are undone."""

    undoers: Mapping[str, Undoer]
    """By the kind of the journal's entry."""
    filter: str
    """The kind of the packet filter, which may stay after a failure."""
    routes: str
    """The kind of the routes that a start takes over from a killed run."""
    by_mark: Sequence[Callable[[], str]]
    """Each undoes what bears a mark of ours though no journal names it, and returns what that was, in words."""
    stands: Callable[[], bool]
    """Whether a mark stands that its step may have left."""
    lost: Callable[[Collection[str]], str]
    """A sentence about kernel settings that stand as we set them, but for the given names; empty if there are none."""
    settings: str
    """The kind of kernel settings."""


class ExitSide(Protocol):
    """All that an exit has set in the kernel. The journal undoes it."""

    ipv6: bool
    """Whether IPv6 is carried."""

    def facts(self) -> Sequence[Fact]:
        """What is to be kept."""
        ...

    def tell_of_table(self, withhold: Withhold) -> None:
        """From now on, tell when clients' packets would leave untranslated."""
        ...

    async def follow_uplinks(self, tell: Callable[[], None]) -> None:
        """Forward from the present uplinks, and carry IPv6 while there is one, until cancelled.

        `tell` is called after `ipv6` has changed.
        """
        ...

    async def close(self) -> None:
        """End what still works on it; then the journal can undo it. Nothing may be put back any more."""
        ...


class Change(NamedTuple):
    """One change that a start makes, for people."""

    what: str
    """A command line, or what is written where."""
    undo: str
    """What takes it back; empty where it ends with the device."""
    text: str = ""
    """What is given to the command, or stands in the file."""


class System:
    """One operating system."""

    name: str
    """For people."""
    proved = False
    """Whether it has been tried on real machines; else a start needs --experimental."""
    mark: int
    """SO_MARK of sockets that leave past the tunnel; 0 where they need none."""
    link_changes: Callable[[], Changes]
    """Told of changes of links, addresses, routes and rules."""
    filter_changes: Callable[[], Changes]
    """Told of changes of packet filters."""
    leak_test: LeakTestSystem
    unseen = ""
    """A sentence about what a dry run cannot see without root."""
    has_own_page = True
    """Whether our own page can be there: every address of 127.0.0.0/8 is this machine's."""

    # --- the client ---

    def refuse(self, settings: TunnelSettings, rules: FilterRules) -> None:
        """Raise ConfigError for what this system cannot do, without touching it."""

    def prepare(self, settings: TunnelSettings) -> None:
        """Find out whether this machine has what the settings need, and warn; blocks. Raises ConfigError."""

    def open_device(self, settings: TunnelSettings | ExitNetworkSettings) -> Device:
        """Make the device, whose name may differ from that of the settings. Raises ConfigError."""
        raise NotImplementedError

    async def read_lan(self, own: str) -> Lan:
        """The local networks; `own` is the TUN device, which may be missing. Raises CryprqError."""
        raise NotImplementedError

    def read_inbound(self) -> Inbound:
        """The connections of this moment that came in from outside."""
        raise NotImplementedError

    def routing(
        self, settings: TunnelSettings, versions: frozenset[int], record: Record, lan_changed: LanChanged
    ) -> Routing:
        """`versions`: the families that enter the device; the other one is refused."""
        raise NotImplementedError

    async def resolver(self, record: Record, *, leave: bool, state: Path) -> ResolverSetting:
        """The system's resolver, not set yet. Raises ConfigError."""
        raise NotImplementedError

    def packet_filter(
        self, settings: FilterSettings, record: Record, *, ours: bool, keep_inbound: bool
    ) -> PacketFilter:
        """Write the filter to the journal and put it up, in place of one that an earlier run left behind; blocks.

        `ours` says that an older entry of the journal names it. `keep_inbound`: connections from outside, those open
        now included, go on past the tunnel. Raises ConfigError if it belongs to another program; then nothing was
        changed.
        """
        raise NotImplementedError

    def filter_left(self, *, recorded: bool) -> bool:
        """Whether a filter of an earlier run stands; `recorded`: the journal names one."""
        raise NotImplementedError

    has_lockdown = False

    def lockdown(self, state: Path) -> LockdownBlock:
        return NoLockdown()

    def lift_lockdown(self, state: Path) -> str:
        """End it, wherever a part of it is left. Returns what was lifted, in words; empty for nothing. Raises
        CryprqError."""
        return ""

    def cgroups(self, paths: Sequence[str]) -> frozenset[Cgroup]:
        """Those of these control groups that are there."""
        return frozenset()

    def forwarder_places(
        self, addresses: Sequence[IPv4Interface | IPv6Interface]
    ) -> tuple[Sequence[str], int]:
        """Where the DNS forwarder listens for a device with these addresses: IP literals, and the port."""
        raise NotImplementedError

    def on_packet(self, forwarder: Forwarder, device: Device, then: OnPacket) -> OnPacket:
        """What takes the device's packets: `then`, or what looks for questions first."""
        return then

    # --- the exit ---

    async def read_occupied(self, own: str) -> Occupied:
        """What addresses are in use on and around this machine, but for those of the exit's device `own`. Raises
        CryprqError."""
        raise NotImplementedError

    async def exit_side(
        self, settings: ExitNetworkSettings, device: Device, record: Record, *, recorded: Collection[str]
    ) -> ExitSide:
        """Set all that an exit needs in the kernel. `recorded`: the kinds of what stands in the journal already.
        Raises CryprqError."""
        raise NotImplementedError

    def exit_warnings(self, settings: ExitNetworkSettings) -> Sequence[str]:
        """A sentence for each thing here that keeps clients from the network. Raises CryprqError."""
        return ()

    # --- undo, leak test ---

    def undo(self, role: Role, state: Path) -> Undo:
        raise NotImplementedError

    def let_out(self) -> LetOut:
        """What lockdown lets out, while no client runs who could be asked. Raises ConfigError where a test would prove
        nothing."""
        raise NotImplementedError

    # --- dry run ---

    async def client_changes(
        self, settings: TunnelSettings, closed: FilterSettings, addressed: FilterSettings
    ) -> Sequence[Change]:
        """What a start of the client would change, in order. Raises CryprqError.

        The filter is made from `closed` at first, and from `addressed` when the exit has handed out addresses.
        """
        raise NotImplementedError

    async def exit_changes(self, settings: ExitNetworkSettings) -> Sequence[Change]:
        """What a start of the exit would change, in order. Raises CryprqError."""
        raise NotImplementedError
