"""The rules that there should be, rules as the kernel tells them, and Routes on a kernel of lists."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from socket import AF_INET, AF_INET6
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2 import NetlinkError

from cryprq_proxy.base.linux_marks import RULE_PROTOCOL
from cryprq_proxy.errors import ConfigError, CryprqError
from tests.support.settings import tunnel_settings
from tun.linux import sysctl
from tun.linux.routing import kernel_state
from tun.linux.routing.route_rules import (
    FIRST,
    LAST,
    LOCAL,
    REST,
    TABLE,
    UNREACHABLE,
    RoutingRule,
    read_rule,
    wanted_rules,
)
from tun.linux.routing.routes import KIND, UNDO, Routes
from tun.linux.routing.table_routes import TableRoute, into, read_table_route, unreachable
from tun.routing.lan import Lan, Network
from tun.settings import TunnelSettings

MARK = 0x6372


def nets(*prefixes: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, prefixes))


LAN = Lan(nets("172.17.0.0/16", "192.168.1.0/24", "fd00::/64"), nets("172.17.0.0/16"))


def text(settings: TunnelSettings, version: int, lan: Lan = LAN) -> list[str]:
    """As `ip rule` shows them."""
    lines = []
    for rule in wanted_rules(settings, lan, version):
        words = [f"{rule.priority}:"]
        words += [f"to {rule.to}"] if rule.to else []
        words += [f"mark {rule.mark:#x}"] if rule.mark else []
        words += [f"uid {rule.uids[0]}-{rule.uids[1]}"] if rule.uids else []
        words += [f"ipproto {rule.service[0]} dport {rule.service[1]}"] if rule.service else []
        words += ["unreachable" if rule.action == UNREACHABLE else f"lookup {rule.table}"]
        lines.append(" ".join(words))
    return lines


NAMES = [f"25408: ipproto {protocol} dport {port} lookup 25458" for protocol in (17, 6) for port in (53, 853)]
DISCOVERY = [
    "25420: to 224.0.0.0/24 lookup 254",
    "25420: to 239.255.255.250/32 lookup 254",
    "25420: to 255.255.255.255/32 lookup 254",
]


def test_everything() -> None:
    settings = tunnel_settings()
    assert text(settings, 4) == [
        "25400: mark 0x6372 lookup 254",
        "25401: mark 0x6372 unreachable",
        "25405: to 198.18.255.53/32 lookup 25458",
        *NAMES,
        "25420: to 172.17.0.0/16 lookup 254",
        "25420: to 192.168.1.0/24 lookup 254",
        *DISCOVERY,
        "25430: lookup 25458",
    ]
    assert text(settings, 6) == [
        "25400: mark 0x6372 lookup 254",
        "25401: mark 0x6372 unreachable",
        "25405: to fd63:7279:7071::53/128 lookup 25458",
        *NAMES,
        "25420: to fd00::/64 lookup 254",
        "25430: lookup 25458",
    ]


def test_with_exceptions() -> None:
    settings = tunnel_settings(
        lan=False,
        exclude=nets("10.1.0.0/16", "2001:db8::/32", "10.1.0.0/16"),
        exclude_uids=((1000, 1000), (0, 0), (1000, 1000)),
    )
    assert text(settings, 4)[2:] == [
        "25405: to 198.18.255.53/32 lookup 25458",
        *NAMES,
        "25410: to 10.1.0.0/16 lookup 254",
        "25411: uid 1000-1000 lookup 254",
        "25411: uid 0-0 lookup 254",
        "25420: to 172.17.0.0/16 lookup 254",
        "25430: lookup 25458",
    ]


def test_included_only() -> None:
    settings = tunnel_settings(include=nets("198.51.100.0/24", "::/0"))
    assert text(settings, 4, Lan())[3:] == [*NAMES, *DISCOVERY, "25430: to 198.51.100.0/24 lookup 25458"]
    assert text(settings, 6, Lan())[3:] == [*NAMES, "25430: lookup 25458"]


def test_without_the_kill_switch_questions_follow_the_other_rules() -> None:
    assert not set(NAMES) & set(text(tunnel_settings(kill_switch=False), 4))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"exclude": nets("0.0.0.0/0")}, "--exclude"),
        ({"exclude": nets("10.0.0.0/8", "::/0")}, "--exclude"),
        ({"exclude_uids": ((5, 4),)}, "--exclude-uid"),
        ({"exclude_uids": ((-1, 4),)}, "--exclude-uid"),
        ({"exclude_uids": ((0, 2**32 - 1),)}, "--exclude-uid"),
    ],
)
def test_settings_that_cannot_be_meant(more: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        tunnel_settings(**more)


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
        "ip_proto": "FRA_IP_PROTO",
        "dport_range": "FRA_DPORT_RANGE",
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


@given(PREFIXES, PREFIXES, PREFIXES, st.booleans())
def test_rules_are_ours_distinct_in_order_and_recognised(
    lan: list[Network], exclude: list[Network], include: list[Network], allowed: bool
) -> None:
    settings = tunnel_settings(
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
        assert [read_rule(as_message(rule)) for rule in rules] == [(rule, RULE_PROTOCOL) for rule in rules]


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


# --- against a kernel of lists ---

ETH, TUN = 2, 9
ROUTES = tunnel_settings()
HOME = Lan(nets("192.168.1.0/24"))


class FakeKernel:
    """The tables of rtnetlink, as far as Routes uses them. `steps` are the changes in their order."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.refuses = ""
        self.rules: list[dict[str, Any]] = []
        self.routes = [
            self.main("0.0.0.0", 0, RTA_GATEWAY="192.168.1.1"),
            self.main("192.168.1.0", 24),
        ]
        self.links = [
            {"index": index, "flags": 1, "attrs": [("IFLA_IFNAME", name)]}
            for index, name in ((ETH, "eth0"), (TUN, "cryprq0"))
        ]
        self.addresses = [
            {"index": index, "prefixlen": length, "scope": 0, "flags": 0, "attrs": [("IFA_ADDRESS", address)]}
            for index, address, length in ((ETH, "192.168.1.2", 24), (TUN, "198.18.0.2", 32))
        ]

    @staticmethod
    def main(prefix: str, length: int, **attributes: object) -> dict[str, Any]:
        attributes = {"RTA_DST": prefix, "RTA_OIF": ETH, **attributes}
        head = {"family": AF_INET, "flags": 0, "dst_len": length, "table": 254, "type": 1, "proto": 3}
        return {**head, "attrs": list(attributes.items())}

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[FakeKernel]:
        yield self

    async def rule(self, command: str, **arguments: Any) -> AsyncIterator[dict[str, Any]] | None:
        if command == "dump":
            return self._dump(self.rules, arguments["family"])
        version = 4 if arguments["family"] == AF_INET else 6
        (rule,) = (rule for rule in wanted_rules(ROUTES, HOME, version) if rule.arguments() == arguments)
        self._change(self.rules, command, as_message(rule), f"rule {version} {rule.priority}")
        return None

    async def route(self, command: str, **arguments: Any) -> AsyncIterator[dict[str, Any]] | None:
        if command == "dump":
            return self._dump(self.routes, arguments["family"])
        version = 4 if arguments["family"] == AF_INET else 6
        device = {ETH: "foreign", TUN: "device", None: "unreachable"}[arguments.get("oif")]
        what = f"route {version} {device}"
        if command == "del":
            found = [(read_table_route(message), message) for message in self.routes]
            meant = [message for route, message in found if route and route.arguments() == arguments]
            if not meant:
                raise NetlinkError(errno.ESRCH)
            (message,) = meant
            self._change(self.routes, "del", message, what)
            return None
        message = self.in_table(arguments["family"], arguments.get("oif"), arguments.get("priority", 0))
        if self.refuses != what:
            # What has the same prefix and metric goes (NLM_F_REPLACE).
            self.routes[:] = [route for route in self.routes if _slot(route) != _slot(message)]
        self._change(self.routes, command, message, what)
        return None

    @staticmethod
    def in_table(family: int, device: int | None, metric: int, **attributes: object) -> dict[str, Any]:
        """A default route of our table, by default as the kernel shows one of ours."""
        proto = attributes.pop("proto", RULE_PROTOCOL)
        found = {"RTA_TABLE": TABLE, "RTA_PRIORITY": metric, "RTA_OIF": device, **attributes}
        if device is None:
            # IPv6 shows the loopback device.
            found["RTA_OIF"] = 1 if family == AF_INET6 else None
        return {
            "family": family,
            "flags": 0,
            "dst_len": int("RTA_DST" in attributes) * 24,
            "table": 252,
            "type": UNREACHABLE if device is None else 1,
            "proto": proto,
            "attrs": [(name, value) for name, value in found.items() if value],
        }

    async def link(self, command: str, **arguments: Any) -> AsyncIterator[dict[str, Any]]:
        return self._dump(self.links, None)

    async def addr(self, command: str, **arguments: Any) -> AsyncIterator[dict[str, Any]]:
        return self._dump(self.addresses, None)

    def _change(self, table: list[dict[str, Any]], command: str, message: dict[str, Any], what: str) -> None:
        if self.refuses == what:
            raise NetlinkError(errno.EINVAL)
        self.steps.append(f"{command} {what}")
        if command == "del":
            table.remove(message)
        else:
            table.append(message)

    @staticmethod
    async def _dump(table: list[dict[str, Any]], family: int | None) -> AsyncIterator[dict[str, Any]]:
        for message in table:
            if family is None or message["family"] == family:
                yield message


