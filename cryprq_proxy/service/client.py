"""The client's process: from its configuration to a listening proxy, and to its end.

    configuration, rules -> provider, identity, secrets -> control socket -> [system-wide mode: filter]
        -> exits, rules in force -> proxy's port -> dashboard -> [device, routes, resolver] -> ready
    SIGHUP, a changed file, or a person -> rules, lists and log level
    signal -> all in reverse

Whatever a person must mend is found before anything listens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Final, NamedTuple

from msgspec import structs

from ..address import Destination, reachable
from ..base import progress
from ..base.descriptors import for_applications
from ..base.file_access import open_list
from ..base.log import set_level
from ..base.tasks import spawn
from ..base.text import counted
from ..base.work import LookAtWork, no_work
from ..client.dispatcher import Dispatcher
from ..client.endpoint_memory import EndpointFile
from ..client.exits import Exits, PlannedExit, keep_up, plan_exits
from ..client.packet_ports import NO_NETWORK
from ..client.roaming import follow_addresses
from ..client.try_target import TRY, try_by_rules
from ..config.client import DEFAULT_ADMIN, ClientConfig
from ..config.keys import choose_provider, own_identity
from ..crypto.identity import Identity
from ..crypto.primitives import Provider
from ..errors import CryprqError
from ..fronts.listener import ForwardCount, ListenerSettings, MixedListener
from ..process.actions import Actions, commands
from ..process.control import ControlServer, check_free
from ..process.file_watch import FileWatch
from ..process.garbage import COLLECTOR
from ..process.lifecycle import Stop
from ..process.recent_errors import RecentErrors
from ..process.reload import Reloader
from ..process.sd_notify import Notifier, summary
from ..process.started import STARTED, Started
from ..process.watchdog import Watchdog
from ..rules.engine import RuleSet, load_rules
from ..rules.lists import unreported
from ..rules.pac.script import pac
from ..status import AskedExit, ClientStatus, ForwardStatus, OpenConnection, RulesStatus
from ..web.guard import new_token
from .explanation import EXPLAIN, RulesInForce
from .startup import ProcessStatus, explained, needs_restart, read_again, until_one_ends
from .tun_mode import NO_TUN, Confirmation, TunMode, TunModePlan

_log = logging.getLogger(__name__)

type MakeTun = Callable[[ClientConfig, RuleSet], TunModePlan]
_TAKEN: Final = ("rule", "default", "log_level")
"""The keys that a reload puts in force."""
NOT_TOLD: Final = Started(role="client", file="", flags={})
"""Of a configuration that is no file's."""
AUTO: Final = "auto"
"""In place of an exit's name: choose by priority and health."""


class Loaded(NamedTuple):
    """What can be read again while the program runs. Only rules and log level of the configuration are."""

    config: ClientConfig
    rules: RuleSet


def load(config: ClientConfig, watch: FileWatch, shown: progress.Report = unreported) -> Loaded:
    """Read the rule lists that `config` names; takes seconds where they are long. `watch` looks at them from now on.
    Raises ConfigError."""
    rules = config.rules()
    watch.before_reading(*(path for rule in rules for path in rule.lists))
    return Loaded(config, load_rules(rules, config.default, progress=shown, opener=open_list))


def no_tun(config: ClientConfig, rules: RuleSet) -> TunModePlan:
    """The MakeTun of a client that is only a proxy."""
    return NO_TUN


def listener_settings(config: ClientConfig) -> ListenerSettings:
    """Raises ConfigError if the user file cannot be read."""
    return ListenerSettings(
        listen=config.listen,
        credentials=config.credentials(),
        negotiation_timeout=config.negotiation_timeout,
        max_connections=min(config.limits.max_connections, for_applications()),
        via=config.via,
        idle_timeout=config.limits.idle_timeout,
    )


