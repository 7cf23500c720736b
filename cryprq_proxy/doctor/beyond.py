"""What lies beyond the link: can the exit find names, has it default routes, what time has it, and can a target be
reached?

The exit tells about itself (exit/report.py), so that no third party hears of the check. A target is connected only
where the person has named one. A running client is asked for both; otherwise the link of the checks is used.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

import msgspec

from ..address import Destination
from ..base.kept_clock import clock_is_kept
from ..base.program import to_run
from ..base.text import duration, milliseconds
from ..client.ask_exit import ASK_SECONDS, ask_exit
from ..client.try_target import TRY, TRY_SECONDS, try_target
from ..errors import CryprqError, StreamReason, words_of
from ..process.control import query, query_status
from ..service.system_names import try_names
from ..status import AskedExit, ClientStatus, DnsStatus, ExitReport, TriedTarget
from . import on_macos
from .checks import CheckVerdict, Context, fail, ok, skip, warn

CLOCK_SECONDS: Final = 30.0
WRONG_SECONDS: Final = 300.0
"""Certificates and invites suffer from a clock that is so far off."""
SET_CLOCK: Final = "timedatectl set-ntp true"
_NOT_TOLD: Final = "the exit has not told it"
_OTHER_VERSION: Final = "the running client has another version; restart it"
MORE: Final = "`cryprq-proxy doctor --exit` there says more"


async def asked(context: Context) -> CheckVerdict:
    """Ask the exit in use about itself."""
    try:
        told = context.asked = await _report(context)
    except CryprqError as error:
        return warn(
            str(error), f"what lies beyond the link can be tried with a name: {to_run('doctor example.com')}"
        )
    return ok(
        f"{told.exit}, of version {told.report.version}, tells about itself in {milliseconds(told.seconds)}"
    )


async def _report(context: Context) -> AskedExit:
    if context.link is not None:
        return await ask_exit(context.link.start, context.linked_exit)
    return await told_by_client(context)


async def told_by_client(context: Context, exit: str = "") -> AskedExit:
    """The report of this exit, or of the one in use, as the running client gets it. Raises CryprqError."""
    socket = context.client_config.control_socket
    told = await asyncio.to_thread(query, socket, "report", timeout=ASK_SECONDS + 5, argument=exit)
    try:
        asked = msgspec.convert(told, AskedExit)
    except msgspec.ValidationError:
        raise CryprqError(_OTHER_VERSION) from None
    if exit and asked.exit != exit:
        # An older client asks the one in use, whatever is said.
        raise CryprqError(_OTHER_VERSION)
    return asked


# --- clocks ---


async def clocks(context: Context) -> CheckVerdict:
    """Do this clock and the exit's agree?"""
    if context.asked is None:
        return skip(_NOT_TOLD)
    return judge_clock(context.asked, "at the exit")


def judge_clock(told: AskedExit, where: str) -> CheckVerdict:
    """`where` is the exit's machine in a remedy."""
    off, theirs, ours = told.clock_off, told.report.clock_kept, clock_is_kept()
    if abs(off) < CLOCK_SECONDS:
        return ok("this machine and the exit have the same time")
    ahead, far = ("ahead of" if off > 0 else "behind"), duration(abs(off))
    if theirs and not ours:
        text = f"this clock is {far} {'behind' if off > 0 else 'ahead of'} the exit's, which is kept in step"
        remedy = f"set this one: {on_macos.SET_CLOCK if on_macos.here() else SET_CLOCK}"
    elif ours and not theirs:
        text = f"the exit's clock is {far} {ahead} this one, which is kept in step"
        remedy = f"set that one, {where}: {SET_CLOCK}"
    else:
        text = f"the exit's clock is {far} {ahead} this one, so one of them is wrong"
        remedy = f"compare `date -u` on both with a clock, and set the wrong one: {SET_CLOCK}, or date -s"
    return fail(text, remedy) if abs(off) > WRONG_SECONDS else warn(text, remedy)


