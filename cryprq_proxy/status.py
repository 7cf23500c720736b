"""The status of a running client or exit: typed structs that the roles fill in and every reader reads.

    session, lane, exits, dispatcher, tun ... -> ClientStatus | ExitStatus -> to_json -> control socket, dashboard
    control socket -> read -> `cryprq-proxy status`, doctor, leaktest, pairing

A new figure needs one field here, one producer, and one line where it is shown (commands/status/, web/metrics.py or
web/dashboard.js). A new cause of a drop or a refusal needs only a new key of a mapping.

Every field has a default and unknown fields are ignored, so a status of another version can be read. Sizes are in
bytes, times in seconds, points in time in seconds since 1970. Producers update the structs that are not frozen.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from .errors import StreamReason, words_of

type Counts = dict[str, int]
"""Name of a cause -> how often it occurred."""


class Traffic(Struct, kw_only=True, frozen=True):
    """In bytes, or in packets."""

    sent: int = 0
    received: int = 0


class EpochStatus(Struct, kw_only=True, frozen=True):
    """`number` counts the session's epochs from 0. The epoch began `since` seconds ago and was in use for `lasted`
    seconds."""

    number: int = 0
    current: bool = False
    since: float = 0.0
    lasted: float = 0.0
    bytes_sent: int = 0
    bytes_received: int = 0
    exchange: str = "?"
    cipher: str = "?"


class SessionPathStatus(Struct, kw_only=True, frozen=True):
    """A path of a session. `kind` is that of its carrier, or "lane", which has no `number`; `address` the endpoint by
    which a client reaches the exit. `use`: "in use" for the one that carries the streams, "doubted" for one that has
    fallen silent, "down" for a lane that does not work, else "standby"; `why`: of the lane, a part of a sentence.
    `rate`: bytes a second that it sends at most, None until it is known; `loss`: share of the datagrams that it sends;
    `in_flight`: bytes that the peer has not acknowledged. The bytes that it has carried are those of records, or the
    lane's of streams and frames; what went again counts again."""

    number: int | None = None
    kind: str = "?"
    address: str = ""
    use: str = "?"
    why: str = ""
    round_trip: float | None = None
    rate: float | None = None
    loss: float | None = None
    in_flight: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    cipher: str = "?"


class SessionStatus(Struct, kw_only=True, frozen=True):
    """`retained` bytes are kept until the peer acknowledges them. `epochs`: the newest first. `paths`: in the order in
    which they have joined, and then the lane. The last four fields are None while the session has no carrier, and
    `cipher` and `round_trip` are those of the path in use; a `round_trip` is smoothed, and 0 before it is measured."""

    attached: bool = False
    streams: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    retained: int = 0
    rotations: int = 0
    epochs: tuple[EpochStatus, ...] = ()
    paths: tuple[SessionPathStatus, ...] = ()
    cipher: str | None = None
    epoch: int | None = None
    epoch_age: float | None = None
    round_trip: float | None = None


class OffloadStatus(Struct, kw_only=True, frozen=True):
    """The batching that the kernel does on a UDP socket; `reason`: why it does not do the rest."""

    gso: bool = False
    gro: bool = False
    reason: str = ""


class PathCounters(Struct, kw_only=True):
    """Events of a lane's path (lane/path.py); `falls`: how often `up` became false."""

    probes: int = 0
    answered: int = 0
    falls: int = 0
    shrinks: int = 0
    migrations: int = 0


class LaneStatus(Struct, kw_only=True, frozen=True):
    """One side of a datagram lane. `size`: of the largest datagram that passes, and while
    `searching` of the largest so far; `why`: a part of a sentence."""

    up: bool = False
    why: str = "?"
    peer: str = ""
    size: int = 0
    searching: bool = False
    round_trip: float | None = None
    offload: OffloadStatus = OffloadStatus()
    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0
    drops: Counts = {}
    path: PathCounters = msgspec.field(default_factory=PathCounters)


class PacketLinkStatus(Struct, kw_only=True, frozen=True):
    """Packets and datagrams of one link: on its lane, and on its carrier while the lane is down."""

    lane: LaneStatus | None = None
    on_carrier: Traffic = Traffic()
    dropped: Counts = {}


class LaneSocketStatus(Struct, kw_only=True, frozen=True):
    address: str = "?"
    offload: OffloadStatus = OffloadStatus()


class LanesStatus(Struct, kw_only=True, frozen=True):
    """All lanes of an exit. `strangers`: datagrams that belong to no lane."""

    sockets: tuple[LaneSocketStatus, ...] = ()
    strangers: int = 0