class ClientParts(NamedTuple):
    """What is read before anything starts, so that a person hears first what to mend."""

    identity: Identity
    provider: Provider
    rules: RuleSet
    exits: tuple[PlannedExit, ...]
    listening: ListenerSettings

    @classmethod
    async def of(
        cls, config: ClientConfig, make_tun: MakeTun, watch: FileWatch
    ) -> tuple[ClientParts, TunModePlan]:
        """Raises CryprqError."""
        provider = choose_provider(config.provider)
        lists = any(rule.lists for rule in config.rule)
        with (progress.bar if lists else progress.unseen)("reading lists") as shown:
            rules = (await asyncio.to_thread(load, config, watch, shown)).rules
        plan = make_tun(config, rules)
        choices = config.exits()
        memories = EndpointFile.load(choice.peer_id for choice in choices)
        exits = tuple(
            PlannedExit(
                choice.name,
                choice.priority,
                config.link_settings(choice, memories.of(choice.peer_id), plan.mark),
            )
            for choice in choices
        )
        listening = listener_settings(config)
        return cls(own_identity(provider, config.identity), provider, rules, exits, listening), plan


async def run_client(
    config: ClientConfig,
    read: Callable[[], ClientConfig],
    stop: Stop,
    make_tun: MakeTun = no_tun,
    watch: FileWatch | None = None,
    started: Started = NOT_TOLD,
) -> None:
    """The client until `stop`; with another `make_tun`, in system-wide mode. `read` gives the configuration as it is
    later, after a change of a file that `watch` has: it has the configuration already. `started`: by what that was
    made. Raises CryprqError and OSError."""
    watch = watch or FileWatch()
    parts, plan = await ClientParts.of(config, make_tun, watch)
    async with AsyncExitStack() as stack:
        recent = stack.enter_context(RecentErrors())
        check_free(config.control_socket)
        tun = await plan.start()
        stack.push_async_exit(tun.close)
        network = NO_NETWORK if tun is NO_TUN else tun
        exits = plan_exits(
            parts.identity, parts.provider, parts.exits, network, tun.resolve, failback=config.failback
        )
        dispatcher = Dispatcher(exits, parts.rules)
        running = RunningClient(
            config, exits, dispatcher, tun, lambda: load(read(), watch), stop.notifier, recent
        )
        answers = RulesInForce(lambda: dispatcher.rules, running.reloader, watch)
        actions = commands(running) | {
            STARTED: started.tell,
            EXPLAIN: answers.explain,
            TRY: partial(try_by_rules, dispatcher),
        }
        control = ControlServer(config.control_socket, running.status, actions)
        await control.start()
        stack.push_async_callback(control.stop)
        stack.push_async_callback(exits.stop)
        stack.callback(dispatcher.stop)
        await running.listen(stack, parts.listening)
        link = spawn(until_one_ends(keep_up(exits), spawn(tun.lost(), "tunnel device")), "link")
        if tun is NO_TUN:
            stack.callback(spawn(follow_addresses(exits), "addresses").cancel)
        await running.open_admin(stack)
        if config.tun.enabled:
            _log.info("nothing gets out until the link is up")
        if not await stop.until(tun.run(exits), link):
            return
        read_again(stack, stop, running.reloader, watch)
        COLLECTOR.start()
        running.log_ready(parts.exits)
        stop.notifier.ready(
            lambda: summary(exits.status()), Watchdog(lambda: [*running.work(), *exits.work()])
        )
        await running.confirmation.wait(stop, link)
        await stop.wait(link)
        _log.info("stopping")