def _slot(message: dict[str, Any]) -> tuple[Any, ...]:
    attributes = dict(message["attrs"])
    return message["family"], *(attributes.get(name, 0) for name in ("RTA_TABLE", "RTA_DST", "RTA_PRIORITY"))


class Watched:
    """Routes on a fake kernel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel = FakeKernel()
        self.lans: list[Lan] = []
        self.moved = 0
        self.refusal: CryprqError | None = None
        steps = self.kernel.steps

        def set_sysctl(name: str, value: str, record: object, proc: object) -> bool:
            steps.append(f"{name}={value}")
            return True

        monkeypatch.setattr(kernel_state, "_versions", lambda: (4, 6))
        monkeypatch.setattr(sysctl, "set_sysctl", set_sysctl)
        self.routes = Routes(
            ROUTES,
            frozenset({4, 6}),
            lambda entry: steps.append(f"record {entry['kind']}"),
            self.lan_changed,
            self.uplink_changed,
            self.kernel.opened,
        )

    async def applied(self) -> None:
        await self.routes.apply()
        self.kernel.steps.clear()

    async def keep(self) -> str:
        """As the reconciler does once."""
        found = await self.routes.look()
        if found:
            await self.routes.put_back()
        return found

    async def lan_changed(self, lan: Lan) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.lans.append(lan)

    def uplink_changed(self) -> None:
        self.moved += 1


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


async def test_the_journal_comes_first_and_the_last_rule_last(watched: Watched) -> None:
    await watched.routes.apply()
    steps = watched.kernel.steps
    assert steps[:2] == [f"record {KIND}", "net.ipv4.conf.all.src_valid_mark=1"]
    for version in (4, 6):
        own = [step for step in steps if f" {version} " in step]
        assert own[:2] == [f"replace route {version} unreachable", f"replace route {version} device"]
        rules = [int(step.rpartition(" ")[2]) for step in own[2:]]
        assert rules == sorted(rules)
        assert rules[0] == FIRST
        assert (LOCAL in rules) == (version == 4)


async def test_what_an_earlier_run_left_is_taken_over(watched: Watched) -> None:
    """It holds until the new one stands: nothing is removed before, and its table is ours with all that is in it."""
    kernel = watched.kernel
    kernel.routes.append(kernel.in_table(AF_INET, None, 2**32 - 1))
    kernel.routes.append(kernel.in_table(AF_INET, ETH, 5, RTA_GATEWAY="192.168.1.1", proto=3))
    await watched.routes.apply(ours=True)
    steps = kernel.steps
    assert f"record {KIND}" not in steps
    own = [step for step in steps if step.startswith(("replace route 4", "del"))]
    assert own == ["replace route 4 device", "del route 4 foreign"]
    assert await watched.keep() == ""


async def test_rules_and_routes_that_others_remove_are_put_back(watched: Watched) -> None:
    kernel = watched.kernel
    await watched.applied()
    assert await watched.keep() == ""
    assert kernel.steps == []
    before = len(kernel.rules), len(kernel.routes)
    del kernel.rules[-1]
    del kernel.routes[-1]
    assert await watched.keep() == f"IPv6 rule {REST}, IPv6 default route of table {TABLE} removed"
    assert (len(kernel.rules), len(kernel.routes)) == before
    assert [step.split()[:2] for step in kernel.steps] == [["replace", "route"], ["add", "rule"]]
    kernel.rules.clear()
    assert "and 17 more removed" in await watched.keep()
    assert await watched.keep() == ""


@pytest.mark.parametrize(("version", "metric"), [(4, 0), (6, 1024)])
async def test_a_default_route_that_was_replaced_is_set_in_its_place(
    watched: Watched, version: int, metric: int
) -> None:
    """Adding it would fail, as one with the same metric is there."""
    kernel = watched.kernel
    await watched.applied()
    family = AF_INET if version == 4 else AF_INET6
    other = kernel.in_table(family, ETH, metric, RTA_GATEWAY="192.168.1.1", proto=3)
    kernel.routes[:] = [route for route in kernel.routes if _slot(route) != _slot(other)] + [other]
    assert await watched.keep() == (
        f"IPv{version} default route of table {TABLE} removed, "
        f"IPv{version} default route via 192.168.1.1 of table {TABLE} added"
    )
    assert other not in kernel.routes
    assert kernel.steps == [f"replace route {version} device"]
    assert await watched.keep() == ""


@pytest.mark.parametrize(
    ("attributes", "named"),
    [
        ({"RTA_DST": "203.0.113.0"}, "IPv4 route 203.0.113.0/24"),
        ({"RTA_DST": "203.0.113.0", "RTA_GATEWAY": "192.168.1.1", "proto": 3}, "via 192.168.1.1"),
        ({"RTA_GATEWAY": "192.168.1.1"}, "IPv4 default route via 192.168.1.1"),
        ({"RTA_METRICS": {"attrs": [("RTAX_MTU", 500)]}}, "IPv4 default route"),
        ({"proto": 3}, "IPv4 default route"),
    ],
)
async def test_what_others_put_into_our_table_goes(
    watched: Watched, attributes: dict[str, Any], named: str
) -> None:
    kernel = watched.kernel
    await watched.applied()
    before = [*kernel.routes]
    kernel.routes.append(kernel.in_table(AF_INET, TUN, 5, **attributes))
    found = await watched.keep()
    assert named in found and found.endswith(f" of table {TABLE} added")
    assert kernel.routes == before
    assert await watched.keep() == ""


async def test_rules_of_others_stay_and_ours_of_before_go(watched: Watched) -> None:
    kernel = watched.kernel
    await watched.applied()
    foreign = {"family": AF_INET, "dst_len": 0, "table": 254, "action": 1, "attrs": [("FRA_PRIORITY", 9)]}
    kernel.rules.append(foreign)
    del kernel.routes[1]  # the LAN's
    assert await watched.keep() == ""
    assert kernel.steps == [f"del rule 4 {LOCAL}"]
    assert foreign in kernel.rules
    assert [lan.prefixes for lan in watched.lans] == [()]


async def test_our_device_is_no_network_of_others_under_another_name(watched: Watched) -> None:
    """Else its addresses would be taken for occupied ones, and the exit be asked for others."""
    kernel = watched.kernel
    await watched.applied()
    kernel.links[1]["attrs"] = [("IFLA_IFNAME", "other0")]
    kernel.routes.append(kernel.main("10.0.0.0", 24, RTA_OIF=TUN))
    assert await watched.keep() == ""
    assert (watched.lans, watched.moved, kernel.steps) == ([], 0, [])
    await watched.routes.carry(frozenset({4, 6}))
    assert kernel.steps == []


async def test_networks_that_could_not_be_told_are_told_again(watched: Watched) -> None:
    await watched.applied()
    del watched.kernel.routes[1]
    watched.refusal = CryprqError("no filter")
    with pytest.raises(CryprqError, match="no filter"):
        await watched.keep()
    watched.refusal = None
    assert await watched.keep() == ""
    assert [lan.prefixes for lan in watched.lans] == [()]


async def test_another_uplink_is_told_and_another_metric_is_not(watched: Watched) -> None:
    kernel = watched.kernel
    await watched.applied()
    kernel.routes[0] = kernel.main("0.0.0.0", 0, RTA_GATEWAY="192.168.1.1", RTA_PRIORITY=20_100)
    await watched.keep()
    assert watched.moved == 0
    kernel.routes[0] = kernel.main("0.0.0.0", 0, RTA_GATEWAY="192.168.1.254")
    await watched.keep()
    assert watched.moved == 1
    del kernel.routes[0]
    await watched.keep()
    assert watched.moved == 1


async def test_what_the_kernel_refuses_is_tried_again(watched: Watched) -> None:
    kernel = watched.kernel
    await watched.applied()
    kernel.refuses = f"rule 4 {REST}"
    kernel.rules[:] = [rule for rule in kernel.rules if ("FRA_PRIORITY", REST) not in rule["attrs"]]
    with pytest.raises(CryprqError):
        await watched.keep()
    assert f"add rule 6 {REST}" in kernel.steps  # what does not depend on the refused one was not held up
    kernel.refuses = ""
    assert await watched.keep()
    assert f"add rule 4 {REST}" in kernel.steps


async def test_other_families_are_carried(watched: Watched) -> None:
    await watched.applied()
    await watched.routes.carry(frozenset({4}))
    assert watched.kernel.steps == ["del route 6 device"]
    assert await watched.keep() == ""


def test_routes_of_our_table_are_read_by_all_that_decides() -> None:
    def read(**changes: Any) -> TableRoute | None:
        attributes = changes.pop("attributes", {})
        return read_table_route({**FakeKernel.in_table(AF_INET, TUN, 0, **attributes), **changes})

    assert read() == into(TUN, 4)
    assert read_table_route(FakeKernel.in_table(AF_INET6, TUN, 1024)) == into(TUN, 6)
    assert read_table_route(FakeKernel.in_table(AF_INET6, None, 2**32 - 1)) == unreachable(6)
    assert read(flags=0x200) is None
    assert read(family=7) is None
    assert read(attributes={"RTA_TABLE": 254}) is None
    hops = [{"oif": ETH, "flags": 0, "attrs": [("RTA_GATEWAY", f"192.168.1.{last}")]} for last in (1, 2)]
    several = read(attributes={"RTA_MULTIPATH": hops})
    assert several is not None and not several.is_ours
    assert "oif" not in several.arguments()
    assert str(several) == "IPv4 default route via 192.168.1.1 via 192.168.1.2 of table 25458"
    narrow = read(tos=16, src_len=8, attributes={"RTA_SRC": "10.0.0.0"})
    assert narrow is not None and not narrow.is_ours
    assert (narrow.arguments()["tos"], narrow.arguments()["src"]) == (16, "10.0.0.0/8")


@pytest.mark.parametrize("what", ["rule", "route", "device"])
async def test_what_belongs_to_others_or_is_missing_stops_the_start(watched: Watched, what: str) -> None:
    kernel = watched.kernel
    if what == "rule":
        attributes = [("FRA_PRIORITY", FIRST), ("FRA_PROTOCOL", 4)]
        kernel.rules.append({"family": AF_INET, "dst_len": 0, "table": 254, "action": 1, "attrs": attributes})
    elif what == "route":
        kernel.routes.append(kernel.main("10.0.0.0", 8, RTA_TABLE=TABLE))
    else:
        kernel.links.pop()
    with pytest.raises(ConfigError):
        await watched.routes.apply()
    assert kernel.steps == []
