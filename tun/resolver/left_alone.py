"""The system's resolver left as it is: by a person's wish, or where its file cannot be changed.

Names go through the tunnel nonetheless: the filter brings each question that would leave by port 53 to the forwarder,
whichever server it is for. A server on this machine is asked without that, and its own questions are brought.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Final

from ..system import ResolverSetting

_log = logging.getLogger(__name__)

KIND: Final = "left alone"


def any_reaches_forwarder(servers: Iterable[str], addresses: Sequence[str]) -> bool:
    """Whether questions to one of these name servers are answered while the forwarder is at `addresses`."""
    redirected = {ip_address(address).version for address in addresses}
    return any(
        server.is_loopback or (server.version in redirected and not server.is_link_local)
        for server in map(ip_address, servers)
    )


class LeftAlone(ResolverSetting):
    """Changes nothing. `found` is the setting that is not made."""

    kind = KIND

    def __init__(self, found: ResolverSetting) -> None:
        self._found = found

    async def set(self, addresses: Sequence[str], index: int, name: str) -> None:
        """Warn where names do not work so. Raises ConfigError if that cannot be found out."""
        if why := await self._found.out_of_reach(addresses):
            _log.warning("the resolver is left alone, but names do not work: %s", why)

    async def look(self) -> str:
        return ""

    def upstreams(self) -> tuple[str, ...]:
        return self._found.upstreams()
