"""Direct names that the proxy refuses, because they resolve to this machine and no rule says so."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from ..address import Destination
from ..carriers.dial.tcp import by_system
from ..client.own_listeners import DirectPolicy
from ..errors import CryprqError
from ..rules.engine import RuleSet
from ..rules.syntax import Verdict

MAX_NAMES: Final = 8
"""Names that are asked for."""
SECONDS: Final = 3.0
_HTTPS: Final = 443


async def refused_names(rules: RuleSet) -> list[str]:
    """Those of the first MAX_NAMES direct names in `domains` of which the proxy may connect to no address, as
    "NAME (ADDRESS)". Asks the system's resolver, as the proxy does for each of them."""
    policy = DirectPolicy()
    policy.rules = rules
    names = list(islice(dict.fromkeys(_direct_names(rules)), MAX_NAMES))
    answers = await asyncio.gather(*[_addresses(name.host) for name in names])
    return [
        f"{host} ({found[0]})"
        for (host, port), found in zip(names, answers, strict=True)
        if found and not any(policy.check_address(ip, port, host) for ip in found)
    ]


def _direct_names(rules: RuleSet) -> Iterator[Destination]:
    """Each with the first port that its rule is about."""
    for rule in rules.rules:
        port = rule.ports[0][0] if rule.ports else _HTTPS
        for domain in rule.domains:
            name = domain.removeprefix(".")
            if "*" not in name and rules.decide(name, port).action.verdict is Verdict.DIRECT:
                yield Destination(name, port)


async def _addresses(name: str) -> Sequence[str]:
    """Nothing for a name that has none, or that nobody answers for in time."""
    try:
        async with asyncio.timeout(SECONDS):
            return await by_system(name)
    except (TimeoutError, CryprqError):
        return ()
