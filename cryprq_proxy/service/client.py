"""The client's process: from its configuration to a listening proxy, and to its end.

    configuration, rules -> provider, identity, secrets -> control socket -> [system-wide mode: filter]
        -> exits, rules in force -> proxy's port -> dashboard -> [device, routes, resolver] -> ready
    SIGHUP, a changed file, or a person -> exits, rules, lists, limits and log level
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
from ..carriers.lane.settings import LaneSettings
from ..client.dispatcher import Dispatcher
from ..client.endpoint_memory import EndpointFile
from ..client.exit_entry import MakeEntry, PlannedExit, entry_maker
from ..client.exits import Exits, keep_up, plan_exits
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
from ..session.retention import SlotPool
from ..status import AskedExit, ClientStatus, ForwardStatus, OpenConnection, RulesStatus, Traffic
from ..web.guard import new_token
from .explanation import EXPLAIN, RulesInForce
from .facts import OwnFacts
from .startup import ProcessStatus, explained, needs_restart, read_again, until_one_ends
from .tun_mode import NO_TUN, Confirmation, TunMode, TunModePlan

_log = logging.getLogger(__name__)

type MakeTun = Callable[[ClientConfig, RuleSet], TunModePlan]
_TAKEN: Final = (
    "peer", "exit", "psk_file", "ca", "rule", "default", "limits", "log_level",
    "tun.dns.blocklists", "tun.dns.block", "tun.dns.allow",
)  # fmt: skip
"""The keys and tables that a reload puts in force."""
_OF_ALL_LINKS: Final = (
    "upstream", "wait_for_link", "connect", "carrier", "lane", "keepalive", "rotation",
)  # fmt: skip
"""What links have in common, and keep until a restart."""
NOT_TOLD: Final = Started(role="client", file="", flags={})
"""Of a configuration that is no file's."""
AUTO: Final = "auto"
"""In place of an exit's name: choose by priority and health."""


class Loaded(NamedTuple):
    """What can be read again while the program runs."""

    config: ClientConfig
    rules: RuleSet
    exits: tuple[PlannedExit, ...]


def read_rules(config: ClientConfig, watch: FileWatch, shown: progress.Report = unreported) -> RuleSet:
    """Read the rule lists that `config` names; takes seconds where they are long. `watch` looks at them from now on.
    Raises ConfigError."""
    rules = config.rules()
    watch.before_reading(*(path for rule in rules for path in rule.lists))
    return load_rules(rules, config.default, progress=shown, opener=open_list)


class ExitPlanner(NamedTuple):
    """Plans the exits of a configuration, as links to them can be made in a process that was `started` with that one.
    `lane` was measured then: another result is no change of the configuration. `mark` is the SO_MARK of their
    sockets."""

    started: ClientConfig
    lane: LaneSettings | None
    memories: EndpointFile
    mark: int

    def plan(self, config: ClientConfig, watch: FileWatch) -> tuple[PlannedExit, ...]:
        """`watch` looks at the files of pre-shared keys from now on. Raises ConfigError for one that is unreadable."""
        common = {key: getattr(self.started, key) for key in _OF_ALL_LINKS}
        config = structs.replace(config, **common)
        choices = config.exits()
        watch.before_reading(*(choice.psk_file for choice in choices if choice.psk_file is not None))
        return tuple(
            PlannedExit(
                choice.name,
                choice.priority,
                config.link_settings(choice, self.lane, self.memories.of(choice.peer_id), self.mark),
            )
            for choice in choices
        )


def load(config: ClientConfig, watch: FileWatch, planner: ExitPlanner) -> Loaded:
    """What a reload puts in force; blocks. `watch` looks from now on at all files that are read. Raises ConfigError."""
    watch.before_reading(*config.tun.dns.blocklists)
    return Loaded(config, read_rules(config, watch), planner.plan(config, watch))


def no_tun(config: ClientConfig, rules: RuleSet) -> TunModePlan:
    """The MakeTun of a client that is only a proxy."""
    return NO_TUN


def listener_settings(config: ClientConfig) -> ListenerSettings:
    """Raises ConfigError if the user file cannot be read."""
    return ListenerSettings(
        listen=config.listen,
        credentials=config.credentials(),
        negotiation_timeout=config.negotiation_timeout,
        max_connections=listener_limits(config)[0],
        via=config.via,
        idle_timeout=listener_limits(config)[1],
    )


