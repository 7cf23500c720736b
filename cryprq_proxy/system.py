"""System-wide mode: from the configuration to what is in `tun`. The only module that imports it, and only when asked.

It stands apart so that the proxy runs where no TUN device, netlink or packet filter exists.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .config import ClientConfig, ExitConfig
from .errors import ConfigError
from .roles.egress import EgressPolicy

_log = logging.getLogger(__name__)


def _need_linux_and_root(what: str) -> None:
    if sys.platform != "linux":
        raise ConfigError(f"{what} works on Linux only so far; the local proxy works everywhere")
    if os.geteuid():
        raise ConfigError(f"{what} changes routes and filters of this machine: run it as root (sudo)")


def make_tunnel(config: ClientConfig) -> Any:
    """The Tunnel (tun/tunnel.py) of a client. Raises ConfigError."""
    _need_linux_and_root("--tun")
    if config.upstream is not None:
        raise ConfigError(
            "--tun and --upstream exclude each other: the packets of the link could not be told apart"
        )
    from tun.dns.settings import DnsSettings
    from tun.settings import TunnelSettings
    from tun.tunnel import Tunnel

    tun = config.tun
    dns = tun.dns
    return Tunnel(
        TunnelSettings(
            offload=tun.offload == "auto",
            exclude=tun.exclude,
            include=tun.include,
            exclude_uids=tun.exclude_uid,
            lan=tun.lan == "allow",
            kill_switch=tun.kill_switch == "on",
            keep_inbound=tun.inbound == "keep",
            confirm=tun.confirm,
            state=tun.state_dir,
            dns=DnsSettings(
                upstreams=dns.upstreams,
                split=dict(dns.split),
                blocklists=dns.blocklists,
                block=dns.block,
                allow=dns.allow,
                block_answer=dns.block_answer,
                cache_entries=dns.cache_entries,
                cache_bytes=dns.cache_bytes,
                stale=dns.stale,
            ),
        ),
        config.peer.address,
    )


def make_network(config: ExitConfig, policy: EgressPolicy) -> Any:
    """The ExitNetwork (tun/exit_network.py) of an exit. Raises ConfigError."""
    _need_linux_and_root("--tun at the exit")
    from tun.exit_network import ExitNetwork
    from tun.settings import ExitNetworkSettings

    tun = config.tun
    return ExitNetwork(
        ExitNetworkSettings(
            offload=tun.offload == "auto",
            pool4=tun.pool4,
            pool6=tun.pool6,
            isolate=tun.isolate,
            state=tun.state_dir,
        ),
        policy,
    )


def clean_up(state: Path, say: Callable[[str], None]) -> None:
    """Undo what a process that was killed has left of either role. Raises CryprqError.

    Needs no configuration. Does nothing, and says so, where nothing is left.
    """
    _need_linux_and_root("cleanup")
    from tun.cleanup import clean

    done = clean(state)
    say(f"undone: {', '.join(done)}" if done else "nothing was left to undo")
