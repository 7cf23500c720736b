"""Ends the TCP connections of programs that have the tunnel's address, before the filter that holds them in goes.

They cannot go on without the tunnel. But the kernel would send what is unacknowledged, or a last FIN, again and again
from the tunnel's address by the ordinary route, in the clear. sock_diag(7), SOCK_DESTROY (Linux 4.5).
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Collection
from socket import AF_INET, AF_INET6, IPPROTO_TCP
from typing import Final

from cryprq_proxy.base.netlink import DUMP, NetlinkSocket
from cryprq_proxy.errors import reason_of

from ...firewall.inbound import Address

_log = logging.getLogger(__name__)

_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20
_DESTROY: Final = 21
_REQUEST: Final = struct.Struct("=BBBxI")
"""inet_diag_req_v2: family, protocol, extensions, states; then the id."""
_HEAD: Final = 4
"""inet_diag_msg: family, state, timer, retransmissions; then the id, as in the request."""
_ID: Final = slice(_HEAD, _HEAD + 48)
_LOCAL: Final = 4
"""The local address in the id, after two ports."""
_STATES: Final = 0xFFFF_FFFF & ~(1 << 10 | 1 << 7 | 1 << 6)
"""All but LISTEN, CLOSE and TIME_WAIT, which send nothing."""


def end_tunnel_sockets(addresses: Collection[Address]) -> int:
    """Reset every TCP connection from one of these addresses; how many. Where the kernel cannot, that is logged."""
    ended = 0
    try:
        with NetlinkSocket(_SOCK_DIAG) as kernel:
            for family, size in ((AF_INET, 4), (AF_INET6, 16)):
                wanted = {address.packed for address in addresses if len(address.packed) == size}
                # A socket of both families has an IPv4 address inside of an IPv6 one.
                mapped = {
                    bytes(10) + b"\xff\xff" + address.packed for address in addresses if address.version == 4
                }
                question = _REQUEST.pack(family, IPPROTO_TCP, 0, _STATES)
                found = [
                    body[_ID]
                    for kind, body in kernel.ask(_BY_FAMILY, DUMP, question + bytes(48))
                    if kind == _BY_FAMILY and len(body) >= _ID.stop
                ]
                ours = wanted if size == 4 else wanted | mapped
                chosen = [name for name in found if name[_LOCAL : _LOCAL + size] in ours]
                ended += sum(kernel.delete(_DESTROY, question + name) for name in chosen)
    except OSError as error:
        _log.debug("connections of the tunnel cannot be ended: %s", reason_of(error))
    return ended
