"""The client's tunnel on a fake Mac, in this process: real classes, with stand-ins for what this machine has not."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import cast

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.base import leftovers
from cryprq_proxy.base.changes import NoChanges
from cryprq_proxy.client.exits import Exits
from cryprq_proxy.rules.engine import EVERYTHING
from tun import dry_run, interface, tunnel
from tun.macos.system import MacOS
from tun.settings import TunnelSettings
from tun.tunnel import TunnelPlan

EXITS = [Destination("203.0.113.9", 4433), Destination("2001:db8:9::9", 4433)]


class QuietServer:
    """In place of the forwarder's sockets, for which the tests' machine has no address."""

    port = 53

    def __init__(self, forwarder: object) -> None: ...
    async def listen(self, hosts: object, port: int) -> None: ...
    def close(self) -> None: ...


class NoReconciler:
    def __init__(self, facts: object) -> None: ...
    def wake(self) -> None: ...
    async def stop(self) -> None: ...


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the rest of a test."""
    for module in (interface, tunnel):
        monkeypatch.setattr(module, "Reconciler", NoReconciler)
    monkeypatch.setattr(interface, "DnsServer", QuietServer)
    monkeypatch.setattr(interface, "build", lambda *_, **__: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(leftovers, "claimed", lambda role: contextlib.nullcontext())
    monkeypatch.setattr(MacOS, "link_changes", NoChanges)


async def start(system: MacOS, settings: TunnelSettings) -> tunnel.Tunnel:
    started = await TunnelPlan.of(system, settings, EXITS, EVERYTHING).start()
    started.addressed(dry_run.ADDRESS4.packed, dry_run.ADDRESS6.packed)
    link = SimpleNamespace(
        open=None,
        open_resolver=None,
        send_packet=lambda *_: True,
        redial=lambda: None,
        lane_size=None,
    )
    try:
        await started.run(cast(Exits, link))
    except BaseException as error:
        await started.close(type(error), error, None)
        raise
    return started
