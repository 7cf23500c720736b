"""A configuration turned into a running client or exit, from the first check to the last connection closed.

    configuration -> provider, identity, secrets -> control socket -> listener -> ready line -> signal -> all in reverse

Whatever a person must mend is found before anything listens. `Stop` (process.py) brings the signals.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Protocol

from . import __version__
from .address import Destination
from .carriers.dial import Upstream, by_system
from .carriers.udp import UdpOffload
from .carriers.udp_check import check_offload
from .config import ClientConfig, ExitConfig, ProviderChoice, read_psk
from .control import Action, ControlServer
from .crypto.identity import Identity, PeerId
from .crypto.primitives import Provider, select_provider
from .errors import ConfigError, CryprqError
from .fronts.mixed import ListenerSettings, MixedListener
from .log import describe
from .process import Stop, settle
from .roles.client import Client, ClientNetwork, ClientSettings, keep_up
from .roles.egress import EgressPolicy, own_addresses
from .roles.exit import Exit, ExitSettings, PacketNetwork
from .roles.resolver import SystemResolver
from .system_config import Lane
from .tasks import spawn

_log = logging.getLogger(__name__)

MAX_PAUSE: Final = 3600
OWN_ADDRESSES_SECONDS: Final = 60.0
"""How often the exit looks which addresses this machine has."""

type Reload = Callable[[], frozenset[PeerId]]
"""Reads again who is let in. Raises ConfigError."""


# --- what both roles need ---


def choose_provider(choice: ProviderChoice) -> Provider:
    """The provider of that name, with a warning if it is the slow one. Raises ConfigError."""
    provider = select_provider(None if choice == "auto" else choice)
    if not provider.fast:
        _log.warning(
            "ML-KEM and ML-DSA come from %s: slow, and not in constant time; better is a `cryptography` package "
            "with OpenSSL 3.5 or later",
            provider.name,
        )
    return provider


def own_identity(provider: Provider, path: Path) -> Identity:
    """The identity in that file, made now if there is none. Raises ConfigError."""
    if not os.path.lexists(path):
        identity = Identity.generate(provider)
        try:
            identity.save(path)
        except ConfigError:
            if not os.path.lexists(path):
                raise
            # The other role, started at the same moment, made it.
        else:
            _log.info("a new identity is in %s: its peer id is %s", path, identity.peer_id)
            return identity
    return Identity.load(provider, path)


@contextmanager
def explained(listen: Sequence[Destination], flag: str = "--listen") -> Iterator[None]:
    """Turns an OSError of listening into a CryprqError that names the address and says what to do."""
    try:
        yield
    except OSError as error:
        # The standard library puts the address into the text, and nowhere else.
        named = [address for address in listen if repr((address.host, address.port)) in str(error)]
        where = " or ".join(map(str, named or listen))
        if isinstance(error, socket.gaierror):
            text = f"there is no address for {where}; give another one with {flag}"
        elif error.errno == errno.EADDRINUSE:
            text = f"{where} is in use by another program; stop that one, or give another address with {flag}"
        elif error.errno == errno.EADDRNOTAVAIL:
            text = f"this machine has no address {where}; give one that it has with {flag}"
        elif error.errno in (errno.EACCES, errno.EPERM):
            text = f"listening on {where} needs more rights; give a port from 1024 on with {flag}"
        else:
            reason = os.strerror(error.errno).lower() if error.errno else describe(error)
            text = f"listening on {where} failed: {reason}"
        raise CryprqError(text) from None


class Report:
    """What the control socket tells: the role's status, that of system-wide mode, and what only the process knows."""

    def __init__(
        self,
        status: Callable[[], Mapping[str, Any]],
        wide: Callable[[], Awaitable[Mapping[str, Any]]] | None = None,
    ) -> None:
        self._status = status
        self._wide = wide
        self._started = time.monotonic()
        self.listen: tuple[Destination, ...] = ()

    async def __call__(self) -> dict[str, Any]:
        return {
            **self._status(),
            "system": None if self._wide is None else await self._wide(),
            "listen": [str(address) for address in self.listen],
            "version": __version__,
            "pid": os.getpid(),
            "uptime": round(time.monotonic() - self._started, 3),
        }


# --- client ---


def lane_offload(lane: Lane) -> UdpOffload | None:
    """What the datagram lane may use of the kernel's batching; None for no lane at all."""
    return check_offload(lane.offload) if lane.enabled else None


