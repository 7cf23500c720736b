"""What the block lets out, as `nft -j list table` says it."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import pytest

from cryprq_proxy.errors import ConfigError
from tun.linux.locked import let_out


def set_of(name: str, *elements: Any) -> dict[str, Any]:
    return {"set": {"name": name, "elem": list(elements)}}


def accept(name: str, op: str = "==", chain: str = "output") -> dict[str, Any]:
    match = {"op": op, "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": name}
    return {"rule": {"chain": chain, "expr": [{"match": match}, {"accept": None}]}}


LISTED = [
    {"chain": {"name": "output"}},
    set_of("exits4", {"concat": ["5.75.10.2", 4433]}),
    set_of("exits6", {"concat": ["2a01:4f8:10::2", 443]}),
    set_of("lan4", {"prefix": {"addr": "192.168.1.0", "len": 24}}),
    set_of("guests4", {"range": ["172.20.0.0", "172.20.0.2"]}),
    set_of("excluded6", "2001:db8::1"),
    set_of("included4"),
    accept("@guests4"),
    accept("@excluded6"),
]


def networks(*texts: str) -> set[Any]:
    return set(map(ip_network, texts))


def test_exits_and_what_a_rule_accepts() -> None:
    found = let_out(lambda *_: LISTED)
    assert found.exits == (("5.75.10.2", 4433), ("2a01:4f8:10::2", 443))
    assert set(found.allowed) == networks("172.20.0.0/31", "172.20.0.2/32", "2001:db8::1/128")
    assert ip_network("192.168.1.0/24") in let_out(lambda *_: [*LISTED, accept("@lan4")]).allowed


@pytest.mark.parametrize("rule", [accept("@lan4", "!="), accept("@lan4", chain="forward")])
def test_a_local_network_that_is_not_let_out(rule: dict[str, Any]) -> None:
    assert ip_network("192.168.1.0/24") not in let_out(lambda *_: [*LISTED, rule]).allowed


def test_all_but_what_is_included() -> None:
    half = set_of("included4", {"prefix": {"addr": "128.0.0.0", "len": 1}})
    listed = [item for item in LISTED if item.get("set", {}).get("name") != "included4"]
    assert ip_network("0.0.0.0/1") in let_out(lambda *_: [*listed, half]).allowed


def test_where_a_test_would_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(ConfigError, match="exclude_uid"):
        let_out(lambda *_: [*LISTED, set_of("uids", 0)])
    with pytest.raises(ConfigError, match="while --tun runs"):
        let_out(lambda *_: [*LISTED, {"chain": {"name": "past_the_tunnel"}}])
    with pytest.raises(ConfigError, match="no known kind"):
        let_out(lambda *_: [*LISTED, accept("@lan6"), set_of("lan6", {"map": 1})])
