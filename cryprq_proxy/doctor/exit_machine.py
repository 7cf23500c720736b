"""The checks of the machine that an exit runs on: what lies beyond it, and what it gives its process.

The client's checks of the same things are in beyond.py, from what the exit tells.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
from collections.abc import Iterator, Mapping
from socket import AF_INET, AF_INET6
from statistics import median
from typing import Any, Final

from ..address import Destination
from ..base.kept_clock import clock_is_kept
from ..base.own_addresses import own_addresses
from ..base.program import to_run, to_run_as_root
from ..base.text import counted, duration, milliseconds, size
from ..carriers.lane.udp_socket import SOCKET_BUFFER
from ..client.try_target import try_target
from ..config.both_roles import is_loopback
from ..config.exit import ExitConfig
from ..exit.egress_policy import EgressPolicy
from ..exit.report import outward, try_resolver
from ..outbound.bytestream import SocketStream
from ..outbound.dialer import dial
from ..outbound.resolving.host_configuration import described, read_configuration
from ..outbound.resolving.resolver import SystemResolver
from ..session.turns import TurnBudget
from ..status import ExitReport
from . import on_macos
from .beyond import CLOCK_SECONDS, SET_CLOCK, WRONG_SECONDS, judge_names, judge_routes, judge_target
from .checks import CheckVerdict, Context, fail, ok, output_of, skip, warn
from .packet_filter import Culprit, Fate, FirstPacket, culprit

FEW_DESCRIPTORS: Final = 4096
"""Half of them are for targets: a household has some hundreds at a time."""
NFT_SECONDS: Final = 10.0
EXIT_DEVICE: Final = "cryprq-exit0"
"""Where what clients in system-wide mode send comes in."""
_HERE: Final = "this machine"
_MORE_FILES: Final = (
    "LimitNOFILE=262144 in its unit (systemctl edit), or ulimit -n 262144 before it starts; then restart it"
)


async def routes(context: Context) -> CheckVerdict:
    """Has this machine a default route for each family of which it has an address?"""
    own = own_addresses()
    report = ExitReport(ipv4=outward(AF_INET, own), ipv6=outward(AF_INET6, own))
    return judge_routes(report, _HERE, "")


async def names(context: Context) -> CheckVerdict:
    """Does what answers for the names that clients ask for find one?"""
    running = context.running_exit
    by = described(read_configuration())
    if running is not None and running.names is not None:
        by = running.names.by
    resolver = SystemResolver()
    try:
        found = await try_resolver(resolver)
    finally:
        resolver.close()
    verdict = judge_names(ExitReport(resolver=found), _HERE, "")
    return verdict._replace(text=f"{verdict.text} (by {by})")


async def target(context: Context) -> CheckVerdict:
    """Connect the target that the person has named from here, by the exit's egress policy."""
    destination, config = context.target, context.exit_config
    if destination is None:
        return skip(f"give a name to have it reached from here: {to_run('doctor --exit example.com')}")
    egress = config.egress
    policy = EgressPolicy(egress.allow, egress.deny, egress.only, config.allow_private, own_addresses())
    resolver = SystemResolver()
    turn = TurnBudget(asyncio.get_running_loop().call_soon)

    async def opening(wanted: Destination) -> SocketStream:
        return SocketStream(await dial(wanted, policy, resolver=resolver.of("doctor"), turn=turn))

    try:
        tried = await try_target(opening, destination)
    finally:
        resolver.close()
    if not tried.problem:
        return ok(f"{destination} is reached from here, in {milliseconds(tried.seconds)}")
    return judge_target(tried.problem, destination, _HERE, "")


# --- clock ---