class RunningClient(Actions):
    """A client that runs. `read` gives what `reload` puts in force."""

    def __init__(
        self,
        config: ClientConfig,
        exits: Exits,
        dispatcher: Dispatcher,
        tun: TunMode,
        read: Callable[[], Loaded],
        notifier: Notifier,
        recent: RecentErrors,
    ) -> None:
        self._config = config
        self._exits = exits
        self._dispatcher = dispatcher
        self._tun = tun
        self.confirmation = Confirmation(tun, config.tun.confirm if config.tun.enabled else 0)
        self._process = ProcessStatus(recent)
        self._token = new_token()
        self._admin: Destination | None = None
        self._proxy = config.listen
        """Where the proxy listens."""
        self._forwards: Sequence[ForwardCount] = ()
        self.work: LookAtWork = no_work
        """That of the proxy's port."""
        self._pac = ""
        self.reloader = Reloader(read, self.apply, notifier)

    # --- what can be told ---

    async def status(self) -> ClientStatus:
        rules, reloader = self._dispatcher.rules, self.reloader
        told = structs.replace(
            self._exits.status(),
            connections=self._dispatcher.counts(),
            rules=RulesStatus(
                rules=len(rules.rules),
                names=len(rules.listed),
                default=str(rules.default),
                broken=rules.listed.broken,
                problems=tuple(map(str, rules.listed.problems)),
                loaded_at=round(reloader.loaded_at, 3),
                error=reloader.error,
            ),
            forwards=tuple(
                ForwardStatus(listen=str(each.listen), to=str(each.to), connections=each.connections)
                for each in self._forwards
            ),
            admin=None if self._admin is None else f"http://{self._admin}/",
            tun=await self._tun.status(),
        )
        return self._process.add_to(told)

    def streams(self) -> Sequence[OpenConnection]:
        return self._dispatcher.connections()

    def pac(self) -> str:
        return self._pac

    async def report(self) -> AskedExit:
        return await self._exits.report()

    def dashboard(self) -> str:
        if self._admin is None:
            raise CryprqError('there is no dashboard: set admin = "127.0.0.1:1081" in the configuration')
        return f"http://{reachable(self._admin)}/#token={self._token}"

    # --- what starts ---

    async def listen(self, stack: AsyncExitStack, settings: ListenerSettings) -> None:
        """Take connections of applications until the stack ends. Raises CryprqError."""
        listener = MixedListener(self._dispatcher, settings)
        self.work = listener.work
        with explained([settings.listen]):
            self._proxy = listener.start()
        stack.push_async_callback(listener.stop)
        for forward in self._config.forward:
            with explained([forward.listen], "-L or [[forward]]"):
                self._dispatcher.direct.never_to(listener.forward(forward.listen, forward.to))
            _log.info("%s is forwarded to %s", forward.listen, forward.to)
        self._forwards = listener.forwards
        self._process.listen = (self._proxy,)
        self._dispatcher.direct.never_to(self._proxy)
        await self.make_pac(self._dispatcher.rules)

    async def make_pac(self, rules: RuleSet) -> None:
        """Nearly a second where there are more rules than fit, so on a thread."""
        reached = reachable(self._proxy)
        self._pac = await asyncio.to_thread(pac, rules, reached, reached)

    async def open_admin(self, stack: AsyncExitStack) -> None:
        """Serve the dashboard until the stack ends. Raises CryprqError where the address cannot be had; the default one
        may be taken by another client of this machine, which is no reason not to start."""
        listen = self._config.admin
        if listen is None:
            return
        from ..web.server import AdminServer  # with aiohttp, which takes a third of a second to load

        server = AdminServer(listen, self, self._token)
        try:
            with explained([listen], "admin in the configuration"):
                self._admin = await server.start()
                self._dispatcher.direct.never_to(self._admin)
        except CryprqError as error:
            if listen != DEFAULT_ADMIN:
                raise
            _log.warning("there is no dashboard and no PAC file: %s", error)
            return
        stack.push_async_callback(server.stop)

    def log_ready(self, exits: Iterable[PlannedExit]) -> None:
        _log.info(
            "ready: %sSOCKS5, SOCKS4a and HTTP proxy on %s, %s",
            "the whole system is routed; " if self._config.tun.enabled else "",
            self._proxy,
            ", ".join(
                f"exit {name} ({settings.peer}) at {settings.endpoints[0]}" for name, _, settings in exits
            ),
        )

    # --- what can be changed ---

    async def apply(self, loaded: Loaded) -> str:
        """Put rules and log level in force, for connections from now on. Raises CryprqError; then all is as before."""
        before, rules = self._dispatcher.rules, loaded.rules
        self._dispatcher.rules = rules
        try:
            await self._tun.apply_rules(rules)
        except BaseException:
            self._dispatcher.rules = before
            raise
        await self.make_pac(rules)
        set_level(loaded.config.log_level)
        said = f"{counted(len(rules.rules), 'rule')}, {counted(len(rules.listed), 'listed name')}"
        return said + needs_restart(self._config, loaded.config, _TAKEN)

    async def reload(self) -> str:
        return await self.reloader.reload()

    def close(self, id: str) -> bool:
        return self._dispatcher.close(id)

    def choose_exit(self, name: str) -> None:
        self._exits.pin(None if name == AUTO else name)

    async def pause(self, seconds: int) -> None:
        await self._tun.pause(seconds)

    def confirm(self) -> None:
        self.confirmation.give()
