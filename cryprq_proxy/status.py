"""The status of a running client or exit, as typed structs: the roles fill them in, every reader takes attributes.

    session, lane, exits, dispatcher, tun ... -> ClientStatus | ExitStatus -> encode -> control socket, dashboard
    control socket -> read -> `cryprq-proxy status`, doctor, leaktest, pairing

A new figure is one field here, one producer, and one line where it is shown (commands/status/, web/metrics.py or
web/dashboard.js); a new cause of a drop or a refusal is nothing but a new key of a mapping.

Every field has a default and unknown fields are ignored, so a status of another version can be read. Sizes are in
bytes, times in seconds, points in time in seconds since 1970; what is not frozen is counted up in place.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec import Struct

type Counts = dict[str, int]
"""How often each cause came up: names of causes as keys."""


# --- session ----------------------------------------------------------------------------------------------------------


class Traffic(Struct, kw_only=True, frozen=True):
    """In bytes, or in packets."""

    sent: int = 0
    received: int = 0


class EpochStatus(Struct, kw_only=True, frozen=True):
    """`carrier` counts the session's carriers from 1, `number` the epochs of one from 0."""

    carrier: int = 0
    number: int = 0
    current: bool = False
    since: float = 0.0
    """How long ago it began."""
    lasted: float = 0.0
    """How long it was in use."""
    bytes_sent: int = 0
    bytes_received: int = 0
    exchange: str = "?"
    cipher: str = "?"


class SessionStatus(Struct, kw_only=True, frozen=True):
    attached: bool = False
    streams: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    retained: int = 0
    """Bytes kept until the peer has acknowledged them."""
    rotations: int = 0
    epochs: tuple[EpochStatus, ...] = ()
    """Newest first."""
    cipher: str | None = None
    """This and the next three are None while the session has no carrier."""
    epoch: int | None = None
    epoch_age: float | None = None
    round_trip: float | None = None
    """0 before the first measurement."""


# --- the link's packets -----------------------------------------------------------------------------------------------


class OffloadStatus(Struct, kw_only=True, frozen=True):
    """What the kernel does of the batching on a UDP socket, and why not the rest."""

    gso: bool = False
    gro: bool = False
    reason: str = ""


class PathCounters(Struct, kw_only=True):
    """What has happened to a lane's path (lane/path.py)."""

    probes: int = 0
    answered: int = 0
    falls: int = 0
    """Times that `up` became false."""
    shrinks: int = 0
    migrations: int = 0


class LaneStatus(Struct, kw_only=True, frozen=True):
    """One side of a datagram lane."""

    up: bool = False
    why: str = "?"
    """Why it is up or down: part of a sentence."""
    peer: str = ""
    size: int = 0
    """Of the largest datagram that passes."""
    round_trip: float | None = None
    offload: OffloadStatus = OffloadStatus()
    sent: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0
    drops: Counts = {}
    path: PathCounters = msgspec.field(default_factory=PathCounters)


class PacketLinkStatus(Struct, kw_only=True, frozen=True):
    """Packets and datagrams of one link: on its lane, and on its carrier where there is no lane."""

    lane: LaneStatus | None = None
    on_carrier: Traffic = Traffic()
    dropped: Counts = {}


class LaneSocketStatus(Struct, kw_only=True, frozen=True):
    address: str = "?"
    offload: OffloadStatus = OffloadStatus()


class LanesStatus(Struct, kw_only=True, frozen=True):
    """All lanes of an exit."""

    sockets: tuple[LaneSocketStatus, ...] = ()
    strangers: int = 0
    """Datagrams that belong to no lane."""


# --- system-wide mode -------------------------------------------------------------------------------------------------


class DeviceStatus(Struct, kw_only=True, frozen=True):
    """A TUN device. A super-packet counts as one packet."""

    name: str = "?"
    mtu: int = 0
    reads: tuple[str, ...] = ()
    """Offloads with which the kernel hands packets over."""
    writes: tuple[str, ...] = ()
    """Kinds of super-packets that are written whole; others are cut in software."""
    read_packets: int = 0
    read_bytes: int = 0
    written_packets: int = 0
    written_bytes: int = 0
    drops: Counts = {}


