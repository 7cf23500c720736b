"""The client's process: from its configuration to a listening proxy, and to its end.

    configuration, rules -> provider, identity, secrets -> control socket -> [system-wide mode: filter]
        -> exits, rules in force -> proxy's port -> dashboard -> [device, routes, resolver] -> ready
    SIGHUP, a changed file, or a person -> exits, rules, lists, forwards, limits and log level
    signal -> all in reverse

Whatever a person must mend is found before anything listens.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

from msgspec import structs

from ..address import Destination, reachable
from ..base.clock import filter_clock
from ..base.log import set_level
from ..base.tasks import spawn
from ..base.text import counted
from ..base.work import LookAtWork, no_work
from ..client.dispatcher import Dispatcher
from ..client.exit_entry import MakeEntry, PlannedExit, entry_maker
from ..client.exits import Exits, keep_up, plan_exits
from ..client.packet_ports import NO_NETWORK
from ..client.roaming import follow_addresses
from ..client.try_target import TRY, try_by_rules
from ..config.client import DEFAULT_ADMIN, ClientConfig
from ..errors import CryprqError
from ..fronts.listener import ListenerSettings, MixedListener
from ..fronts.own_page import PAGE
from ..process.actions import Action, Actions, commands
from ..process.control import ControlServer, check_free
from ..process.file_watch import FileWatch
from ..process.garbage import COLLECTOR
from ..process.lifecycle import Stop
from ..process.recent_errors import RecentErrors
from ..process.reload import Reloader
from ..process.sd_notify import Notifier, summary
from ..process.started import STARTED, Started
from ..process.watchdog import Watchdog
from ..rules.engine import RuleSet
from ..rules.pac.script import pac
from ..session.retention import SlotPool
from ..status import AskedExit, ClientStatus, DnsStatus, OpenConnection, RulesStatus, Traffic
from ..web.guard import new_token
from .client_parts import ClientParts, Loaded, MakeTun, listener_limits, load, no_tun
from .explanation import EXPLAIN, RulesInForce
from .facts import OwnFacts
from .forwards import Forwards
from .startup import ProcessStatus, explained, needs_restart, read_again, until_one_ends
from .system_names import try_names
from .tun_mode import NO_TUN, Confirmation, TunMode

_log = logging.getLogger(__name__)

_TAKEN: Final = (
    "peer", "exit", "psk_file", "ca", "rule", "default", "forward", "limits", "log_level",
    "tun.dns.blocklists", "tun.dns.block", "tun.dns.allow",
)  # fmt: skip
"""The keys and tables that a reload puts in force."""
NOT_TOLD: Final = Started(role="client", file="", flags={})
"""Of a configuration that is no file's."""
AUTO: Final = "auto"
"""In place of an exit's name: choose by priority and health."""


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
    stop.hold_reload()
    watch = watch or FileWatch()
    parts, plan = await ClientParts.of(config, make_tun, watch)
    async with AsyncExitStack() as stack:
        recent = stack.enter_context(RecentErrors())
        check_free(config.control_socket)
        tun = await plan.start()
        stack.push_async_exit(tun.close)
        network = NO_NETWORK if tun is NO_TUN else tun
        slots = SlotPool()
        make = entry_maker(parts.identity.identity, parts.provider, slots, network, tun.resolve)
        exits = plan_exits(parts.exits, make, slots, failback=config.failback)
        dispatcher = Dispatcher(exits, parts.rules)

        def again() -> Loaded:
            return load(read(), watch, parts.planner)

        running = RunningClient(config, exits, make, dispatcher, tun, again, stop.notifier, recent)
        control = ControlServer(config.control_socket, running.status, running.actions(started, watch))
        await control.start()
        stack.push_async_callback(control.stop)
        stack.push_async_callback(exits.stop)
        stack.callback(dispatcher.stop)
        await running.listen(stack, parts.listening)
        parts.identity.keep()
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
        self._forwards: Forwards | None = None
        self._listener: MixedListener | None = None
        self._pause_until = 0.0
        """By the filter's clock."""
        self.work: LookAtWork = no_work
        """That of the proxy's port."""
        self._pac = ""
        self.reloader = Reloader(read, self.apply, notifier)

    def actions(self, started: Started, watch: FileWatch) -> dict[str, Action]:
        """What the control socket is asked for."""
        answers = RulesInForce(lambda: self._dispatcher.rules, self.reloader, watch)
        return commands(self) | {
            STARTED: started.tell,
            EXPLAIN: answers.explain,
            PAGE: self.open_page,
            TRY: partial(try_by_rules, self._dispatcher),
        }

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
            forwards=() if self._forwards is None else self._forwards.status(),
            admin=None if self._admin is None else f"http://{self._admin}/",
            tun=await self._tun.status(),
        )
        return self._process.add_to(told)

    def _pause_left(self) -> int:
        """Whole seconds."""
        return math.ceil(max(self._pause_until - filter_clock(), 0))

    async def _names_problem(self) -> str:
        if not self._config.tun.enabled:
            return ""
        tried = await try_names(self._dns)
        return tried.problem if tried.all_fail else ""

    async def _dns(self) -> DnsStatus | None:
        tun = await self._tun.status()
        return None if tun is None else tun.dns

    def traffic(self) -> Traffic:
        links, packets = self._exits.traffic(), self._tun.traffic()
        return Traffic(sent=links.sent + packets.sent, received=links.received + packets.received)

    def streams(self) -> Sequence[OpenConnection]:
        return self._dispatcher.connections()

    def pac(self) -> str:
        return self._pac

    async def report(self, exit: str = "") -> AskedExit:
        return await self._exits.report(exit)

    def dashboard(self) -> str:
        if self._admin is None:
            raise CryprqError('there is no dashboard: set admin = "127.0.0.1:1081" in the configuration')
        return f"http://{reachable(self._admin)}/#token={self._token}"

    # --- what starts ---

    async def listen(self, stack: AsyncExitStack, settings: ListenerSettings) -> None:
        """Take connections of applications until the stack ends. Raises CryprqError."""
        facts = OwnFacts(self._exits, self._pause_left, self._names_problem)
        listener = MixedListener(self._dispatcher, settings, facts)
        self._listener = listener
        self.work = listener.work
        with explained([settings.listen]):
            self._proxy = listener.start()
        stack.push_async_callback(listener.stop)
        self._process.listen = (self._proxy,)
        self._dispatcher.direct.never_to(self._proxy)
        forwards = Forwards(listener, self._dispatcher.direct)
        await forwards.start(self._config.forward)
        self._forwards = forwards
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
            ", ".join(f"exit {settings.shown_at(settings.endpoints[0])}" for _, _, settings in exits),
        )

    # --- what can be changed ---

    async def apply(self, loaded: Loaded) -> str:
        """Put exits, rules, forwards, limits and log level in force, for connections from now on. Raises CryprqError;
        then all is as before."""
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
        forwards = "" if self._forwards is None else await self._forwards.change(config.forward)
        counts = f"{counted(len(rules.rules), 'rule')}, {counted(len(rules.listed), 'listed name')}"
        return f"{counts}, {change}{forwards}" + needs_restart(self._config, config, _TAKEN)

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
        self._pause_until = filter_clock() + seconds

    async def open_page(self, _: str) -> dict[str, object]:
        """The command PAGE of the control socket."""
        if self._listener is None:
            raise CryprqError("the client is just starting; try again")
        return {"open": await self._tun.open_page(self._listener.serve_visitor)}

    def confirm(self) -> None:
        self.confirmation.give()