def client_settings(config: ClientConfig, mark: int = 0) -> ClientSettings:
    """Raises ConfigError if the pre-shared key cannot be read."""
    upstream = config.upstream
    return ClientSettings(
        peer=config.peer.peer_id,
        address=config.peer.address,
        psk=None if config.psk_file is None else read_psk(config.psk_file),
        upstream=None if upstream is None else Upstream(upstream.address, upstream.user, upstream.password),
        wait_for_link=config.wait_for_link,
        lane=lane_offload(config.lane) if upstream is None else None,
        mark=mark,
        limits=config.session_limits(),
    )


def listener_settings(config: ClientConfig) -> ListenerSettings:
    """Raises ConfigError if the user file cannot be read."""
    return ListenerSettings(
        listen=config.listen,
        credentials=config.credentials(),
        negotiation_timeout=config.negotiation_timeout,
        max_connections=config.limits.max_connections,
        via=config.via,
    )


async def run_client(
    config: ClientConfig, stop: Stop, wide: Callable[[ClientConfig], System] | None = None
) -> None:
    """The client until `stop`; with `wide`, for the whole system. Raises CryprqError and OSError."""
    provider = choose_provider(config.provider)
    system = None if wide is None else wide(config)
    settings = client_settings(config, 0 if system is None else system.mark)
    listening = listener_settings(config)
    identity = own_identity(provider, config.identity)
    client = Client(identity, settings, provider, system, by_system if system is None else system.resolve)
    listener = MixedListener(client, listening)
    report = Report(client.status, None if system is None else system.status)
    async with AsyncExitStack() as stack:
        control = ControlServer(config.control_socket, report, _actions(system))
        await control.start()
        stack.push_async_callback(control.stop)
        if system is not None:
            stack.push_async_exit(system.close)
            await system.prepare()
        stack.push_async_callback(client.stop)
        with explained([config.listen]):
            address = listener.start()
        stack.push_async_callback(listener.stop)
        report.listen = (address,)
        link = keep_up(client)
        if system is not None:
            link = spawn(_until_one_ends(link, spawn(system.lost(), "tunnel device")), "link")
            _log.info("nothing gets out until the link is up")
            if not await stop.until(system.run(client), link):
                return
        settle()
        _log.info(
            "ready: %sSOCKS5, SOCKS4a and HTTP proxy on %s, exit %s at %s",
            "" if system is None else "the whole system is routed; ",
            address,
            settings.peer,
            settings.address,
        )
        if system is not None:
            if not await _confirmed(system, config.tun.confirm, stop, link):
                system.fail_closed = False
                raise CryprqError("it was not confirmed in time, so everything is undone")
            system.fail_closed = True
        await stop.wait(link)
        _log.info("stopping")


async def _until_one_ends(*works: asyncio.Task[None]) -> None:
    """Raises what the first one that ends has raised; the others are cancelled."""
    try:
        done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
        for work in done:
            work.result()
    finally:
        for work in works:
            work.cancel()


class System(ClientNetwork, Protocol):
    """System-wide mode as the client's process sees it: tun/tunnel.py. `close` is like an __aexit__: after a failure,
    `fail_closed` says whether the kill switch is to stay."""

    mark: int
    confirmed: asyncio.Event
    fail_closed: bool

    async def prepare(self) -> None: ...
    async def resolve(self, name: str) -> Sequence[str]: ...
    async def run(self, client: Client) -> None: ...
    async def lost(self) -> None: ...
    async def pause(self, seconds: int) -> None: ...
    async def status(self) -> dict[str, Any]: ...
    async def close(self, *failure: Any) -> None: ...


def _actions(system: System | None) -> dict[str, Action]:
    """What the control socket can ask of a client beside its status."""

    def wide() -> System:
        if system is None:
            raise CryprqError("it does not run with --tun, so there is nothing to pause or confirm")
        return system

    async def pause(argument: str) -> dict[str, object]:
        if not (argument.isascii() and argument.isdecimal()) or not 1 <= int(argument) <= MAX_PAUSE:
            raise CryprqError(f"a pause has 1 to {MAX_PAUSE} seconds")
        await wide().pause(int(argument))
        return {"paused": int(argument)}

    async def confirm(_: str) -> dict[str, object]:
        wide().confirmed.set()
        return {"confirmed": True}

    return {"pause": pause, "confirm": confirm}