class KillSwitchStatus(Struct, kw_only=True, frozen=True):
    on: bool = False
    standing: bool = False
    """False while another program has removed it."""
    paused: int = 0
    """Seconds for which it still lets everything out."""
    kept_in: Counts = {}
    """Packets."""


class DnsCounters(Struct, kw_only=True):
    """Since the start. Each question counts once as `questions`, and in at most one of those up to `malformed`."""

    questions: int = 0
    cache_hits: int = 0
    stale: int = 0
    """Answered from beyond the end of an answer's life."""
    local: int = 0
    """Special names, and AAAA without IPv6."""
    blocked: int = 0
    merged: int = 0
    """Waited for the answer to somebody else's equal question."""
    upstream: int = 0
    """Asked of an upstream and answered by it."""
    failures: int = 0
    """SERVFAIL, because no upstream had an answer."""
    overload: int = 0
    """SERVFAIL, because too many questions waited."""
    malformed: int = 0
    """Refused or dropped unread."""


class UpstreamStatus(Struct, kw_only=True):
    """A server that the forwarder asks."""

    name: str = "?"
    healthy: bool = True
    latency: float | None = None
    """A moving average; None before the first answer."""
    answers: int = 0
    failures: int = 0
    last_error: str = ""
    """Empty while all is well."""


class DnsStatus(Struct, kw_only=True, frozen=True):
    """The forwarder, and how the system was told to ask it."""

    resolver: str = "?"
    repairs: int = 0
    counters: DnsCounters = msgspec.field(default_factory=DnsCounters)
    waiting: int = 0
    """Questions that wait for upstreams now."""
    cache_entries: int = 0
    cache_bytes: int = 0
    blocklist_names: int = 0
    in_use: str = "?"
    """The upstream that answered last."""
    upstreams: tuple[UpstreamStatus, ...] = ()
    split: dict[str, tuple[UpstreamStatus, ...]] = {}
    """Upstreams of their own, by domain."""


class TunRules(Struct, kw_only=True, frozen=True):
    """How many rules system-wide mode keeps, and where."""

    rules: int = 0
    dns: int = 0
    filter: int = 0
    default: str = "?"
    direct: tuple[str, ...] | None = ()
    """The prefixes that go past the tunnel by rules; None where a few prefixes cannot tell."""


class TunStatus(Struct, kw_only=True, frozen=True):
    """System-wide mode of a client."""

    device: DeviceStatus | None = None
    addresses: tuple[str, ...] = ()
    ipv6: bool = False
    kill_switch: KillSwitchStatus = KillSwitchStatus()
    dns: DnsStatus | None = None
    repairs: int = 0
    """Times that routes were put back."""
    exits: tuple[tuple[str, int], ...] = ()
    """Addresses and ports to which the link may go."""
    uplinks: tuple[str, ...] = ()
    lan: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude_uids: tuple[tuple[int, int], ...] = ()
    rules: TunRules = TunRules()


class TunNetworkStatus(Struct, kw_only=True, frozen=True):
    """The network interface of an exit."""

    device: DeviceStatus | None = None
    clients: int = 0
    """Sessions with packets."""
    ipv6: bool = False
    drops: Counts = {}


# --- client -----------------------------------------------------------------------------------------------------------


class ExitAddress(Struct, kw_only=True, frozen=True):
    peer_id: str = "?"
    address: str = "?"


class CarrierStatus(Struct, kw_only=True, frozen=True):
    kind: str = "?"
    address: str = "?"
    why: str = ""


class KnownExit(ExitAddress, kw_only=True, frozen=True):
    """One of the exits that a client may use."""

    name: str = "?"
    priority: int = 0
    active: bool = False
    pinned: bool = False
    healthy: bool = False
    link: str = "?"
    """ "up" or "down"."""
    carrier: CarrierStatus | None = None
    round_trip: float | None = None
    last_error: str | None = None
    session: SessionStatus | None = None
    carriers: int = 0


class ConnectionCounts(Struct, kw_only=True, frozen=True):
    """Connections of applications."""

    open: int = 0
    total: int = 0
    by: Counts = {}
    """By the route that the rules gave them."""
    refused: Counts = {}