# --- routes ---


async def routes(context: Context) -> CheckVerdict:
    """Has the exit a default route for each family of which it has an address?"""
    if context.asked is None:
        return skip(_NOT_TOLD)
    return judge_routes(context.asked.report, "the exit", "at the exit: ")


def judge_routes(report: ExitReport, who: str, where: str) -> CheckVerdict:
    """`who` is the machine in a sentence, `where` the beginning of a remedy."""
    four, six = report.ipv4, report.ipv6
    if not four.route and not six.route:
        return fail(
            f"{who} has no default route, neither for IPv4 nor for IPv6, so clients reach nothing beyond it",
            f"{where}ip route add default via GATEWAY; for good, in its network configuration (ip route, ip -6 route)",
        )
    if four.addressed and not four.route:
        return fail(
            f"{who} has an IPv4 address and no default route for IPv4: most of the web is out of reach",
            f"{where}ip route add default via GATEWAY; for good, in its network configuration",
        )
    if six.addressed and not six.route:
        return warn(
            f"{who} has an IPv6 address and no default route for IPv6: such targets are tried in vain",
            f"{where}ip -6 route add default via GATEWAY; or take the address away",
        )
    if not six.route:
        return ok(f"{who} reaches the Internet by IPv4, and has no IPv6")
    return ok(f"{who} reaches the Internet by {'IPv4 and IPv6' if four.route else 'IPv6, and has no IPv4'}")


# --- names ---

_NAME_PROBLEMS: Final = {
    words_of(StreamReason.NAME_TIMED_OUT): "no DNS server of {} answers, so no page loads by its name",
    words_of(
        StreamReason.NAME_FAILED
    ): "the DNS servers of {} answer with a failure, or refuse to be asked, so no page loads by its name",
    words_of(StreamReason.EXHAUSTED): "{} has no descriptor or memory left to look a name up",
}


async def names(context: Context) -> CheckVerdict:
    """Does the resolver of the exit find a name?"""
    if context.asked is None:
        return skip(_NOT_TOLD)
    return judge_names(context.asked.report, "the exit", "at the exit: ", f"; {MORE}")


def judge_names(report: ExitReport, who: str, where: str, more: str = "") -> CheckVerdict:
    """As `judge_routes`; `more` is the end of a remedy."""
    problem = report.resolver.problem
    if not problem:
        return ok(f"{who} finds names, one in {milliseconds(report.resolver.seconds)}")
    if report.resolver.unknown:
        return warn(
            f"the resolver of {who} answers, and knows no name of the Internet",
            f"{where}name another server in /etc/resolv.conf, unless that is meant",
        )
    text = _NAME_PROBLEMS.get(problem, "{} cannot look names up: " + problem).format(who)
    if problem == words_of(StreamReason.EXHAUSTED):
        return fail(text, f"{where}raise LimitNOFILE in its unit, or ulimit -n{more}")
    return fail(
        text,
        f"{where}try `getent hosts example.com`; restart its resolver (systemctl restart systemd-resolved, unbound, "
        f"dnsmasq), or name another server in /etc/resolv.conf{more}",
    )


async def system_names(context: Context) -> CheckVerdict:
    """Where a client runs with --tun: does a program of this machine find a name?"""
    client = context.running_client
    if client is None or client.tun is None:
        return skip(
            "no client runs with --tun here: applications leave names to the proxy, as the exit finds them"
        )
    tried = await try_names(partial(_dns, context))
    if not tried.problem:
        return ok("this machine finds names through the tunnel")
    if tried.all_fail:
        return fail(
            f"--tun runs, and no program of this machine finds a name: {tried.problem}",
            "at the exit: look whether the DNS servers in /etc/resolv.conf answer; or name others here, in "
            'tun.dns.upstreams, as "tls://9.9.9.9"',
        )
    return warn(
        tried.problem,
        f"try `getent hosts NAME` with another name; the rules are told by: {to_run('explain NAME')}",
    )