async def clocks(context: Context) -> CheckVerdict:
    """This clock, and those of the clients that have told their time."""
    running = context.running_exit
    if running is None:
        return skip("the exit knows the time of its clients when it runs")
    told = {one.peer_id: one.clock_off for one in running.sessions if one.clock_off is not None}
    if not told:
        return skip(f"no client has told its time yet: it does when it is asked to {to_run('doctor')}")
    off, clients = median(told.values()), counted(len(told), "client")
    if abs(off) < CLOCK_SECONDS:
        return ok(f"this clock and {'that' if len(told) == 1 else 'those'} of {clients} agree")
    text = f"this clock is {duration(abs(off))} {'behind' if off > 0 else 'ahead of'} "
    text += f"{'that' if len(told) == 1 else 'those'} of {clients}"
    if clock_is_kept():
        return warn(f"{text}, and is kept in step", f"set the clock of the client: {SET_CLOCK}")
    how = on_macos.SET_CLOCK if on_macos.here() else f"{SET_CLOCK}, or date -s"
    remedy = f"compare `date -u` with a clock, and set it: {how}"
    return fail(text, remedy) if abs(off) > WRONG_SECONDS else warn(text, remedy)


# --- what the system gives the process ---


async def descriptors(context: Context) -> CheckVerdict:
    """How many connections it may have at a time."""
    running = context.running_exit
    most = None if running is None else _limit_of(context, running.pid)
    who = "the running exit" if most is not None else "an exit started from here"
    if most is None:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most == resource.RLIM_INFINITY:
        return ok(f"{who} may open as many files and connections as the system has room for")
    if most < FEW_DESCRIPTORS:
        return warn(
            f"{who} may open {most} files and connections only, about half of them to targets",
            on_macos.MORE_FILES if on_macos.here() else _MORE_FILES,
        )
    return ok(f"{who} may open {most} files and connections")


def _limit_of(context: Context, pid: int) -> int | None:
    """The soft limit of a process, which a start raises as far as it may; None if it cannot be seen."""
    try:
        lines = (context.root / f"proc/{pid}/limits").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("Max open files"):
            soft = line.removeprefix("Max open files").split()[0]
            return int(soft) if soft.isdecimal() else resource.RLIM_INFINITY
    return None


async def buffers(context: Context) -> CheckVerdict:
    """What the kernel keeps for the sockets of the lane."""
    if not context.exit_config.lane.enabled:
        return skip("the datagram lane is off (lane.enabled)")
    if on_macos.here():
        return await on_macos.buffers(SOCKET_BUFFER)
    if _has_rights(context):
        return ok("the lane's sockets may have as large buffers as they ask for, as those of root")
    small = {}
    for name in ("rmem_max", "wmem_max"):
        try:
            most = int((context.root / "proc/sys/net/core" / name).read_text())
        except (OSError, ValueError):
            return skip("this system does not tell how large the buffers of a socket may be")
        if most < SOCKET_BUFFER:
            small[f"net.core.{name}"] = most
    if not small:
        return ok(f"the lane's sockets may have buffers of {size(SOCKET_BUFFER)}")
    told = " and ".join(f"{name} is {most}" for name, most in small.items())
    settings = " ".join(f"{name}={SOCKET_BUFFER}" for name in small)
    return warn(
        f"a fast link loses datagrams, since the lane's sockets get smaller buffers than they ask for: {told}",
        f"as root: sysctl -w {settings}; for good: configs/sysctl.d; for a container: on the machine that it runs on",
    )


def _has_rights(context: Context) -> bool:
    """Whether the exit runs as root, or would."""
    running = context.running_exit
    if running is None:
        return context.euid == 0
    try:
        return os.stat(context.root / f"proc/{running.pid}").st_uid == 0
    except OSError:
        return False


# --- the packet filter ---


async def firewall(context: Context) -> CheckVerdict:
    """Whether rules of nftables keep clients out, or what clients in system-wide mode send in."""
    if on_macos.here():
        return skip(on_macos.NO_FILTER)
    if context.euid:
        return skip(
            f"only root sees the rules of the packet filter: {to_run_as_root('doctor --exit')} looks at them"
        )
    ruleset = await asyncio.to_thread(_ruleset, context)
    if ruleset is None:
        return skip("nft is not installed, or does not tell its rules, so no packet filter is looked at")
    blind = "; rules of the old iptables are not looked at" if _has_legacy(context) else ""
    try:
        return _judge_filter(context.exit_config, ruleset, blind)
    except (AttributeError, LookupError, TypeError, ValueError):
        return skip("the rules of the packet filter are of a kind that is not understood here")


