"""The exit's process: from its configuration to a listening exit, and to its end.

    configuration -> provider, identity, secrets -> control socket -> [network interface] -> listeners -> ready
    SIGHUP, or a changed file (exit_files.py) -> peers, limits, certificate, and the log level
    signal -> what one process can have only is released, ports first: the next exit can start -> open streams have
              their time -> all in reverse

Whatever a person must mend is found before anything listens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from msgspec import structs

from ..base.address_changes import address_changes
from ..base.changes import Changes, NoChanges, pause
from ..base.log import set_level
from ..base.own_addresses import own_addresses
from ..base.passed_sockets import PassedSockets
from ..base.program import to_run
from ..base.tasks import spawn
from ..base.text import counted
from ..config.exit import ExitConfig, ExitLimitsTable
from ..config.keys import choose_provider, plan_identity
from ..crypto.identity import PeerId
from ..errors import ConfigError, CryprqError, reason_of
from ..exit.egress_policy import EgressPolicy
from ..exit.exit import Exit
from ..exit.flight_memory import kept_flights
from ..exit.providers import NO_INVITES, NO_PACKETS, PacketNetwork
from ..exit.settings import ExitSettings, WebSocketSettings
from ..outbound.resolving.resolver import SystemResolver
from ..pairing.invitation import refuse_lost_identity
from ..pairing.invite_store import Redeemer
from ..process.actions import Action
from ..process.control import ControlServer, check_free
from ..process.file_watch import FileWatch
from ..process.garbage import COLLECTOR
from ..process.lifecycle import Stop
from ..process.peers_pages import PEERS
from ..process.recent_errors import RecentErrors
from ..process.reload import Reloader
from ..process.sd_notify import Notifier, exit_summary
from ..process.started import STARTED, Started
from ..process.watchdog import Watchdog
from ..status import ExitStatus, PairingStatus, PeersPage
from ..web.guard import new_token
from .exit_files import ExitFiles, LoadedExit
from .startup import ProcessStatus, explained, needs_restart, read_again, until_one_ends

_log = logging.getLogger(__name__)

_TAKEN: Final = ("allow", "limits", "websocket.certificate", "websocket.key", "log_level")
"""The keys and tables that a reload puts in force, beside the contents of the file `authorized`."""
OWN_ADDRESSES_SECONDS: Final = 60.0
"""How often the exit looks which addresses this machine has, if the kernel tells of no change."""
_PLACE_DIGITS: Final = 9
"""Of a place in the list of peers."""
NOT_TOLD: Final = Started(role="exit", file="", flags={})
"""Of a configuration that is no file's."""

type StartNetwork = Callable[[ExitConfig, EgressPolicy], Awaitable[PacketNetwork]]


def exit_settings(config: ExitConfig) -> ExitSettings:
    """Raises ConfigError if the pre-shared key cannot be read."""
    web = config.websocket
    return ExitSettings(
        listen=config.listen,
        psk=config.psk(),
        limits=config.session_limits(),
        bounds=config.bounds(),
        lane=config.lane.settings() if config.lane.enabled else None,
        proxies=config.proxy_protocol,
        advertise=config.advertise,
        websocket=None
        if web.listen is None
        else WebSocketSettings(web.listen, web.path, web.certificate, web.key, web.forwarded),
    )


async def no_network(config: ExitConfig, policy: EgressPolicy) -> PacketNetwork:
    """The StartNetwork of an exit that carries no packets."""
    return NO_PACKETS


def nobody_waits() -> None:
    """The `released` of an exit for which no successor is started while it ends."""