async def _dns(context: Context) -> DnsStatus | None:
    status = await asyncio.to_thread(query_status, context.client_config.control_socket)
    return status.tun.dns if isinstance(status, ClientStatus) and status.tun is not None else None


# --- a target ---

_TARGET_PROBLEMS: Final = {
    StreamReason.NAME_NOT_FOUND: (
        "there is no such name, says the resolver of {who}",
        "compare the name; try another one",
    ),
    StreamReason.NAME_FAILED: (
        "the DNS servers of {who} answer with a failure, or refuse to be asked",
        "{where}try `getent hosts {name}`; restart its resolver, or name another server in /etc/resolv.conf",
    ),
    StreamReason.NAME_TIMED_OUT: (
        "no DNS server of {who} answers",
        "{where}try `getent hosts {name}`; restart its resolver, or name another server in /etc/resolv.conf",
    ),
    StreamReason.NETWORK_UNREACHABLE: (
        "{who} has no route to it",
        "{where}ip route, ip -6 route; add the default route that is missing",
    ),
    StreamReason.HOST_UNREACHABLE: (
        "the network of {who} says that it cannot be reached",
        "{where}look at its default route and gateway (ip route, ip neigh); try another target",
    ),
    StreamReason.CONNECTION_REFUSED: (
        "it was reached, and refuses the connection",
        "nothing listens on that port, or a firewall says so; try another port or target",
    ),
    StreamReason.TIMED_OUT: (
        "it does not answer",
        "try another target; if none answers, a firewall of {who}, or before it, lets nothing out",
    ),
    StreamReason.NOT_ALLOWED: (
        "the egress policy of the exit forbids it",
        "{where}`allow` in [egress], or allow_private for its own network",
    ),
    StreamReason.LINK_DOWN: ("the link went down meanwhile", "ask again"),
    StreamReason.EXHAUSTED: (
        "{who} has no descriptor or memory left",
        "{where}raise LimitNOFILE in its unit, or ulimit -n",
    ),
}
_BY_WORDS: Final = {words_of(reason): said for reason, said in _TARGET_PROBLEMS.items()}


async def target(context: Context) -> CheckVerdict:
    """Connect the target that the person has named, as an application would."""
    destination = context.target
    if destination is None:
        return skip(f"give a name to have it reached through the exit: {to_run('doctor example.com')}")
    tried = await _try(context)
    direct = tried.by == "direct"
    if not tried.problem:
        through = "past the tunnel, as a rule says" if direct else "through the exit"
        return ok(f"{destination} is reached {through}, in {milliseconds(tried.seconds)}")
    if tried.rule:
        return fail(
            f"{destination} is blocked by {tried.rule}", f"{to_run(f'explain {destination}')} says more"
        )
    if direct:
        return fail(
            f"{destination} goes past the tunnel, as a rule says, and is not reached from here: {tried.problem}",
            "look at this machine's own network, or at the rule",
        )
    return judge_target(tried.problem, destination, "the exit", "at the exit: ")


def judge_target(problem: str, destination: Destination, who: str, where: str) -> CheckVerdict:
    """As `judge_routes`, of a target that was not connected."""
    text, remedy = _BY_WORDS.get(
        problem, (f"it is not reached: {problem}", "{where}look into the log, which says more")
    )
    return fail(
        f"{destination}: {text.format(who=who)}", remedy.format(name=destination.host, where=where, who=who)
    )


async def _try(context: Context) -> TriedTarget:
    destination = context.target
    assert destination is not None
    if context.link is not None:
        return await try_target(context.link.open, destination)
    socket = context.client_config.control_socket
    told = await asyncio.to_thread(query, socket, TRY, timeout=TRY_SECONDS + 5, argument=str(destination))
    return msgspec.convert(told, TriedTarget)