# --- system-wide mode -------------------------------------------------------------------------------------------------


class DeviceStatus(Struct, kw_only=True, frozen=True):
    """A TUN device. `reads`: offloads of the packets that the kernel delivers; `writes`: offloads of super-packets that
    are written whole. A super-packet counts as one packet."""

    name: str = "?"
    mtu: int = 0
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    read_packets: int = 0
    read_bytes: int = 0
    written_packets: int = 0
    written_bytes: int = 0
    drops: Counts = {}


class KillSwitchStatus(Struct, kw_only=True, frozen=True):
    """`standing` is False after another program removed it. For `paused` more seconds it lets everything out. With
    `lockdown` a block stands while no client runs."""

    on: bool = False
    standing: bool = False
    lockdown: bool = False
    paused: int = 0
    kept_in: Counts = {}


class DnsCounters(Struct, kw_only=True):
    """Since the start. Each question counts in `questions`, and in at most one of the other counters. `stale`: answered
    from the cache after the end of its life; `local`: special names, and AAAA without IPv6; `merged`: waited for the
    answer to an equal question; `failures` and `overload`: answered SERVFAIL, because no upstream had an answer or too
    many questions waited; `malformed`: refused or dropped unread."""

    questions: int = 0
    cache_hits: int = 0
    stale: int = 0
    local: int = 0
    blocked: int = 0
    merged: int = 0
    upstream: int = 0
    failures: int = 0
    overload: int = 0
    malformed: int = 0


class UpstreamStatus(Struct, kw_only=True):
    """A server that the forwarder asks. `latency` is a moving average, None before the first answer."""

    name: str = "?"
    healthy: bool = True
    latency: float | None = None
    answers: int = 0
    failures: int = 0
    last_error: str = ""


class DnsStatus(Struct, kw_only=True, frozen=True):
    """The forwarder. `resolver`: how the system was set to use it; `waiting`: questions that wait for upstreams;
    `in_use`: the upstream that answered last; `split`: the upstreams of single domains."""

    resolver: str = "?"
    counters: DnsCounters = msgspec.field(default_factory=DnsCounters)
    waiting: int = 0
    cache_entries: int = 0
    cache_bytes: int = 0
    blocklist_names: int = 0
    in_use: str = "?"
    upstreams: tuple[UpstreamStatus, ...] = ()
    split: dict[str, tuple[UpstreamStatus, ...]] = {}


class TunRules(Struct, kw_only=True, frozen=True):
    """How many rules system-wide mode applies, and where. `direct`: the prefixes that rules send past the tunnel, None
    if a few prefixes cannot express them."""

    rules: int = 0
    dns: int = 0
    filter: int = 0
    default: str = "?"
    direct: tuple[str, ...] | None = ()


class RepairStatus(Struct, kw_only=True, frozen=True):
    """A fact that system-wide mode keeps as it set it. `repairs`: how often it was put back; `found`: what stands or
    stood there instead, empty once a look found it as set; `trouble`: why it does not stand, or not for long."""

    name: str = "?"
    repairs: int = 0
    found: str = ""
    trouble: str = ""


class TunStatus(Struct, kw_only=True, frozen=True):
    """System-wide mode of a client. `exits`: addresses and ports to which the link may connect."""

    device: DeviceStatus | None = None
    addresses: tuple[str, ...] = ()
    ipv6: bool = False
    kill_switch: KillSwitchStatus = KillSwitchStatus()
    dns: DnsStatus | None = None
    repairs: tuple[RepairStatus, ...] = ()
    exits: tuple[tuple[str, int], ...] = ()
    uplinks: tuple[str, ...] = ()
    lan: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude_uids: tuple[tuple[int, int], ...] = ()
    exclude_cgroups: tuple[str, ...] = ()
    rules: TunRules = TunRules()


class TunNetworkStatus(Struct, kw_only=True, frozen=True):
    """The network interface of an exit; `clients`: number of sessions with packets."""

    device: DeviceStatus | None = None
    clients: int = 0
    ipv6: bool = False
    repairs: tuple[RepairStatus, ...] = ()
    drops: Counts = {}


# --- client -----------------------------------------------------------------------------------------------------------


class ExitAddress(Struct, kw_only=True, frozen=True):
    peer_id: str = "?"
    address: str = "?"