def listener_limits(config: ClientConfig) -> tuple[int, float]:
    """How many connections applications may have, and after how many idle seconds one ends."""
    return min(config.limits.max_connections, for_applications()), config.limits.idle_timeout


class ClientParts(NamedTuple):
    """What is read before anything starts, so that a person hears first what to mend."""

    identity: Identity
    provider: Provider
    rules: RuleSet
    planner: ExitPlanner
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
            rules = await asyncio.to_thread(read_rules, config, watch, shown)
        watch.before_reading(*config.tun.dns.blocklists)
        plan = make_tun(config, rules)
        memories = EndpointFile.load(choice.peer_id for choice in config.exits())
        planner = ExitPlanner(config, config.lane_settings(), memories, plan.mark)
        exits = planner.plan(config, watch)
        listening = listener_settings(config)
        identity = own_identity(provider, config.identity)
        return cls(identity, provider, rules, planner, exits, listening), plan


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
        slots = SlotPool()
        make = entry_maker(parts.identity, parts.provider, slots, network, tun.resolve)
        exits = plan_exits(parts.exits, make, slots, failback=config.failback)
        dispatcher = Dispatcher(exits, parts.rules)
        running = RunningClient(
            config,
            exits,
            make,
            dispatcher,
            tun,
            lambda: load(read(), watch, parts.planner),
            stop.notifier,
            recent,
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
        make: MakeEntry,
        dispatcher: Dispatcher,
        tun: TunMode,
        read: Callable[[], Loaded],
        notifier: Notifier,
        recent: RecentErrors,
    ) -> None:
        self._config = config
        self._exits = exits
        self._make = make
        exits.left = lambda: spawn(self._forget_exits(), "addresses of exits")
        self._dispatcher = dispatcher
        self._tun = tun
        self.confirmation = Confirmation(tun, config.tun.confirm if config.tun.enabled else 0)
        self._process = ProcessStatus(recent)
        self._token = new_token()
        self._admin: Destination | None = None
        self._proxy = config.listen
        """Where the proxy listens."""
        self._forwards: Sequence[ForwardCount] = ()
        self._listener: MixedListener | None = None
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

    def traffic(self) -> Traffic:
        links, packets = self._exits.traffic(), self._tun.traffic()
        return Traffic(sent=links.sent + packets.sent, received=links.received + packets.received)

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
        listener = MixedListener(self._dispatcher, settings, OwnFacts(self._exits))
        self._listener = listener
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
            ", ".join(f"exit {settings.shown} at {settings.endpoints[0]}" for _, _, settings in exits),
        )

    # --- what can be changed ---

    async def apply(self, loaded: Loaded) -> str:
        """Put exits, rules, limits and log level in force, for connections from now on. Raises CryprqError; then all is
        as before."""
        exits, rules, config = self._exits, loaded.rules, loaded.config
        before, plans_before, dns = self._dispatcher.rules, exits.plans, config.tun.dns
        block = await self._tun.read_names(dns.blocklists, dns.block, dns.allow)
        places = [endpoint.address for plan in loaded.exits for endpoint in plan.settings.endpoints]
        await self._tun.follow_exits((*exits.addresses, *places))
        try:
            change = exits.change(loaded.exits, self._make)
            self._dispatcher.rules = rules
            await self._tun.apply_rules(rules)
        except BaseException:
            exits.change(plans_before, self._make)
            self._dispatcher.rules = before
            raise
        block()
        await self._forget_exits()
        if self._listener is not None:
            self._listener.take_limits(*listener_limits(config))
        await self.make_pac(rules)
        set_level(config.log_level)
        said = f"{counted(len(rules.rules), 'rule')}, {counted(len(rules.listed), 'listed name')}, {change}"
        return said + needs_restart(self._config, config, _TAKEN)

    async def _forget_exits(self) -> None:
        """Let no link out any more to where none leads."""
        try:
            await self._tun.follow_exits(self._exits.addresses)
        except CryprqError as error:
            _log.warning("addresses of exits that were removed stay allowed: %s", error)

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
