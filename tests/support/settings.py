"""The settings of each part as a configuration without keys gives them, with the changes that a test names.

Parts have no defaults of their own for what a configuration sets (tests/config/test_defaults.py), so tests that do not
care about a value take it from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from cryprq_proxy.address import Destination
from cryprq_proxy.carriers.dial.endpoint import Endpoint
from cryprq_proxy.client.settings import ClientSettings
from cryprq_proxy.config.both_roles import RotationTable
from cryprq_proxy.config.client import ClientConfig
from cryprq_proxy.config.exit import ExitConfig
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.exit.settings import ExitBounds, ExitSettings
from cryprq_proxy.fronts.listener import ListenerSettings
from cryprq_proxy.service.client_parts import listener_settings as configured_listener
from cryprq_proxy.service.system_wide import exit_network_settings as configured_exit_network
from cryprq_proxy.service.system_wide import tunnel_settings as configured_tunnel
from cryprq_proxy.session.key_limits import RotationLimits
from cryprq_proxy.session.session import SessionLimits
from cryprq_proxy.session.wire import LaneUse
from tun.dns.settings import DnsSettings
from tun.settings import ExitNetworkSettings, TunnelSettings

CLIENT = ClientConfig()
EXIT = ExitConfig()
ANYWHERE = Destination("127.0.0.1", 0)


def rotation_limits(**changes: Any) -> RotationLimits:
    return replace(RotationTable().limits(), **changes)


def session_limits(**changes: Any) -> SessionLimits:
    return replace(CLIENT.session_limits(), **changes)


def client_settings(peer: PeerId, endpoints: tuple[Endpoint, ...], **changes: Any) -> ClientSettings:
    settings = ClientSettings(
        peer, endpoints, CLIENT.session_limits(), CLIENT.wait_for_link, CLIENT.connect, LaneUse.AUTO
    )
    return replace(settings, **changes)


def listener_settings(listen: Destination = ANYWHERE, **changes: Any) -> ListenerSettings:
    return replace(configured_listener(CLIENT), listen=listen, **changes)


def exit_settings(
    *listen: Destination, bounds: Mapping[str, Any] | None = None, **changes: Any
) -> ExitSettings:
    """Listening on loopback, unless told otherwise; `bounds` has fields of ExitBounds."""
    changed: ExitBounds = msgspec.structs.replace(EXIT.bounds(), **bounds or {})
    return replace(ExitSettings(listen or (ANYWHERE,), EXIT.session_limits(), changed), **changes)


def tunnel_settings(**changes: Any) -> TunnelSettings:
    return replace(configured_tunnel(CLIENT.tun), **changes)


def dns_settings(**changes: Any) -> DnsSettings:
    return replace(tunnel_settings().dns, **changes)


def exit_network_settings(**changes: Any) -> ExitNetworkSettings:
    return replace(configured_exit_network(EXIT.tun), **changes)