class CarrierStatus(Struct, kw_only=True, frozen=True):
    """`congestion`: the kernel's congestion control for what is sent, empty if the system names none.
    `connection_round_trip`: by which it was chosen, the kernel's least one, in seconds, of the carrier's TCP connection
    as it was made. That connection may end before the peer, at an upstream proxy or a web server."""

    kind: str = "?"
    address: str = "?"
    why: str = ""
    congestion: str = ""
    connection_round_trip: float | None = None


class KnownExit(ExitAddress, kw_only=True, frozen=True):
    """One of the exits that a client may use; `link` is "up" or "down"."""

    name: str = "?"
    priority: int = 0
    active: bool = False
    pinned: bool = False
    healthy: bool = False
    link: str = "?"
    carrier: CarrierStatus | None = None
    round_trip: float | None = None
    last_error: str | None = None
    session: SessionStatus | None = None
    carriers: int = 0


class ConnectionCounts(Struct, kw_only=True, frozen=True):
    """Connections of applications; `by`: their number for each route that rules gave them; `early`: those that were
    answered before the exit had connected their target, and of them those that were reset because it did not."""

    open: int = 0
    total: int = 0
    by: Counts = {}
    refused: Counts = {}
    early: int = 0
    early_refused: Counts = {}


class OpenConnection(Struct, kw_only=True, frozen=True):
    """An open connection of an application. `id`: the exit's name or "direct", a slash and a number; `protocol`:
    "tcp", "udp", "dns" for this side's questions to the exit's resolver, or "report" for that to the exit itself; `to`:
    as in a rule; `exit`: empty if direct."""

    id: str = "?"
    target: str = "?"
    protocol: str = "?"
    to: str = "?"
    rule: str = ""
    exit: str = ""
    age: float = 0.0
    sent: int = 0
    received: int = 0


class ForwardStatus(Struct, kw_only=True, frozen=True):
    """A local forward: where it listens, its target, and its connections so far."""

    listen: str = "?"
    to: str = "?"
    connections: int = 0


class RulesStatus(Struct, kw_only=True, frozen=True):
    """`names`, `broken`: numbers of names and invalid lines in lists; `error`: why the newest rules are not in use."""

    rules: int = 0
    names: int = 0
    default: str = "?"
    broken: int = 0
    problems: tuple[str, ...] = ()
    loaded_at: float = 0.0
    error: str | None = None


class PeerSessionStatus(SessionStatus, kw_only=True, frozen=True):
    """A session of a client at its exit. `congestion` and `connection_round_trip` are of its carrier, as in
    CarrierStatus. By `clock_off` seconds the client's clock is ahead of this machine's, None if it has not told."""

    peer_id: str = "?"
    link: str = "?"
    congestion: str = ""
    connection_round_trip: float | None = None
    clock_off: float | None = None
    packets: PacketLinkStatus | None = None


class PeerStatus(Struct, kw_only=True, frozen=True):
    """An authorized client, and what was seen of it since the exit's start. `since`: it is connected, and its oldest
    session with a link began then; `address`: where it came from last; `last_seen`: None if it has not come; `bytes`:
    of all its sessions."""

    peer_id: str = "?"
    name: str = ""
    sessions: int = 0
    since: float | None = None
    address: str = ""
    last_seen: float | None = None
    bytes: Traffic = Traffic()


class PeersPage(Struct, kw_only=True, frozen=True):
    """At most 1000 peers of an exit's list, in its order; `next`: the place, counted from 0, at which the next page
    begins, None after the last."""

    peers: tuple[PeerStatus, ...] = ()
    next: int | None = None


class PairingStatus(Struct, kw_only=True, frozen=True):
    """What `cryprq-proxy invite` and `peers` need to know of a running exit. It accepts no invites without the file
    `authorized`."""

    authorized: str | None = None
    public: str = ""
    psk: bool = False
    listen: tuple[str, ...] = ()


class LoggedError(Struct, kw_only=True):
    """A warning or error. `at`: the last time; `count`: how many times it occurred in a row."""

    at: float = 0.0
    level: str = "?"
    text: str = "?"
    count: int = 1


class RoleStatus(Struct, kw_only=True, frozen=True, tag_field="role"):
    """What both roles have. `errors`: the newest first; `logged`: by level; `bytes`: of all links since the start."""

    version: str = "?"
    pid: int = 0
    uptime: float = 0.0
    listen: tuple[str, ...] = ()
    log_level: str = "?"
    errors: tuple[LoggedError, ...] = ()
    logged: Counts = {}
    peer_id: str = "?"
    provider: str = "?"
    bytes: Traffic = Traffic()
    rotations: int = 0


