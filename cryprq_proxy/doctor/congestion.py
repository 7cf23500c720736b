"""The check of the kernel's congestion control: does what leaves from here go by BBR (carriers/congestion.py)?

A link tells what it uses. Without one, the kernel's list of what every program may ask for has to do.
"""

from __future__ import annotations

from typing import Final

from ..carriers.congestion import BBR, is_long
from ..status import ClientStatus, ExitStatus
from .checks import CheckVerdict, Context, ok, skip, warn
from .link import status_of

_SETTINGS: Final = "proc/sys/net/ipv4"
_ALLOWED: Final = "tcp_allowed_congestion_control"


async def congestion(context: Context) -> CheckVerdict:
    """Warns where a long path is, or may be, without BBR."""
    allowed = _names(context, _ALLOWED)
    if not allowed:
        return skip("this system does not tell which congestion controls it allows")
    used, trip = _in_use(context)
    if BBR in used:
        return ok("links over a long path send with BBR")
    if used and trip is not None and not is_long(trip):
        return ok(f"the path is short, where the host's choice is the best one: {', '.join(sorted(used))}")
    if BBR in allowed:
        return ok("links over a long path send with BBR, which this host allows")
    return warn(
        "this host does not allow BBR, so one lost packet in a hundred makes a link slow "
        f"(it allows {' '.join(allowed)})",
        f"as root: modprobe tcp_bbr; sysctl -w net.ipv4.{_ALLOWED}='{' '.join([*allowed, BBR])}'; for good: "
        "configs/modules-load.d and configs/sysctl.d; for a container: on the machine that it runs on",
    )


def _names(context: Context, setting: str) -> list[str]:
    try:
        return (context.root / _SETTINGS / setting).read_text().split()
    except OSError:
        return []


def _in_use(context: Context) -> tuple[set[str], float | None]:
    """What the links that are up send with, and the longest of their round trips in seconds."""
    status = context.running if isinstance(context.running, ExitStatus) else status_of(context)
    if isinstance(status, ExitStatus):
        up = [session for session in status.sessions if session.link == "up" and session.congestion]
        trips = [session.round_trip for session in up if session.round_trip]
        return {session.congestion for session in up}, max(trips, default=None)
    if isinstance(status, ClientStatus) and status.carrier is not None and status.carrier.congestion:
        session = status.session
        return {status.carrier.congestion}, None if session is None else session.round_trip
    return set(), None