async def _confirmed(system: System, seconds: float, stop: Stop, link: asyncio.Task[None]) -> bool:
    """Whether a person said in time that all is well; at once if nobody has to. Also when a stop is asked for."""
    if not seconds:
        return True
    _log.warning("everything is undone in %g s unless you call: cryprq-proxy confirm", seconds)
    try:
        async with asyncio.timeout(seconds):
            await stop.until(system.confirmed.wait(), link)
    except TimeoutError:
        return False
    return True


# --- exit ---


def exit_settings(config: ExitConfig) -> ExitSettings:
    """Raises ConfigError if the pre-shared key cannot be read."""
    limits = config.limits
    return ExitSettings(
        listen=config.listen,
        psk=None if config.psk_file is None else read_psk(config.psk_file),
        limits=config.session_limits(),
        retained_total=limits.retained_total,
        opens_per_second=limits.opens_per_second,
        handshakes_in_flight=limits.handshakes_in_flight,
        handshakes_per_minute=limits.handshakes_per_minute,
        sessions_per_peer=limits.sessions_per_peer,
        detached_sessions_per_peer=limits.detached_sessions_per_peer,
        resume_seconds=limits.resume_seconds,
        connect_timeout=limits.connect_timeout,
        lane=lane_offload(config.lane),
    )


class Network(PacketNetwork, Protocol):
    """The exit's network interface as its process sees it: tun/exit_network.py."""

    async def start(self) -> None: ...
    async def lost(self) -> None: ...
    async def close(self) -> None: ...
    def policy_changed(self) -> None: ...


async def run_exit(
    config: ExitConfig,
    reload: Reload,
    stop: Stop,
    wide: Callable[[ExitConfig, EgressPolicy], Network] | None = None,
) -> None:
    """The exit until `stop`; with `wide`, for packets of whole systems too. Raises CryprqError and OSError."""
    provider = choose_provider(config.provider)
    settings, authorised = exit_settings(config), config.authorised_peers()
    identity = own_identity(provider, config.identity)
    egress = config.egress
    policy = EgressPolicy(egress.allow, egress.deny, egress.only, config.allow_private, own_addresses())
    resolver = SystemResolver()
    network = None if wide is None else wide(config, policy)
    exit = Exit(identity, settings, authorised, policy, resolver, provider, network)
    report = Report(exit.status)
    async with AsyncExitStack() as stack:
        stack.callback(resolver.close)
        control = ControlServer(config.control_socket, report)
        await control.start()
        stack.push_async_callback(control.stop)
        if network is not None:
            await network.start()
            stack.push_async_callback(network.close)
        with explained(config.listen):
            report.listen = tuple(await exit.start())
        stack.push_async_callback(exit.stop, 0.0)
        addresses = spawn(_follow_addresses(policy, network), "own addresses")
        stack.callback(addresses.cancel)
        work = addresses
        if network is not None:
            work = spawn(_until_one_ends(addresses, spawn(network.lost(), "exit's device")), "own addresses")
            stack.callback(work.cancel)
        stop.reload = partial(_reload, exit, reload)
        settle()
        if not authorised:
            _log.warning(
                "no peer is allowed yet, so nobody gets in: add --allow PEERID, or a line to the file of --authorized"
            )
        _log.info(
            "ready: exit on %s for %s; clients say --peer %s",
            ", ".join(map(str, report.listen)),
            _count(len(authorised), "peer"),
            _peer_url(identity.peer_id, report.listen[0]),
        )
        await stop.wait(work)
        _log.info(
            "stopping: open streams have %g s to end; a second signal ends them now", config.shutdown_grace
        )
        if not await stop.hurry(exit.stop(config.shutdown_grace)):
            _log.info("stopping at once")


async def _follow_addresses(policy: EgressPolicy, network: Network | None) -> None:
    while True:
        policy.update_own_addresses(own_addresses())
        if network is not None:
            network.policy_changed()
        await asyncio.sleep(OWN_ADDRESSES_SECONDS)


def _reload(exit: Exit, reload: Reload) -> None:
    try:
        peers = reload()
    except ConfigError as error:
        _log.error("the list of allowed peers stays as it was: %s", error)
        return
    exit.authorise(peers)
    _log.info("reloaded: %s allowed", _count(len(peers), "peer"))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _peer_url(peer: PeerId, address: Destination) -> str:
    """What a client's --peer may look like; who listens on all addresses has no single host."""
    host = "HOST" if ip_address(address.host).is_unspecified else str(address).rpartition(":")[0]
    return f"cryprq://{peer}@{host}:{address.port}"
