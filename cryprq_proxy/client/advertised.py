"""The address at which an exit says that it is reached itself: whether a client dials it.

Behind one name, or one load balancer, may be several exits with one identity. A carrier that is lost leads the next
attempt to any of them, and a session is known to one only. So an exit may advertise an address of its own, and a
resume is dialled there first.

The exit is not trusted with it: it could let its clients knock at other doors. Nothing secret goes there, since the
handshake proves the exit's identity first. But where a knock alone does harm, in the networks around the client, an
address counts only if the client reached this exit by one of the same kind. And in system-wide mode nothing gets out
that did not before: the kill switch has no opening because an exit says so.
"""

from __future__ import annotations

from collections.abc import Callable

from ..address import Destination
from ..base.address_kinds import AddressKind, kind_of
from ..carriers.dial.endpoint import Endpoint
from ..carriers.lane.batch import SocketAddress


def resume_endpoint(
    advertised: Destination, reached: SocketAddress | None, lets_out: Callable[[Destination], bool]
) -> Endpoint | None:
    """Where to resume, or None to dial the configured endpoints only.

    `reached` is the address by which the present carrier reaches the exit over plain TCP; None for a WebSocket, behind
    whose front a plain address may be no entrance, and through an upstream proxy.
    """
    if reached is None:
        return None
    kind = kind_of(advertised.host)
    if kind is AddressKind.NO_HOST:
        return None
    if kind is not AddressKind.GLOBAL and kind is not kind_of(reached[0]):
        return None
    return Endpoint("tcp", advertised) if lets_out(advertised) else None