def _judge_filter(config: ExitConfig, ruleset: list[Mapping[str, Any]], blind: str) -> CheckVerdict:
    """`blind` says, as the end of a sentence, what was not looked at."""
    some = None
    for listen, transport in _entrances(config):
        found = _found(ruleset, listen, transport)
        if found is not None and found.fate is Fate.DROPPED:
            return _shut(found, listen.port, transport)
        some = some or found
    if config.tun.enabled and (held := next(_held_forward(ruleset), None)):
        return fail(
            f"the packet filter drops what clients in system-wide mode send ({_place(held)})",
            f"nft insert rule {held.family} {held.table} {held.chain} iifname {EXIT_DEVICE} accept; and the same with "
            "oifname for the answers; for good, in the firewall's own configuration",
        )
    if some is not None:
        return ok(
            f"the packet filter lets in some senders ({_place(some)}): see that clients are among them{blind}"
        )
    return ok(f"no rule of the packet filter keeps clients out{blind}")


def _entrances(config: ExitConfig) -> Iterator[tuple[Destination, str]]:
    """Where clients come in, from other machines: first what they cannot do without."""
    web = config.websocket.listen
    yield from ((listen, "tcp") for listen in (*config.listen, *(() if web is None else (web,))))
    if config.lane.enabled:
        yield from ((listen, "udp") for listen in config.listen)


def _shut(found: Culprit, port: int, transport: str) -> CheckVerdict:
    what = f"the packet filter drops what comes in for {transport.upper()} port {port} ({_place(found)}), so "
    remedy = _opening(found, port, transport)
    if transport == "udp":
        return warn(f"{what}everything goes by TCP", remedy)
    return fail(f"{what}no client gets in", remedy)


def _ruleset(context: Context) -> list[Mapping[str, Any]] | None:
    """What nft tells; None if it tells nothing."""
    program = context.which("nft") or "/usr/sbin/nft"
    told = output_of(program, "-j", "list", "ruleset", seconds=NFT_SECONDS)
    try:
        return None if told is None else list(json.loads(told)["nftables"])
    except (ValueError, LookupError, TypeError):
        return None


def _has_legacy(context: Context) -> bool:
    """Whether the kernel has tables of iptables-legacy."""
    for name in ("ip_tables_names", "ip6_tables_names"):
        try:
            if (context.root / "proc/net" / name).read_text().strip():
                return True
        except OSError:
            continue
    return False


def _found(ruleset: list[Mapping[str, Any]], listen: Destination, transport: str) -> Culprit | None:
    if is_loopback(listen):
        return None
    version = 6 if ":" in listen.host else 4
    return culprit(ruleset, "input", FirstPacket(version, transport, listen.port))


def _held_forward(ruleset: list[Mapping[str, Any]]) -> Iterator[Culprit]:
    for version in (4, 6):
        found = culprit(ruleset, "forward", FirstPacket(version, "tcp", 443, EXIT_DEVICE))
        if found is not None and found.fate is Fate.DROPPED:
            yield found


def _place(found: Culprit) -> str:
    return f"chain {found.chain} of table {found.family} {found.table}"


def _opening(found: Culprit, port: int, transport: str) -> str:
    """The command that lets clients in."""
    if found.table == "firewalld":
        return f"firewall-cmd --permanent --add-port={port}/{transport} && firewall-cmd --reload"
    if found.table == "filter" and found.chain == "INPUT":
        return (
            f"ufw allow {port}/{transport}; without ufw: iptables -I INPUT -p {transport} --dport {port} -j ACCEPT, "
            "and the same by ip6tables"
        )
    return (
        f"nft insert rule {found.family} {found.table} {found.chain} {transport} dport {port} accept; for good, in "
        "/etc/nftables.conf"
    )
