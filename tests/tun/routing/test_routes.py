"""The rules that there should be, and rules as the kernel tells them; the rest of routing is tests/lab's."""

from __future__ import annotations

from ipaddress import ip_network
from socket import AF_INET, AF_INET6
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.errors import ConfigError, CryprqError
from tun.routing.lan import Lan, Network
from tun.routing.netlink_watch import LEAST_PAUSE, MOST_PAUSE, pause
from tun.routing.route_rules import (
    FIRST,
    LAST,
    PROTOCOL,
    TABLE,
    UNREACHABLE,
    RouteSettings,
    RoutingRule,
    read_rule,
    wanted_rules,
)
from tun.routing.routes import UNDO

MARK = 0x6372


def nets(*prefixes: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, prefixes))


LAN = Lan(nets("172.17.0.0/16", "192.168.1.0/24", "fd00::/64"), nets("172.17.0.0/16"))


def text(settings: RouteSettings, version: int, lan: Lan = LAN) -> list[str]:
    """As `ip rule` shows them."""
    lines = []
    for rule in wanted_rules(settings, lan, version):
        words = [f"{rule.priority}:"]
        words += [f"to {rule.to}"] if rule.to else []
        words += [f"mark {rule.mark:#x}"] if rule.mark else []
        words += [f"uid {rule.uids[0]}-{rule.uids[1]}"] if rule.uids else []
        words += ["unreachable" if rule.action == UNREACHABLE else f"lookup {rule.table}"]
        lines.append(" ".join(words))
    return lines


def test_everything() -> None:
    settings = RouteSettings("cryprq0", MARK)
    assert text(settings, 4) == [
        "25400: mark 0x6372 lookup 254",
        "25401: mark 0x6372 unreachable",
        "25420: to 172.17.0.0/16 lookup 254",
        "25420: to 192.168.1.0/24 lookup 254",
        "25430: lookup 25458",
    ]
    assert text(settings, 6) == [
        "25400: mark 0x6372 lookup 254",
        "25401: mark 0x6372 unreachable",
        "25420: to fd00::/64 lookup 254",
        "25430: lookup 25458",
    ]


def test_with_exceptions() -> None:
    settings = RouteSettings(
        "cryprq0",
        MARK,
        tunnel=nets("100.96.0.0/16"),
        lan=False,
        exclude=nets("10.1.0.0/16", "2001:db8::/32", "10.1.0.0/16"),
        exclude_uids=((1000, 1000), (0, 0), (1000, 1000)),
    )
    assert text(settings, 4)[2:] == [
        "25405: to 100.96.0.0/16 lookup 25458",
        "25410: to 10.1.0.0/16 lookup 254",
        "25411: uid 1000-1000 lookup 254",
        "25411: uid 0-0 lookup 254",
        "25420: to 172.17.0.0/16 lookup 254",
        "25430: lookup 25458",
    ]


def test_included_only() -> None:
    settings = RouteSettings("cryprq0", MARK, include=nets("198.51.100.0/24", "::/0"))
    assert text(settings, 4, Lan())[2:] == ["25430: to 198.51.100.0/24 lookup 25458"]
    assert text(settings, 6, Lan())[2:] == ["25430: lookup 25458"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"exclude": nets("0.0.0.0/0")}, "--exclude"),
        ({"exclude": nets("10.0.0.0/8", "::/0")}, "--exclude"),
        ({"exclude_uids": ((5, 4),)}, "--exclude-uid"),
        ({"exclude_uids": ((-1, 4),)}, "--exclude-uid"),
        ({"exclude_uids": ((0, 2**32 - 1),)}, "--exclude-uid"),
        ({"mark": 0}, "mark"),
        ({"mark": 2**32}, "mark"),
    ],
)
def test_settings_that_cannot_be_meant(more: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RouteSettings(**{"device": "cryprq0", "mark": MARK, **more})


PREFIXES = st.lists(
    st.builds(
        lambda address, length: ip_network((address, length), strict=False),
        st.integers(0, 2**32 - 1),
        st.integers(1, 32),
    ),
    max_size=8,
)


def as_message(rule: RoutingRule) -> dict[str, Any]:
    """What a dump has after the rule was added: pyroute2's request, read back."""
    arguments = rule.arguments()
    names = {
        "dst": "FRA_DST",
        "fwmark": "FRA_FWMARK",
        "uid_range": "FRA_UID_RANGE",
        "table": "FRA_TABLE",
        "priority": "FRA_PRIORITY",
        "protocol": "FRA_PROTOCOL",
    }
    attributes = [(name, arguments[key]) for key, name in names.items() if key in arguments]
    return {
        "family": arguments["family"],
        "dst_len": arguments.get("dst_len", 0),
        "table": 0,
        "action": arguments["action"],
        "attrs": attributes,
    }


@given(PREFIXES, PREFIXES, PREFIXES, PREFIXES, st.booleans())
def test_rules_are_ours_distinct_in_order_and_recognised(
    lan: list[Network], exclude: list[Network], include: list[Network], tunnel: list[Network], allowed: bool
) -> None:
    settings = RouteSettings(
        "cryprq0",
        MARK,
        tunnel=tuple(tunnel),
        lan=allowed,
        exclude=tuple(exclude),
        include=tuple(include),
        exclude_uids=((1, 2),),
    )
    for version in (4, 6):
        rules = wanted_rules(settings, Lan(tuple(lan)), version)
        assert len(set(rules)) == len(rules)
        assert [rule.priority for rule in rules] == sorted(rule.priority for rule in rules)
        assert all(FIRST <= rule.priority <= LAST and rule.version == version for rule in rules)
        assert [read_rule(as_message(rule)) for rule in rules] == [(rule, PROTOCOL) for rule in rules]


def test_rules_of_others() -> None:
    kernel = {"family": AF_INET, "dst_len": 0, "table": 255, "action": 1, "attrs": [("FRA_TABLE", 255)]}
    assert read_rule(kernel) == (RoutingRule(4, 0, table=255), 0)
    masked = {"FRA_FWMARK": MARK, "FRA_FWMASK": 0xFF, "FRA_PRIORITY": 100, "FRA_PROTOCOL": 4}
    message = {"family": AF_INET6, "dst_len": 0, "table": 254, "action": 1, "attrs": list(masked.items())}
    assert read_rule(message) == (RoutingRule(6, 100), 4)


@pytest.mark.parametrize(
    "entry",
    [
        {"kind": "routing"},
        {"kind": "routing", "table": 254, "first": FIRST, "last": LAST},
        {"kind": "routing", "table": TABLE, "first": 0, "last": 32767},
        {"kind": "routing", "table": [TABLE], "first": None, "last": "x"},
    ],
)
def test_an_undo_of_what_is_not_ours_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(CryprqError, match="not ours"):
        UNDO["routing"](entry)


def test_a_look_that_takes_long_is_taken_less_often() -> None:
    assert pause(0.0) == LEAST_PAUSE
    assert pause(0.05) == pytest.approx(0.2)
    assert pause(60.0) == MOST_PAUSE < 1
