"""A Mac as it stands on a desk: Wi-Fi with DHCP and IPv6, AirDrop's interfaces, the system's own utuns, pf off."""

from __future__ import annotations

import uuid

from tests.support.macos.state import Address, Anchor, Interface, Pf, Route, Service, State

WIFI = "en0"
ETHERNET = "en1"
WIFI_ID = "6F1B2C3D-0000-4A4A-9B9B-0123456789AB"
ETHERNET_ID = "7A2C3D4E-0000-4B4B-8C8C-0123456789AB"
GATEWAY = "192.168.1.1"
ADDRESS = "192.168.1.23"
ADDRESS6 = "2001:db8:1:2:1c2f:11ff:fe22:3344"
GATEWAY6 = "fe80::1"
_ETHER = "a4:83:e7:12:34:56"

MAIN_RULES = 'scrub-anchor "com.apple/*" all fragment reassemble\nanchor "com.apple/*" all\n'
MAIN_NAT = 'nat-anchor "com.apple/*" all\nrdr-anchor "com.apple/*" all\n'
PF_CONF = """\
scrub-anchor "com.apple/*"
nat-anchor "com.apple/*"
rdr-anchor "com.apple/*"
dummynet-anchor "com.apple/*"
anchor "com.apple/*"
load anchor "com.apple" from "/etc/pf.anchors/com.apple"
"""
PF_ANCHOR = 'anchor "200.AirDrop/*"\nanchor "250.ApplicationFirewall/*"\n'
APPLE_RULES = 'anchor "200.AirDrop/*" all\nanchor "250.ApplicationFirewall/*" all\n'

BROADCAST = ["UP", "BROADCAST", "SMART", "RUNNING", "SIMPLEX", "MULTICAST"]
POINT = ["UP", "POINTOPOINT", "RUNNING", "MULTICAST"]


def default_state() -> State:
    """A new one at each call, with its own boot id."""
    state = State(
        interfaces=_interfaces(),
        pf=_pf(),
        services=[
            Service("Ethernet", ETHERNET_ID, ETHERNET, "Ethernet"),
            Service("Wi-Fi", WIFI_ID, WIFI, "Wi-Fi"),
        ],
        sysctls={
            "kern.bootsessionuuid": new_boot_id(),
            "kern.hostname": "desk.local",
            "kern.osproductversion": "14.5",
            "kern.ostype": "Darwin",
            "net.inet.ip.forwarding": "0",
            "net.inet6.ip6.forwarding": "0",
        },
        files={"/etc/pf.conf": PF_CONF, "/etc/pf.anchors/com.apple": PF_ANCHOR},
    )
    state.routes = [*_loopback_routes(), *_local_routes(state)]
    return state


def new_boot_id() -> str:
    return str(uuid.uuid4()).upper()


def _interfaces() -> list[Interface]:
    quiet = ["UP", "BROADCAST", "RUNNING", "SIMPLEX", "MULTICAST"]
    return [
        Interface(
            "lo0",
            1,
            ["UP", "LOOPBACK", "RUNNING", "MULTICAST"],
            16384,
            addresses=[Address("127.0.0.1", 8), Address("::1", 128), Address("fe80::1", 64)],
        ),
        Interface("gif0", 2, ["POINTOPOINT", "MULTICAST"], 1280),
        Interface("stf0", 3, [], 1280),
        Interface(ETHERNET, 4, list(BROADCAST), ether="a4:83:e7:12:34:57", status="inactive"),
        Interface("bridge0", 5, list(BROADCAST), ether="36:0b:8e:00:11:22", status="inactive"),
        Interface(
            WIFI,
            6,
            list(BROADCAST),
            ether=_ETHER,
            status="active",
            addresses=[_link_local(_ETHER, "secured")],
        ),
        Interface(
            "awdl0",
            7,
            list(quiet),
            ether="ca:6a:11:22:33:44",
            status="active",
            addresses=[_link_local("ca:6a:11:22:33:44")],
        ),
        Interface(
            "llw0",
            8,
            list(quiet),
            ether="ca:6a:11:22:33:44",
            status="active",
            addresses=[_link_local("ca:6a:11:22:33:44")],
        ),
        *(
            Interface(
                f"utun{unit}", 9 + unit, list(POINT), mtu, addresses=[Address(f"fe80::{unit + 0xA0:x}", 64)]
            )
            for unit, mtu in enumerate((1380, 2000, 1000, 1380))
        ),
    ]


def _link_local(ether: str, *flags: str) -> Address:
    octets = [int(each, 16) for each in ether.split(":")]
    octets[0] ^= 2
    groups = (
        octets[0] << 8 | octets[1],
        octets[2] << 8 | 0xFF,
        0xFE00 | octets[3],
        octets[4] << 8 | octets[5],
    )
    return Address("fe80::" + ":".join(f"{group:x}" for group in groups), 64, flags=list(flags))


def _pf() -> Pf:
    return Pf(
        main=Anchor(MAIN_RULES, MAIN_NAT),
        anchors={
            "com.apple": Anchor(APPLE_RULES),
            "com.apple/200.AirDrop": Anchor(),
            "com.apple/250.ApplicationFirewall": Anchor(),
        },
    )


def _loopback_routes() -> list[Route]:
    return [
        Route("127.0.0.0/8", "127.0.0.1", "lo0", "UCS"),
        Route("127.0.0.1/32", "127.0.0.1", "lo0", "UH"),
        Route("::1/128", "::1", "lo0", "UHL"),
        Route("fe80::/64", "fe80::1%lo0", "lo0", "UcI"),
        Route("fe80::1/128", "link#1", "lo0", "UHLI"),
        Route("ff00::/8", "::1", "lo0", "UmCI"),
        Route("ff02::/32", "::1", "lo0", "UmCI"),
    ]


def _local_routes(state: State) -> list[Route]:
    """Of each interface with a link-local address; a utun of the system has a default route in its own scope."""
    routes = []
    for each in state.interfaces[1:]:
        for address in each.addresses:
            point = each.name.startswith("utun")
            routes += [
                Route(
                    "fe80::/64",
                    f"{address.address}%{each.name}" if point else f"link#{each.index}",
                    each.name,
                    "UCI",
                ),
                Route(f"{address.address}/128", f"link#{each.index}" if point else each.ether, "lo0", "UHLI"),
                Route("ff02::/32", f"link#{each.index}", each.name, "UmCI"),
            ]
            if point:
                routes.append(Route("::/0", f"fe80::%{each.name}", each.name, "UGcIg"))
    return routes
