"""The check of the kernel's congestion control: does what leaves from here go by BBR (carriers/congestion.py)?

A link tells what it uses and by which round trip that was chosen: the least one of its connection as it was made.
Those of a session grow with the load and count what lies behind an upstream proxy. Without a link, the kernel's list
of what every program may ask for has to do.
"""

from __future__ import annotations

from typing import Final

from ..base.text import milliseconds
from ..carriers.congestion import BBR, SHORT_PATH, CongestionChoice, is_long
from ..status import CarrierStatus, ClientStatus, ExitStatus, PeerSessionStatus
from .checks import CheckVerdict, Context, ok, skip, warn
from .link import status_of

_SETTINGS: Final = "proc/sys/net/ipv4"
_ALLOWED: Final = "tcp_allowed_congestion_control"


async def congestion(context: Context) -> CheckVerdict:
    """Warns where a long path is, or may be, without BBR."""
    allowed = _names(context, _ALLOWED)
    if not allowed:
        return skip("this system does not tell which congestion controls it allows")
    links = _links(context)
    others = [link for link in links if link.control != BBR]
    slow = [link for link in others if link.round_trip is None or is_long(link.round_trip)]
    if links and not slow:
        return ok("links over a long path send with BBR" if not others else _short(others))
    if BBR not in allowed:
        return warn(
            "this host does not allow BBR, so one lost packet in a hundred makes a link slow "
            f"(it allows {' '.join(allowed)})",
            f"as root: modprobe tcp_bbr; sysctl -w net.ipv4.{_ALLOWED}='{' '.join([*allowed, BBR])}'; for good: "
            "configs/modules-load.d and configs/sysctl.d; for a container: on the machine that it runs on",
        )
    if not links:
        return ok(
            "this host allows BBR, which a link over a long path asks for; no link is up that could tell"
        )
    return _without(slow, new=context.link is not None)


def _short(links: list[CongestionChoice]) -> str:
    return (
        f"a link whose own connection is short (under {milliseconds(SHORT_PATH)}) sends with the host's choice, which "
        f"is the best one there: {_controls(links)}"
    )


def _without(links: list[CongestionChoice], *, new: bool) -> CheckVerdict:
    """Of links that are without BBR although the host allows it. `new`: the link was made by this check."""
    known = [link.round_trip for link in links if link.round_trip is not None]
    if not known:
        return warn(
            f"a link sends with {_controls(links)}: when it was made, the kernel had not measured how long its path is",
            "make the link again: restart cryprq-proxy",
        )
    path = milliseconds(max(known))
    said = f"a link over a long path ({path}) sends with {_controls(links)}, though this host allows BBR"
    unlock = "take `congctl lock` off the route (`ip route` shows it) if it is not meant"
    if new:
        return warn(f"{said}: its route locks another one", unlock)
    return warn(
        f"{said}: its route locks another one, or it was made before BBR was allowed",
        f"restart cryprq-proxy, which makes the link again; if that does not help, {unlock}",
    )


def _controls(links: list[CongestionChoice]) -> str:
    return ", ".join(sorted({link.control for link in links}))


def _names(context: Context, setting: str) -> list[str]:
    try:
        return (context.root / _SETTINGS / setting).read_text().split()
    except OSError:
        return []


def _links(context: Context) -> list[CongestionChoice]:
    """What the links that are up send with, as far as the system tells."""
    status = context.running if isinstance(context.running, ExitStatus) else status_of(context)
    carriers: list[CarrierStatus | PeerSessionStatus] = []
    if isinstance(status, ExitStatus):
        carriers += [session for session in status.sessions if session.link == "up"]
    elif isinstance(status, ClientStatus) and status.carrier is not None:
        carriers.append(status.carrier)
    return [
        CongestionChoice(each.congestion, each.connection_round_trip) for each in carriers if each.congestion
    ]
