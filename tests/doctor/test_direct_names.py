"""Direct names that the proxy refuses: which are asked for, and which are told."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from cryprq_proxy.config.client import client_from
from cryprq_proxy.doctor import direct_names, machine
from cryprq_proxy.doctor.checks import CheckState, Context
from cryprq_proxy.doctor.direct_names import MAX_NAMES, refused_names
from cryprq_proxy.errors import CarrierError, CloseReason
from cryprq_proxy.rules.engine import RuleSet
from cryprq_proxy.rules.syntax import Rule, RuleAction, Verdict

TUNNEL, DIRECT = RuleAction(Verdict.TUNNEL), RuleAction(Verdict.DIRECT)
KNOWN = {
    "here.example": ["127.0.0.1", "::1"],
    "dev.example": ["127.0.0.1"],
    "both.example": ["127.0.0.1", "192.0.2.1"],
    "away.example": ["192.0.2.1"],
    "app.localhost": ["127.0.0.1"],
}


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which names the system's resolver was asked for."""
    names = []

    async def resolve(name: str) -> list[str]:
        names.append(name)
        if name not in KNOWN:
            raise CarrierError(CloseReason.TIMED_OUT, f"the name {name} could not be resolved: no such name")
        return KNOWN[name]

    monkeypatch.setattr(direct_names, "by_system", resolve)
    return names


async def test_those_of_which_no_address_is_allowed(asked: list[str]) -> None:
    rules = RuleSet(
        [
            Rule(action=TUNNEL, domains=("tunnel.example",)),
            Rule(action=DIRECT, domains=("dev.example",), cidrs=(ip_network("127.0.0.0/8"),)),
            Rule(action=DIRECT, domains=(".here.example", "*.example", "both.example"), ports=((80, 90),)),
            Rule(action=DIRECT, domains=("away.example", "app.localhost", "none.example", "tunnel.example")),
        ],
        TUNNEL,
    )
    assert await refused_names(rules) == ["here.example (127.0.0.1)"]
    assert sorted(asked) == sorted([*KNOWN, "none.example"])


async def test_a_few_names_are_asked_for(asked: list[str]) -> None:
    domains = [f"{number}.example" for number in range(MAX_NAMES + 1)]
    rules = [Rule(action=DIRECT, domains=(domain, f".{domain}")) for domain in domains]
    assert await refused_names(RuleSet(rules, TUNNEL)) == []
    assert asked == domains[:MAX_NAMES]


@pytest.mark.parametrize(
    ("more", "state"), [("", CheckState.WARN), ('cidrs = "127.0.0.1"', CheckState.OK)], ids=["name", "both"]
)
async def test_the_check(tmp_path: Path, more: str, state: CheckState) -> None:
    text = (
        f'peer = "cryprq://{"a" * 52}@exit.example:4433"\n'
        f'[[rule]]\nto = "direct"\ndomains = "dev.example"\n{more}\n'
    )
    verdict = await machine.rules(Context(client=client_from(text, tmp_path / "client.toml", False, {})))
    assert verdict.state is state
    if state is CheckState.WARN:
        assert verdict.text.endswith("that resolve to this machine are refused: dev.example (127.0.0.1)")
        assert "cidrs" in verdict.remedy
