"""The exit's process: from its configuration to a listening exit, and to its end.

    configuration -> provider, identity, secrets -> control socket -> [network interface] -> listeners -> ready
    SIGHUP, or a changed file -> the authorized peers, and the log level
    signal -> no new streams, the open ones have their time -> all in reverse

Whatever a person must mend is found before anything listens.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Final, NamedTuple

from msgspec import structs

from ..address import Destination
from ..base.log import set_level
from ..base.tasks import spawn
from ..config.exit import ExitConfig
from ..config.keys import choose_provider, own_identity
from ..crypto.identity import PeerId
from ..exit.egress import EgressPolicy, own_addresses
from ..exit.exit import Exit
from ..exit.providers import NO_INVITES, NO_PACKETS, PacketNetwork
from ..exit.settings import ExitSettings, WebSocketSettings
from ..outbound.resolver import SystemResolver
from ..pairing.invite_store import Redeemer
from ..process.actions import Action
from ..process.control import ControlServer, check_free
from ..process.lifecycle import Stop, settle
from ..process.recent_errors import RecentErrors
from ..process.reload import Reloader
from ..process.sd_notify import summary
from ..status import ExitStatus, PairingStatus, PeerStatus
from ..web.guard import new_token
from .startup import (
    StatusReport,
    count,
    explained,
    lane_offload,
    read_again,
    until_one_ends,
)

_log = logging.getLogger(__name__)

OWN_ADDRESSES_SECONDS: Final = 60.0
"""How often the exit looks which addresses this machine has."""
MAX_PEERS_TOLD: Final = 1000
"""In the status."""


def exit_settings(config: ExitConfig) -> ExitSettings:
    """Raises ConfigError if the pre-shared key cannot be read."""
    web = config.websocket
    return ExitSettings(
        listen=config.listen,
        psk=config.psk(),
        limits=config.session_limits(),
        bounds=config.bounds(),
        lane=lane_offload(config.lane),
        websocket=None
        if web.listen is None
        else WebSocketSettings(web.listen, web.path, web.certificate, web.key, web.forwarded),
    )


async def run_exit(
    config: ExitConfig,
    read: Callable[[], ExitConfig],
    stop: Stop,
    start_network: Callable[[ExitConfig, EgressPolicy], Awaitable[PacketNetwork]] | None = None,
    files: Iterable[Path] = (),
    authorized: Path | None = None,
) -> None:
    """The exit until `stop`; with `start_network`, for clients in system-wide mode too. `read` gives the configuration
    as it is later, when one of `files` has changed. Peers that come with an invite are written into the file
    `authorized`; None: invites are refused. Raises CryprqError and OSError."""
    provider = choose_provider(config.provider)
    settings, names = exit_settings(config), config.named_peers()
    identity = own_identity(provider, config.identity)
    egress = config.egress
    policy = EgressPolicy(egress.allow, egress.deny, egress.only, config.allow_private, own_addresses())
    resolver = SystemResolver()
    redeemer = None if authorized is None else Redeemer(authorized)

    async with AsyncExitStack() as stack:
        recent = stack.enter_context(RecentErrors())
        check_free(config.control_socket)
        network = NO_PACKETS if start_network is None else await start_network(config, policy)
        stack.push_async_callback(network.close)
        exit = Exit(
            identity, settings, frozenset(names), policy, resolver, provider, network, redeemer or NO_INVITES
        )
        running = RunningExit(config, exit, names, authorized)
        reloader = Reloader(lambda: LoadedExit.of(read()), running.apply, stop.notifier)
        report = StatusReport(running.status, recent)
        stack.callback(resolver.close)
        if redeemer is not None:
            stack.callback(redeemer.close)
        control = ControlServer(config.control_socket, report, _actions(reloader))
        await control.start()
        stack.push_async_callback(control.stop)
        report.listen = running.addresses = await _listen(config, exit)
        stack.push_async_callback(exit.stop, 0.0)
        await _serve_metrics(stack, config, report)
        addresses = spawn(_follow_addresses(policy, network), "own addresses")
        stack.callback(addresses.cancel)
        work = spawn(until_one_ends(addresses, spawn(network.lost(), "exit's device")), "own addresses")
        stack.callback(work.cancel)
        listed = [*files, *([] if authorized is None else [authorized])]
        read_again(stack, stop, reloader, lambda: listed)
        settle()
        if not names:
            _log.warning(
                "no peer is allowed yet, so nobody gets in: invite one with `cryprq-proxy invite NAME`, or use --allow"
            )
        _log.info(
            "ready: exit on %s for %s; clients say --peer %s",
            ", ".join(map(str, report.listen)),
            count(len(names), "peer"),
            _peer_url(identity.peer_id, report.listen[0]),
        )
        stop.notifier.ready(lambda: summary(exit.status()))
        await stop.wait(work)
        _log.info(
            "stopping: open streams have %g s to end; a second signal ends them now", config.shutdown_grace
        )
        if not await stop.hurry(exit.stop(config.shutdown_grace)):
            _log.info("stopping at once")


class LoadedExit(NamedTuple):
    """What can be read again while the exit runs."""

    config: ExitConfig
    names: dict[PeerId, str]

    @classmethod
    def of(cls, config: ExitConfig) -> LoadedExit:
        """With the peers of the file `authorized`, as it is now. Raises ConfigError."""
        return cls(config, config.named_peers())


class RunningExit:
    """An exit that runs, as the control socket sees it. `addresses` are where it listens."""

    def __init__(
        self, config: ExitConfig, exit: Exit, names: dict[PeerId, str], authorized: Path | None
    ) -> None:
        self._config = config
        self._exit = exit
        self._names = names
        self._authorized = authorized
        self.addresses: tuple[Destination, ...] = ()

    async def apply(self, loaded: LoadedExit) -> str:
        """Put the list of peers and the log level in force."""
        config, self._names = loaded
        set_level(config.log_level)
        self._exit.authorize(frozenset(self._names))
        return f"{count(len(self._names), 'peer')} allowed"

    async def status(self) -> ExitStatus:
        told = self._exit.status()
        return structs.replace(
            told,
            peers=peers_told(self._names, (session.peer_id for session in told.sessions)),
            pairing=_pairing(self._config, self._authorized, self.addresses[: len(self._config.listen)]),
        )


async def _listen(config: ExitConfig, exit: Exit) -> tuple[Destination, ...]:
    """Start the exit. Raises CryprqError for an address that cannot be had."""
    websocket = config.websocket.listen
    with explained([*config.listen, *([] if websocket is None else [websocket])]):
        return tuple(await exit.start())


async def _serve_metrics(stack: AsyncExitStack, config: ExitConfig, report: StatusReport) -> None:
    """Serve them until the stack ends, if they are configured. Raises CryprqError."""
    if config.metrics is None:
        return
    from ..web.server import MetricsServer  # with aiohttp, which takes a third of a second to load

    metrics = MetricsServer(config.metrics, report, config.metrics_token() or new_token())
    with explained([config.metrics], "metrics in the configuration"):
        await metrics.start()
    stack.push_async_callback(metrics.stop)


def peers_told(names: Mapping[PeerId, str], sessions: Iterable[str]) -> tuple[PeerStatus, ...]:
    """Peers for the status, with how many of `sessions` (a peer id for each) they have; those with most
    first. A peer that was invited a moment ago has no name yet: names are read with the list."""
    counts = Counter(sessions)
    known = {str(peer): name for peer, name in names.items()}
    everybody = sorted(dict.fromkeys(counts) | known, key=lambda peer: -counts[peer])
    return tuple(
        PeerStatus(peer_id=peer, name=known.get(peer, ""), sessions=counts[peer])
        for peer in everybody[:MAX_PEERS_TOLD]
    )


def _pairing(config: ExitConfig, authorized: Path | None, listen: Iterable[Destination]) -> PairingStatus:
    return PairingStatus(
        authorized=None if authorized is None else str(authorized.absolute()),
        public=config.public,
        psk=config.psk_file is not None,
        listen=tuple(map(str, listen)),
    )


def _actions(reloader: Reloader[LoadedExit]) -> dict[str, Action]:
    """What the control socket can ask of an exit beside its status."""

    async def reload(_: str) -> dict[str, object]:
        return {"reloaded": await reloader.reload()}

    return {"reload": reload}


async def _follow_addresses(policy: EgressPolicy, network: PacketNetwork) -> None:
    while True:
        policy.update_own_addresses(own_addresses())
        network.policy_changed()
        await asyncio.sleep(OWN_ADDRESSES_SECONDS)


def _peer_url(peer: PeerId, address: Destination) -> str:
    """An example of a client's --peer; an exit that listens on all addresses has no single host."""
    host = "HOST" if ip_address(address.host).is_unspecified else str(address).rpartition(":")[0]
    return f"cryprq://{peer}@{host}:{address.port}"