class ClientStatus(RoleStatus, kw_only=True, frozen=True, tag="client"):
    """The link to the exit in use; `exits`, `connections`, `rules` and `tun` are the whole client's. `carriers`:
    number set up so far; `waiting`: requests that wait for the link; `admin`: the dashboard's URL."""

    link: str = "?"
    exit: ExitAddress = ExitAddress()
    carrier: CarrierStatus | None = None
    carriers: int = 0
    waiting: int = 0
    last_error: str | None = None
    session: SessionStatus | None = None
    packets: PacketLinkStatus | None = None
    exits: tuple[KnownExit, ...] = ()
    connections: ConnectionCounts | None = None
    rules: RulesStatus | None = None
    forwards: tuple[ForwardStatus, ...] = ()
    admin: str | None = None
    tun: TunStatus | None = None


class NamesStatus(Struct, kw_only=True, frozen=True):
    """How the exit looks up names. `by`: a part of a sentence; numbers of names being looked up, waiting, and kept."""

    by: str = "?"
    running: int = 0
    waiting: int = 0
    cached: int = 0


class ExitStatus(RoleStatus, kw_only=True, frozen=True, tag="exit"):
    """Numbers: `authorized` of peers, `targets` of connections, `strangers` of connections without a valid first
    flight, `handshakes` of those from there to the verdict. `peers` has at most 1000 entries: those with most sessions
    first, then those that were seen last."""

    authorized: int = 0
    targets: int = 0
    strangers: int = 0
    handshakes: int = 0
    streams_total: int = 0
    streams_refused: Counts = {}
    refused: Counts = {}
    names: NamesStatus | None = None
    lanes: LanesStatus | None = None
    network: TunNetworkStatus | None = None
    sessions: tuple[PeerSessionStatus, ...] = ()
    peers: tuple[PeerStatus, ...] = ()
    pairing: PairingStatus | None = None


# --- what an exit tells about itself ----------------------------------------------------------------------------------

type _Words = Annotated[str, Meta(pattern=r"^[ -~]{0,64}\Z")]
"""From a peer: short, and without control characters."""
type _Moment = Annotated[float, Meta(ge=0, le=1e11)]


class OutwardReport(Struct, kw_only=True, frozen=True):
    """Of one family of addresses: whether the exit has any that could lead to the Internet, whether it has a default
    route, and the global address of its own that targets see; empty where it has none, behind NAT for example."""

    addressed: bool = False
    route: bool = False
    address: _Words = ""


class ResolverReport(Struct, kw_only=True, frozen=True):
    """What became of a name that every resolver finds: empty `problem` if it was found, else the reason in words."""

    problem: _Words = ""
    seconds: _Moment = 0.0

    @property
    def unknown(self) -> bool:
        """Whether the resolver answers that there is no such name: it works, and knows no name of the Internet."""
        return self.problem == words_of(StreamReason.NAME_NOT_FOUND)

    @property
    def works(self) -> bool:
        return not self.problem or self.unknown


class ExitReport(Struct, kw_only=True, frozen=True):
    """The answer of an exit on a REPORT stream. `clock`: its time when it answered; `clock_kept`: whether something
    keeps its clock in step, None if its system does not tell."""

    version: _Words = "?"
    clock: _Moment = 0.0
    clock_kept: bool | None = None
    ipv4: OutwardReport = OutwardReport()
    ipv6: OutwardReport = OutwardReport()
    resolver: ResolverReport = ResolverReport()


class AskedExit(Struct, kw_only=True, frozen=True):
    """A report as the client got it: from the exit `exit`, after `seconds`. The exit's clock is `clock_off` seconds
    ahead of this machine's."""

    exit: str = "?"
    seconds: float = 0.0
    clock_off: float = 0.0
    report: ExitReport = ExitReport()


class TriedTarget(Struct, kw_only=True, frozen=True):
    """What became of a connection to a target: `by` is the route that the rules gave it, `problem` empty if it was
    connected, else the reason in words; `rule`: the one that blocks it."""

    by: str = "?"
    problem: str = ""
    rule: str = ""
    seconds: float = 0.0


type Status = ClientStatus | ExitStatus
type StatusSource = Callable[[], Awaitable[Status]]


def read(told: Any) -> Status:
    """The status from plain JSON values. Raises msgspec.ValidationError if a field has a wrong type."""
    return msgspec.convert(told, ClientStatus | ExitStatus)
