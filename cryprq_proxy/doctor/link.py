"""Properties of a link to the exit: whether UDP gets through, the largest datagram, the round trip.

The status of a running client with a link has them. Otherwise the checks make a short link with the same code and keys,
and close it at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from ..base.tasks import spawn
from ..base.text import milliseconds
from ..carriers.dial.tcp import by_system
from ..client.client import Client
from ..status import ClientStatus, LaneStatus
from .checks import CheckVerdict, Context, fail, ok, skip, warn
from .reach import linked

LINK_SECONDS: Final = 10.0
LANE_SECONDS: Final = 4.0
"""The lane comes up within these seconds if UDP gets through."""
SEARCH_SECONDS: Final = 8.0
"""For the search of the largest datagram; with a long round trip and ICMP lost on the path it takes longer."""
PINGS: Final = 3
PING_SECONDS: Final = 1.0
POLL: Final = 0.05
SLOW: Final = 0.4
"""Pages load slowly with a round trip of this many seconds."""
GOOD_SIZE: Final = 1280
"""Bytes of a UDP payload that every path carries (RFC 8200 requires it for IPv6)."""

IP_MTU: Final = (socket.IPPROTO_IP, 14)
IPV6_MTU: Final = (socket.IPPROTO_IPV6, 24)
"""Linux's numbers, which Python has no names for (ip(7), ipv6(7))."""


async def link(context: Context) -> CheckVerdict:
    """Make a link to the first exit that accepts one; it stays up for the later checks."""
    if status := linked(context):
        return ok(f"the running client has one, to {status.exit.address}")
    config, (identity, provider) = context.client_config, context.keys
    last = "no exit answered"
    for exit in config.exits():
        settings = config.link_settings(exit, config.lane_settings())
        # An early PING measures early.
        settings = replace(settings, limits=replace(settings.limits, keepalive=0.5))
        client = Client(identity, settings, provider)
        if await _comes_up(client):
            context.link, context.linked_exit = client, exit.name
            context.closing.append(client.stop)
            return ok(f"a link to {exit.name} is up, by {_by(client.status())}")
        last = client.status().last_error or last
        await client.stop()
    return fail(f"no link came up within {LINK_SECONDS:g} s: {last}", "see the handshake above")


async def _comes_up(client: Client) -> bool:
    running = spawn(client.run(), "doctor's link")
    await _until(lambda: client.up or running.done(), LINK_SECONDS)
    return client.up and not running.done()


def _by(status: ClientStatus) -> str:
    carrier = status.carrier
    return "a carrier that is gone" if carrier is None else f"{carrier.kind} ({carrier.why})"


async def _until(reached: Callable[[], object], seconds: float) -> bool:
    """Wait for `reached`, at most `seconds`. Returns whether it was reached."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not reached():  # noqa: ASYNC110  many things are waited for
                await asyncio.sleep(POLL)
    return bool(reached())


def status_of(context: Context) -> ClientStatus | None:
    """The status of the link: ours, or the running client's."""
    return context.link.status() if context.link is not None else linked(context)


def lane_of(context: Context) -> LaneStatus | None:
    status = status_of(context)
    return None if status is None or status.packets is None else status.packets.lane


async def lane(context: Context) -> CheckVerdict:
    """Does UDP get through? Without it everything goes by the carrier."""
    config = context.client_config
    if config.carrier == "tcp":
        return skip('carrier = "tcp": there is no datagram lane, and everything goes by TCP')
    if config.upstream is not None:
        return skip("an upstream proxy carries no UDP, so everything goes by TCP")

    if context.link is not None:
        await _until(lambda: (found := lane_of(context)) is not None and found.up, LANE_SECONDS)
    state = lane_of(context)
    if state is None:
        return warn(
            "this link has no datagram lane: the exit has switched it off, or is reached by WebSocket only",
            "everything goes by the carrier, which is slower for calls and games; give a cryprq:// address too",
        )
    if state.up:
        return ok(f"UDP gets through, and comes back in {milliseconds(state.round_trip)}")
    return warn(
        f"UDP does not get through to the exit: {state.why}",
        "let UDP in on the exit's port in its firewall (and its provider's); until then everything goes by TCP",
    )


async def mtu(context: Context) -> CheckVerdict:
    """The MTU that the lane has measured: of the whole path. A link of our own has some seconds to measure it."""
    state = lane_of(context)
    if state is None or not state.up:
        return await _route_mtu(context)
    if state.searching and context.link is not None:
        await _until(lambda: (found := lane_of(context)) is None or not found.searching, SEARCH_SECONDS)
        state = lane_of(context) or state
    largest = state.size
    if state.searching:
        return ok(
            f"the search for the largest UDP payload still runs: {largest} bytes pass so far; ask again in a minute"
        )
    if largest < GOOD_SIZE:
        return warn(
            f"the path carries UDP payloads of {largest} bytes only",
            "another tunnel or a PPPoE line on the path takes room: raise its MTU if it is yours",
        )
    return ok(f"the path carries UDP payloads of {largest} bytes")


async def _route_mtu(context: Context) -> CheckVerdict:
    """Without a lane, the kernel's MTU for the path: of the first network, or less after an ICMP message."""
    config, exits = context.client_config, context.client_config.exits()
    nothing = "it is measured by the datagram lane, which is not up; TCP finds its own"
    target = next((end.address for exit in exits for end in exit.endpoints if end.carrier == "tcp"), None)
    if target is None or config.upstream is not None:
        return skip(nothing)
    (host, *_) = [target.host] if target.is_ip else await by_system(target.host)
    size = route_mtu(host, target.port)
    if size is None:
        return skip(nothing)
    if size < GOOD_SIZE:
        return warn(
            f"the route to {host} has an MTU of {size} bytes only",
            "raise it if it is that of a tunnel of yours",
        )
    return ok(f"the route to {host} has an MTU of {size} bytes; whether all of the path does, TCP finds out")


def route_mtu(host: str, port: int) -> int | None:
    """Bytes of an IP packet; None if the system does not tell. Connecting a UDP socket sends nothing."""
    six = ":" in host
    try:
        with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            return probe.getsockopt(*(IPV6_MTU if six else IP_MTU))
    except OSError:
        return None


async def round_trip(context: Context) -> CheckVerdict:
    """Measure a PING on the link to the exit and back, without a target."""
    if context.link is not None:
        measured = await measure(context.link)
    else:
        running = linked(context)
        measured = None if running is None or running.session is None else running.session.round_trip
    if not measured:
        return skip("no answer to a PING came in time to measure it")
    if measured > SLOW:
        return warn(
            f"there and back takes {milliseconds(measured)}, and every page some of these",
            "choose an exit that is nearer, or look for what fills the line",
        )
    return ok(f"there and back takes {milliseconds(measured)}")


async def measure(client: Client) -> float | None:
    """The shortest of some PINGs, in seconds; None if no answer came."""
    for _ in range(PINGS):
        before = client.round_trip
        client.measure()
        await _until(lambda before=before: client.round_trip != before, PING_SECONDS)  # type: ignore[misc]
    return client.least_round_trip