async def run_exit(
    config: ExitConfig,
    read: Callable[[], ExitConfig],
    stop: Stop,
    start_network: StartNetwork = no_network,
    authorized: Path | None = None,
    watch: FileWatch | None = None,
    released: Callable[[], None] = nobody_waits,
    started: Started = NOT_TOLD,
) -> None:
    """The exit until `stop`; with another `start_network`, for clients in system-wide mode too. `read` gives the
    configuration as it is later, after a change of a file that `watch` has: it has the configuration already. Peers
    that come with an invite are written into the file `authorized`; None: invites are refused. `released` is called
    when another exit can start with the same configuration; open streams may go on for `shutdown_grace` after that.
    `started`: by what the configuration was made. Raises CryprqError and OSError."""
    stop.hold_reload()
    provider, watch = choose_provider(config.provider), watch or FileWatch()
    files = ExitFiles(read, watch, authorized)
    settings, names = exit_settings(config), files.peers(config)
    if authorized is not None:
        refuse_lost_identity(config, authorized)
    planned, egress = plan_identity(provider, config.identity), config.egress
    policy = EgressPolicy(egress.allow, egress.deny, egress.only, config.allow_private, own_addresses())
    async with AsyncExitStack() as stack:
        recent = stack.enter_context(RecentErrors())
        check_free(config.control_socket)
        network = await start_network(config, policy)
        stack.push_async_callback(network.close)
        alone = await stack.enter_async_context(AsyncExitStack())
        alone.push_async_callback(network.release)
        resolver = SystemResolver()
        stack.callback(resolver.close)
        invites = NO_INVITES if authorized is None else Redeemer(authorized)
        stack.callback(invites.close)
        flights = await alone.enter_async_context(kept_flights())
        exit = Exit(planned.identity, settings, names, policy, resolver, provider, network, invites, flights)
        running = RunningExit(config, exit, names, authorized, files.again, stop.notifier, recent)
        actions: dict[str, Action] = {
            "reload": running.reload,
            PEERS: running.peers,
            STARTED: started.tell,
        }
        control = ControlServer(config.control_socket, running.status, actions)
        await control.start()
        alone.push_async_callback(control.stop)
        passed = PassedSockets.from_environment()
        stack.callback(passed.close)
        await running.listen(stack, passed)
        await running.serve_metrics(alone)
        planned.keep()
        addresses = spawn(_follow_addresses(policy, network), "own addresses")
        work = spawn(until_one_ends(addresses, spawn(network.lost(), "exit's device")), "own addresses")
        stack.callback(work.cancel)
        read_again(stack, stop, running.reloader, watch)
        COLLECTOR.start()
        running.log_ready(planned.identity.peer_id)
        stop.notifier.ready(lambda: exit_summary(*exit.counts()), Watchdog(exit.work))
        await stop.wait(work)
        await _end(stop, exit, network, alone, config.shutdown_grace, released)


async def _end(
    stop: Stop,
    exit: Exit,
    network: PacketNetwork,
    alone: AsyncExitStack,
    grace: float,
    released: Callable[[], None],
) -> None:
    """Release what is in `alone`, say so by `released`, and let the streams have their `grace` seconds. Raises
    CryprqError where something could not be released."""
    exit.retire()
    _log.info("stopping: open streams have %g s to end; a second signal ends them now", grace)
    failure = await _release(alone)
    released()
    if not await stop.hurry(_run_out(exit, grace, network, replaced=released is not nobody_waits)):
        _log.info("stopping at once")
    if failure is not None:
        raise failure


async def _run_out(exit: Exit, grace: float, network: PacketNetwork, *, replaced: bool) -> None:
    """Let the streams end. Where a successor is started at once, it also has its time to take the network over."""
    await exit.stop(grace)
    if replaced:
        await network.succeeded()


async def _release(alone: AsyncExitStack) -> CryprqError | None:
    """Undo what only one exit can have on a machine. What could not be undone is returned: open streams go on."""
    try:
        await alone.aclose()
    except CryprqError as error:
        _log.error("%s", error)
        return error
    _log.info("released: another exit can start here")
    return None