class OpenConnection(Struct, kw_only=True, frozen=True):
    """An open connection of an application."""

    id: str = "?"
    """The exit's name or "direct", a slash, and a number."""
    target: str = "?"
    protocol: str = "?"
    """ "tcp" or "udp"; "dns" for a question of this side to the exit's resolver."""
    to: str = "?"
    """As in a rule."""
    rule: str = ""
    exit: str = ""
    """The name of the exit; "" if it is direct."""
    age: float = 0.0
    sent: int = 0
    received: int = 0


class RulesStatus(Struct, kw_only=True, frozen=True):
    rules: int = 0
    names: int = 0
    """Names in lists."""
    default: str = "?"
    broken: int = 0
    """Lines of lists that say nothing."""
    problems: tuple[str, ...] = ()
    """The first of them, in words."""
    loaded_at: float = 0.0
    error: str | None = None
    """Why the newest rules are not in force."""


# --- exit -------------------------------------------------------------------------------------------------------------


class PeerSessionStatus(SessionStatus, kw_only=True, frozen=True):
    """A session of a client at its exit."""

    peer_id: str = "?"
    link: str = "?"
    packets: PacketLinkStatus | None = None


class PeerStatus(Struct, kw_only=True, frozen=True):
    """A client that may come in."""

    peer_id: str = "?"
    name: str = ""
    sessions: int = 0


class PairingStatus(Struct, kw_only=True, frozen=True):
    """What `cryprq-proxy invite` and `peers` need to know of a running exit."""

    authorized: str | None = None
    """The file of peers; None: this exit takes no invites."""
    public: str = ""
    psk: bool = False
    listen: tuple[str, ...] = ()


# --- the two roles ----------------------------------------------------------------------------------------------------


class LoggedError(Struct, kw_only=True):
    """A warning or error. `at` is the last time; `count` is how many times it came in a row."""

    at: float = 0.0
    level: str = "?"
    text: str = "?"
    count: int = 1


class RoleStatus(Struct, kw_only=True, frozen=True, tag_field="role"):
    """What both roles have."""

    version: str = "?"
    pid: int = 0
    uptime: float = 0.0
    listen: tuple[str, ...] = ()
    log_level: str = "?"
    errors: tuple[LoggedError, ...] = ()
    """Newest first."""
    logged: Counts = {}
    """By level."""
    peer_id: str = "?"
    provider: str = "?"
    """Of ML-KEM and ML-DSA."""
    bytes: Traffic = Traffic()
    """Over all links since the start."""
    rotations: int = 0


class ClientStatus(RoleStatus, kw_only=True, frozen=True, tag="client"):
    link: str = "?"
    """ "up" or "down": to the exit in use, as is all of this but for `exits`."""
    exit: ExitAddress = ExitAddress()
    carrier: CarrierStatus | None = None
    carriers: int = 0
    """That were set up so far."""
    waiting: int = 0
    """Requests that wait for the link."""
    last_error: str | None = None
    session: SessionStatus | None = None
    packets: PacketLinkStatus | None = None
    exits: tuple[KnownExit, ...] = ()
    connections: ConnectionCounts | None = None
    rules: RulesStatus | None = None
    admin: str | None = None
    """URL of the dashboard."""
    tun: TunStatus | None = None


class ExitStatus(RoleStatus, kw_only=True, frozen=True, tag="exit"):
    authorized: int = 0
    """Peers that may come in."""
    targets: int = 0
    """Connections to targets."""
    handshakes: int = 0
    """That are under way."""
    streams_total: int = 0
    streams_refused: Counts = {}
    refused: Counts = {}
    """Connections."""
    lanes: LanesStatus | None = None
    network: TunNetworkStatus | None = None
    sessions: tuple[PeerSessionStatus, ...] = ()
    peers: tuple[PeerStatus, ...] = ()
    """At most 1000, first those who have most sessions."""
    pairing: PairingStatus | None = None


type Status = ClientStatus | ExitStatus
type StatusSource = Callable[[], Awaitable[Status]]


def encode(value: object) -> bytes:
    """JSON in UTF-8. Text that is not Unicode (lone surrogates) is escaped."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value)).encode()


def read(told: Any) -> Status:
    """The status from plain JSON values. Raises msgspec.ValidationError where a field is of another kind than here."""
    return msgspec.convert(told, ClientStatus | ExitStatus)
