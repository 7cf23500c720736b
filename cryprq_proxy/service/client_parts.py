"""What a client is made of: what is read before anything starts, and what a reload reads again.

configuration -> rules, exits, identity, where applications connect    all of it checked, nothing of it in force
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

from msgspec import structs

from ..base import progress
from ..base.descriptors import for_applications
from ..base.file_access import open_list
from ..carriers.lane.settings import LaneSettings
from ..client.endpoint_memory import EndpointFile
from ..client.exit_entry import PlannedExit
from ..config.client import ClientConfig
from ..config.keys import PlannedIdentity, choose_provider, plan_identity
from ..crypto.primitives import Provider
from ..fronts.listener import ListenerSettings
from ..process.file_watch import FileWatch
from ..rules.engine import RuleSet, load_rules
from ..rules.lists import unreported
from .tun_mode import NO_TUN, TunModePlan

type MakeTun = Callable[[ClientConfig, RuleSet], TunModePlan]
_OF_ALL_LINKS: Final = (
    "upstream", "wait_for_link", "connect", "carrier", "lane", "keepalive", "rotation",
)  # fmt: skip
"""What links have in common, and keep until a restart."""


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

    identity: PlannedIdentity
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
        identity = plan_identity(provider, config.identity)
        return cls(identity, provider, rules, planner, exits, listening), plan
