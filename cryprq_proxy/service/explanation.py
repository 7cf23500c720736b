"""Which rule decides about a target, for a person: from the rules of a running client, or from those of a file.

The answer of a running client also says whether its rules are still those of its files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct, structs

from ..address import OWN_NAME, AddressError, Destination, parse_host_port
from ..errors import ConfigError
from ..fronts.own_page import OWN_PAGE
from ..process.file_watch import FileWatch
from ..process.reload import Reloader
from ..rules.engine import RuleSet
from ..rules.explain import explain as explain_proxy
from ..rules.pac import script as pac

EXPLAIN: Final = "explain"
"""The command of the control socket; its argument is HOST:PORT."""


class Explanation(Struct, frozen=True, kw_only=True):
    """`index` is -1 for the default; `proxy`, `pac` and `tun` are sentences. `broken`: number of invalid lines in
    lists, of which `problems` has the first ones. `error`: why the newest files are not in use; `changed`: they have
    been changed, and not been read again yet."""

    target: str
    action: str
    rule: str
    index: int
    proxy: str
    pac: str
    tun: str
    problems: tuple[str, ...] = ()
    broken: int = 0
    error: str | None = None
    changed: bool = False


def explain_target(rules: RuleSet, target: Destination) -> Explanation:
    """Nearly a second where there are more rules than fit into a PAC file."""
    from .system_wide import explain_rules

    if target.host == OWN_NAME:
        return _own(rules, target)
    decision = rules.decide(*target)
    return Explanation(
        target=str(target),
        action=str(decision.action),
        rule=decision.rule,
        index=decision.index,
        proxy=explain_proxy(rules, *target),
        pac=pac.explain(rules, *target),
        tun=explain_rules(rules, *target),
        problems=tuple(map(str, rules.listed.problems)),
        broken=rules.listed.broken,
    )


def _own(rules: RuleSet, target: Destination) -> Explanation:
    """Of our own name, about which no rule decides."""
    page = target.port == OWN_PAGE.port
    answers = "answers itself, with its own page" if page else "answers that there is no such name"
    opened = (
        "this computer answers itself, for minutes after `check --browser`; else there is no such name"
        if page
        else f"nothing is there: the page is http://{OWN_NAME}/"
    )
    return Explanation(
        target=str(target),
        action="own page" if page else "no such name",
        rule="default",
        index=-1,
        proxy=f"the proxy {answers}",
        pac=pac.explain(rules, *target),
        tun=opened,
    )


class RulesInForce:
    """Explains by the rules that `rules` gives, which `reloader` reads and `watch` looks after."""

    def __init__(self, rules: Callable[[], RuleSet], reloader: Reloader[Any], watch: FileWatch) -> None:
        self._rules = rules
        self._reloader = reloader
        self._watch = watch

    async def explain(self, argument: str) -> dict[str, object]:
        """The action of the control socket. Raises ConfigError."""
        try:
            target = parse_host_port(argument)
        except AddressError as error:
            raise ConfigError(f"expected HOST:PORT: {error}") from None
        changed = await self._watch.differs()
        found = await asyncio.to_thread(explain_target, self._rules(), target)
        return structs.asdict(structs.replace(found, error=self._reloader.error, changed=changed))
