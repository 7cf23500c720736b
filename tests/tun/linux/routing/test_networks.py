"""What is LAN, and which device is the uplink: on tables written by hand, and messages as pyroute2 gives them."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network
from socket import AF_INET, AF_INET6
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tun.linux.routing.networks import (
    MAIN,
    DeviceAddress,
    KernelRoute,
    NetworkDevice,
    NextHop,
    find_attached,
    find_lan,
    find_uplink,
    read_address,
    read_link,
    read_route,
)
from tun.routing.lan import MAX_PREFIXES, PRIVATE, Lan, Network, Uplink, merged

OWN = "cryprq0"
ETH, WIFI, TUN = 2, 3, 9
LINKS = [
    NetworkDevice(1, "lo", True, loopback=True),
    NetworkDevice(ETH, "eth0", True),
    NetworkDevice(WIFI, "wlan0", True),
    NetworkDevice(TUN, OWN, True, "tun"),
]


def route(prefix: str, device: int | None = ETH, gateway: str | None = None, **more: Any) -> KernelRoute:
    network = ip_network(prefix)
    hops = (NextHop(device, gateway),)
    return KernelRoute(network.version, **{"table": MAIN, "kind": 1, "prefix": network, "hops": hops, **more})


def nets(*prefixes: str) -> tuple[Network, ...]:
    return tuple(map(ip_network, prefixes))


def lan_of(*routes: KernelRoute) -> tuple[Network, ...]:
    return find_lan(routes, LINKS, OWN, container=False).prefixes


@pytest.mark.parametrize(
    "prefix",
    [
        "192.168.1.0/24",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "172.31.255.0/24",
        "169.254.0.0/16",
        "192.168.1.7/32",
        "fd12:3456::/64",
        "fe80::/64",
        "fc00::/7",
    ],
)
def test_private_and_on_the_link(prefix: str) -> None:
    assert lan_of(route(prefix)) == nets(prefix)


@pytest.mark.parametrize(
    "prefix",
    [
        "0.0.0.0/0",
        "0.0.0.0/1",
        "128.0.0.0/1",
        "203.0.113.0/24",  # TunnelCrack: the access point's prefix is that of a server
        "8.8.8.8/32",
        "192.168.0.0/15",  # reaches beyond what is private
        "172.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "224.0.0.0/4",
        "::/0",
        "::/1",
        "2000::/3",
        "2001:db8::/64",
        "fe00::/8",
        "fec0::/10",
        "ff00::/8",
        "::ffff:192.168.1.0/120",
    ],
)
@pytest.mark.parametrize("gateway", [False, True])
def test_public_prefixes_are_no_lan_with_a_gateway_or_without(prefix: str, gateway: bool) -> None:
    router = ("fe80::1" if ":" in prefix else "192.168.1.1") if gateway else None
    assert lan_of(route(prefix, gateway=router)) == ()


@pytest.mark.parametrize(
    "other",
    [
        route("10.1.0.0/16", gateway="192.168.1.1"),
        route("fd00::/64", gateway="fe80::1"),
        route("10.1.0.0/16", gateway="fe80::1"),  # of the other family
        route("10.1.0.0/16", TUN),
        route("10.1.0.0/16", None),
        route("10.1.0.0/16", hops=()),
        route("10.1.0.0/16", hops=(NextHop(ETH, None), NextHop(WIFI, None))),
        route("10.1.0.0/16", table=100),
        route("10.1.0.0/16", table=255),
        route("10.1.0.0/16", kind=6),  # blackhole
        route("10.1.0.0/16", kind=2),  # local
        route("10.1.0.0/16", wrapped=True),
    ],
)
def test_other_routes_are_no_lan(other: KernelRoute) -> None:
    assert lan_of(other) == ()
    assert lan_of(other, route("192.168.1.0/24")) == nets("192.168.1.0/24")


def test_prefixes_are_disjoint_and_in_order() -> None:
    found = lan_of(
        route("fd00::/64"),
        route("192.168.1.0/24"),
        route("192.168.0.0/24", WIFI),
        route("192.168.0.0/16", WIFI),
        route("10.0.0.0/8"),
        route("192.168.1.0/24", WIFI),
    )
    assert found == nets("10.0.0.0/8", "192.168.0.0/16", "fd00::/64")


def test_a_flood_of_prefixes_is_bounded_in_each_family() -> None:
    many = [ip_network((0x0A000000 + 512 * n, 24)) for n in range(1000)]
    found = merged([*many, ip_network("fd00::/64")])
    assert found == (*many[:MAX_PREFIXES], ip_network("fd00::/64"))


NETWORKS = st.builds(
    lambda address, length: ip_network((address, length), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
) | st.builds(
    lambda address, length: ip_network((address.to_bytes(16), length), strict=False),
    st.integers(0, 2**128 - 1) | st.integers(0xFC << 120, 0xFF << 120),
    st.integers(0, 128),
)


@given(st.lists(NETWORKS, max_size=20))
def test_no_public_address_is_ever_in_the_lan(prefixes: list[Network]) -> None:
    found = lan_of(*(route(str(prefix)) for prefix in prefixes))
    for prefix in found:
        inside = [private for private in PRIVATE if private.version == prefix.version]
        assert any(private.supernet_of(prefix) for private in inside)  # type: ignore[arg-type]
    for one in found:
        assert not any(one is not other and one.overlaps(other) for other in found)


BRIDGE, CABLE, PORT = 20, 21, 22


def test_prefixes_behind_bridges_of_guests() -> None:
    links = [
        *LINKS,
        NetworkDevice(BRIDGE, "docker0", True, "bridge"),
        NetworkDevice(CABLE, "veth0", True, "veth", master=BRIDGE),
        NetworkDevice(PORT, "vnet0", True, "tun", master=BRIDGE),
    ]
    routes = [route("192.168.1.0/24"), route("172.17.0.0/16", BRIDGE), route("fe80::/64", BRIDGE)]
    routes.append(route("0.0.0.0/0", ETH, "192.168.1.1"))
    assert find_lan(routes, links, OWN, container=False) == Lan(
        nets("172.17.0.0/16", "192.168.1.0/24", "fe80::/64"),
        nets("172.17.0.0/16"),
        frozenset({"eth0", "wlan0"}),
    )
    # Hardware in the bridge: on the other side is the network outside.
    links.append(NetworkDevice(30, "eth1", True, master=BRIDGE))
    found = find_lan(routes, links, OWN, container=False)
    assert found.guests == () and found.prefixes == nets("172.17.0.0/16", "192.168.1.0/24", "fe80::/64")


@pytest.mark.parametrize("kind", ["bridge", "veth"])
def test_the_uplink_is_never_a_guest(kind: str) -> None:
    """As in a container, where the uplink is a cable."""
    links = [NetworkDevice(ETH, "eth0", True, kind)]
    routes = [route("10.88.0.0/16")]
    assert find_lan(routes, links, OWN, container=False).guests == nets("10.88.0.0/16")
    routes.append(route("0.0.0.0/0", gateway="10.88.0.1"))
    assert find_lan(routes, links, OWN, container=False) == Lan(nets("10.88.0.0/16"), (), frozenset({"eth0"}))


def test_a_cable_leads_to_a_guest_unless_this_machine_is_a_container() -> None:
    links = [
        *LINKS,
        NetworkDevice(CABLE, "ve-box", True, "veth"),
        NetworkDevice(BRIDGE, "docker0", True, "bridge"),
    ]
    routes = [route("172.30.0.0/16", CABLE), route("172.17.0.0/16", BRIDGE)]
    outside = find_lan(routes, links, OWN, container=False)
    assert outside.guests == nets("172.17.0.0/16", "172.30.0.0/16")
    assert "ve-box" not in outside.uplinks
    inside = find_lan(routes, links, OWN, container=True)
    assert inside.guests == nets("172.17.0.0/16")
    assert "ve-box" in inside.uplinks


# The uplink

ADDRESSES = [
    DeviceAddress(1, ip_interface("127.0.0.1/8"), 254),
    DeviceAddress(ETH, ip_interface("10.0.0.2/8")),
    DeviceAddress(ETH, ip_interface("192.168.1.2/24")),
    DeviceAddress(ETH, ip_interface("2001:db8::dead/64"), flags=0x21),
    DeviceAddress(ETH, ip_interface("2001:db8::beef/64"), flags=0x01),
    DeviceAddress(ETH, ip_interface("2001:db8::2/64")),
    DeviceAddress(ETH, ip_interface("2001:db8::3/64"), flags=0x40),
    DeviceAddress(ETH, ip_interface("fe80::2/64"), 253),
    DeviceAddress(WIFI, ip_interface("172.16.0.2/16")),
]
CABLE_OUT = route("0.0.0.0/0", ETH, "192.168.1.1", metric=100)
WIFI_OUT = route("0.0.0.0/0", WIFI, "172.16.0.1", metric=600)


def uplink(*routes: KernelRoute, version: int = 4, links: list[NetworkDevice] = LINKS) -> Uplink | None:
    return find_uplink(version, routes, links, ADDRESSES, OWN)


def test_the_smallest_metric_wins_and_is_not_told() -> None:
    cable = Uplink(ETH, "eth0", "192.168.1.1", "192.168.1.2")
    assert uplink(WIFI_OUT, CABLE_OUT) == cable
    assert uplink(CABLE_OUT._replace(metric=20100)) == cable
    assert uplink(CABLE_OUT._replace(metric=20100), WIFI_OUT) == Uplink(
        WIFI, "wlan0", "172.16.0.1", "172.16.0.2"
    )


def test_what_is_no_uplink() -> None:
    for routes in (
        [],
        [route("0.0.0.0/1", gateway="192.168.1.1")],
        [route("::/0", gateway="fe80::1")],
        [CABLE_OUT._replace(table=100)],
        [CABLE_OUT._replace(kind=7)],
        [CABLE_OUT._replace(hops=(NextHop(TUN, None),))],
        [CABLE_OUT._replace(hops=(NextHop(77, None),))],
        [CABLE_OUT._replace(hops=(NextHop(ETH, "192.168.1.1", 0x1),))],
        [CABLE_OUT._replace(hops=(NextHop(ETH, "192.168.1.1", 0x10),))],
    ):
        assert uplink(*routes) is None
    assert uplink(CABLE_OUT, links=[NetworkDevice(ETH, "eth0", False)]) is None


def test_source_addresses() -> None:
    given = uplink(CABLE_OUT._replace(source="10.0.0.2"))
    assert given is not None and given.source == "10.0.0.2"
    six = uplink(route("::/0", gateway="fe80::1"), version=6)
    assert six is not None and six.source == "2001:db8::2"
    bare = find_uplink(4, [CABLE_OUT], LINKS, [], OWN)
    assert bare == Uplink(ETH, "eth0", "192.168.1.1", None)
    dead_first = CABLE_OUT._replace(hops=(NextHop(WIFI, "172.16.0.1", 0x1), NextHop(ETH, "192.168.1.1")))
    assert uplink(dead_first) == uplink(CABLE_OUT)


# Messages


def message(family: int, attributes: dict[str, Any], **more: Any) -> dict[str, Any]:
    header = {"family": family, "dst_len": 0, "table": MAIN, "type": 1, "proto": 3, "flags": 0}
    return {**header, **more, "attrs": list(attributes.items())}


def test_routes_of_messages() -> None:
    assert read_route(
        message(AF_INET, {"RTA_TABLE": MAIN, "RTA_DST": "192.168.1.0", "RTA_OIF": ETH}, dst_len=24)
    ) == route("192.168.1.0/24", protocol=3)
    assert read_route(
        message(AF_INET6, {"RTA_PRIORITY": 1024, "RTA_OIF": ETH, "RTA_GATEWAY": "fe80::1"}, flags=16)
    ) == route("::/0", hops=(NextHop(ETH, "fe80::1", 16),), metric=1024, protocol=3)
    assert read_route(
        message(AF_INET, {"RTA_OIF": ETH, "RTA_VIA": {"family": AF_INET6, "addr": "fe80::1"}})
    ) == route("0.0.0.0/0", gateway="fe80::1", protocol=3)
    hops = [
        {"oif": ETH, "flags": 1, "attrs": [("RTA_GATEWAY", "192.168.1.1")]},
        {"oif": WIFI, "flags": 0, "attrs": []},
    ]
    assert read_route(message(AF_INET, {"RTA_MULTIPATH": hops, "RTA_PREFSRC": "10.0.0.2"})) == route(
        "0.0.0.0/0", hops=(NextHop(ETH, "192.168.1.1", 1), NextHop(WIFI, None)), source="10.0.0.2", protocol=3
    )
    hidden = read_route(message(AF_INET, {"RTA_NH_ID": 5, "RTA_DST": "10.0.0.0"}, dst_len=8))
    assert hidden is not None and hidden.hops == () and lan_of(hidden) == ()
    wrapped = {"RTA_OIF": ETH, "RTA_DST": "10.0.0.0", "RTA_ENCAP_TYPE": 1, "RTA_ENCAP": {}}
    found = read_route(message(AF_INET, wrapped, dst_len=8))
    assert found is not None and found.wrapped
    assert read_route(message(28, {})) is None  # MPLS
    assert read_route(message(AF_INET, {}, flags=0x200)) is None


def test_links_and_addresses_of_messages() -> None:
    header = {"index": 7, "flags": 0x1}
    assert read_link({**header, "attrs": [("IFLA_IFNAME", "eth0")]}) == NetworkDevice(7, "eth0", True)
    kind = {"attrs": [("IFLA_INFO_KIND", "veth")]}
    attributes = [("IFLA_IFNAME", "v0"), ("IFLA_LINKINFO", kind), ("IFLA_MASTER", 3)]
    assert read_link({"index": 7, "flags": 0, "attrs": attributes}) == NetworkDevice(
        7, "v0", False, "veth", 3
    )
    header = {"index": 7, "prefixlen": 24, "scope": 0, "flags": 0}
    attributes = [("IFA_ADDRESS", "10.0.0.1"), ("IFA_LOCAL", "10.0.0.2"), ("IFA_FLAGS", 0x180)]
    assert read_address({**header, "attrs": attributes}) == DeviceAddress(
        7, ip_interface("10.0.0.2/24"), flags=0x180
    )
    header = {"index": 7, "prefixlen": 64, "scope": 253, "flags": 0x40}
    assert read_address({**header, "attrs": [("IFA_ADDRESS", "fe80::1")]}) == DeviceAddress(
        7, ip_interface("fe80::1/64"), 253, 0x40
    )


def test_networks_of_addresses_that_are_no_lan() -> None:
    links = [NetworkDevice(2, "eth0", True), NetworkDevice(9, "cryprq0", True)]
    addresses = [
        DeviceAddress(device, ip_interface(text))
        for device, text in (
            (2, "192.168.1.5/24"),
            (2, "198.18.7.5/24"),
            (2, "198.18.7.6/24"),
            (2, "2001:db8::5/64"),
            (9, "198.18.9.9/32"),
        )
    ]
    lan = Lan((ip_network("192.168.0.0/16"),))
    attached = find_attached(lan, addresses, links, "cryprq0")
    assert attached == (ip_network("198.18.7.0/24"), ip_network("2001:db8::/64"))
