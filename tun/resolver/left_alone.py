"""The system's resolver left as it is: by a person's wish, or where its file cannot be changed.

Names go through the tunnel nonetheless: the filter brings each question that would leave by port 53 to the forwarder,
whichever server it is for. A server on this machine is asked without that, and its own questions are brought.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryprq_proxy.base.resolv_conf import nameservers

from .resolvconf_files import RESOLV_CONF, content_of
from .setting import ResolverSetting

_log = logging.getLogger(__name__)

KIND: Final = "left alone"


def reaches_forwarder(content: bytes, addresses: Sequence[str]) -> bool:
    """Whether programs that read a resolv.conf of this content are answered while the forwarder is at `addresses`."""
    redirected = {ip_address(address).version for address in addresses}
    servers = [ip_address(server) for server in nameservers(content)]
    return any(
        server.is_loopback or (server.version in redirected and not server.is_link_local)
        for server in servers
    )


class LeftAlone(ResolverSetting):
    """Changes nothing. `upstreams` are those of the setting that is not made."""

    kind = KIND

    def __init__(self, upstreams: Callable[[], tuple[str, ...]], path: Path = RESOLV_CONF) -> None:
        self._upstreams = upstreams
        self._path = path

    async def set(self, addresses: Sequence[str], index: int, name: str) -> None:
        """Warn where names do not work so. Raises ConfigError if the file cannot be read."""
        if not reaches_forwarder(content_of(self._path), addresses):
            _log.warning(
                "the resolver is left alone, but %s names no server whose questions reach the forwarder; name one, "
                "for example %s",
                self._path,
                addresses[0],
            )

    async def look(self) -> str:
        return ""

    def upstreams(self) -> tuple[str, ...]:
        return self._upstreams()