class RunningExit:
    """An exit that runs. `names` are those of the peers, `read` gives what a reload puts in force."""

    def __init__(
        self,
        config: ExitConfig,
        exit: Exit,
        names: dict[PeerId, str],
        authorized: Path | None,
        read: Callable[[], LoadedExit],
        notifier: Notifier,
        recent: RecentErrors,
    ) -> None:
        self._config = config
        self._limits = config.limits
        self._exit = exit
        self._names = names
        self._authorized = authorized
        self._process = ProcessStatus(recent)
        self.reloader = Reloader(read, self.apply, notifier, turn=exit.list_turn)

    async def apply(self, loaded: LoadedExit) -> str:
        """Put the list of peers, limits, certificate and log level in force."""
        before = self._names
        config, self._names, certificate = loaded
        set_level(config.log_level)
        ended = self._exit.authorize(self._names)
        gone = len(before.keys() - self._names.keys())
        if gone and not self._names:
            _log.warning(
                "nobody is allowed any more: the list of peers, which had %d, is empty now, and %s ended",
                gone,
                counted(ended, "session"),
            )
        elif gone and self._names.keys() <= set(config.allow):
            _log.warning(
                "the list of peers, which had %d more, is empty now, and %s ended: only %s of `allow` may come in",
                gone,
                counted(ended, "session"),
                counted(len(self._names), "peer"),
            )
        said = f"{counted(len(self._names), 'peer')} allowed"
        if ended:
            said += f", {counted(ended, 'session')} of unlisted peers ended"
        if config.limits != self._limits:
            said += ", other limits"
            self._take_limits(config.limits)
        if isinstance(certificate, ConfigError):
            _log.error("the certificate stays the one it was: %s", certificate)
            said += f", the old certificate, as {certificate}"
        # An entrance that is to go at the next start serves as it does until then.
        elif config.websocket.listen is not None and self._exit.listener.take_certificate(certificate):
            said += ", without TLS" if certificate is None else ", another certificate"
        return said + needs_restart(self._config_with_list(config), config, _TAKEN)

    def _take_limits(self, limits: ExitLimitsTable) -> None:
        """What a session's limits have of other tables stays as it was at the start."""
        self._limits = limits
        config = structs.replace(self._config, limits=limits)
        self._exit.take_limits(config.session_limits(), config.bounds())

    def _config_with_list(self, now: ExitConfig) -> ExitConfig:
        """The configuration of the start. The list that counts by itself may have been made since, by an invite."""
        if self._config.authorized is not None or now.authorized is None:
            return self._config
        return structs.replace(self._config, authorized=self._authorized)

    async def reload(self, _: str) -> dict[str, object]:
        """The command of the control socket."""
        return {"reloaded": await self.reloader.reload()}

    async def peers(self, start: str) -> PeersPage:
        """A page of all peers, from place `start` of the list on: a number in decimal digits, without it 0. Raises
        CryprqError."""
        # `int` takes other digits too, and refuses thousands of them in words of its own.
        if start and not (start.isascii() and start.isdecimal() and len(start) <= _PLACE_DIGITS):
            raise CryprqError(f"a page of peers begins at a number of at most {_PLACE_DIGITS} digits")
        return await self._exit.peers(int(start or "0"))

    async def status(self) -> ExitStatus:
        told, config = await self._exit.status(), self._config
        pairing = PairingStatus(
            authorized=None if self._authorized is None else str(self._authorized.absolute()),
            public=config.public,
            psk=config.psk_file is not None,
            listen=tuple(map(str, self._process.listen[: len(config.listen)])),
        )
        return self._process.add_to(structs.replace(told, pairing=pairing))

    async def listen(self, stack: AsyncExitStack, passed: PassedSockets) -> None:
        """Start the exit until the stack ends, where it can on the `passed` sockets. Raises CryprqError for an address
        that cannot be had."""
        websocket = self._config.websocket.listen
        with explained([*self._config.listen, *([] if websocket is None else [websocket])]):
            self._process.listen = tuple(await self._exit.start(passed))
        stack.push_async_callback(self._exit.stop, 0.0)

    async def serve_metrics(self, stack: AsyncExitStack) -> None:
        """Serve them until the stack ends, if they are configured. Raises CryprqError."""
        config = self._config
        if config.metrics is None:
            return
        from ..web.server import MetricsServer  # with aiohttp, which takes a third of a second to load

        metrics = MetricsServer(config.metrics, self.status, config.metrics_token() or new_token())
        with explained([config.metrics], "metrics in the configuration"):
            await metrics.start()
        stack.push_async_callback(metrics.stop)

    def log_ready(self, own: PeerId) -> None:
        """Say where clients find this exit, whose peer id is `own`."""
        if not self._names:
            _log.warning(
                "no peer is allowed yet, so nobody gets in: invite one with `%s`, or use --allow",
                to_run("invite NAME"),
            )
        listen = self._process.listen
        # An exit that listens on all addresses has no single host.
        host = "HOST" if ip_address(listen[0].host).is_unspecified else str(listen[0]).rpartition(":")[0]
        _log.info(
            "ready: exit on %s for %s; clients say --peer cryprq://%s@%s:%d",
            ", ".join(map(str, listen)),
            counted(len(self._names), "peer"),
            own,
            host,
            listen[0].port,
        )


async def _follow_addresses(policy: EgressPolicy, network: PacketNetwork) -> None:
    """Let the policy know which addresses this machine has, right after each change."""
    clock = asyncio.get_running_loop().time
    own: frozenset[str] = frozenset()
    with _address_changes() as changes:
        while True:
            started, before = clock(), own
            own = own_addresses(before)
            if own != before:
                policy.update_own_addresses(own)
                network.policy_changed()
            await asyncio.sleep(pause(clock() - started))
            with suppress(TimeoutError):
                async with asyncio.timeout(OWN_ADDRESSES_SECONDS):
                    await changes.wait()


def _address_changes() -> Changes:
    try:
        return address_changes(routes=True)
    except OSError as error:
        _log.debug(
            "the kernel tells no changes of addresses (%s): they are looked up every %g s",
            reason_of(error),
            OWN_ADDRESSES_SECONDS,
        )
        return NoChanges()
