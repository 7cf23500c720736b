"""The standard topology: a home behind a router, and across the "internet" an exit and a server.

    client .2 --- lan 192.168.77.0/24 --- router .1 --- 5.75.10.0/24 ---- .2 exit
                  2a01:e0a:77::/64           |          2a01:4f8:10::/64  ::2
                                             |
                                             +--------- 93.184.20.0/24 -- .10 server
                                                        2606:2800:20::/64 ::10

The addresses outside are ordinary public ones, since an exit's policy refuses those of documentation and tests; no
packet with them leaves the namespaces. The router masquerades the home's IPv4 as homes do, so the server sees three
different addresses: its own router's (the client went past the tunnel), the exit's, or a client's IPv6 address.

The client's interface is eth0, its gateway fe80::1 for IPv6. exit and server have an eth0 too; the router has
`lan` (a bridge), `to-exit` and `to-server`. Exit and server ask the server's DNS, the client that of the router.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.support.lab.delay_line import DelayLine
from tests.support.lab.net import Lab, Namespace, Resolver

CLIENT4: Final = "192.168.77.2"
CLIENT6: Final = "2a01:e0a:77::2"
ROUTER_LAN4: Final = "192.168.77.1"
ROUTER_LAN6: Final = "fe80::1"
EXIT4: Final = "5.75.10.2"
EXIT6: Final = "2a01:4f8:10::2"
SERVER4: Final = "93.184.20.10"
SERVER6: Final = "2606:2800:20::10"
ROUTER_EXIT4: Final = "5.75.10.1"
"""Where the home's IPv4 traffic comes from in the eyes of the exit."""
ROUTER_SERVER4: Final = "93.184.20.1"
"""The same in the eyes of the server: whatever comes from here went past the tunnel."""
DIRECT: Final = {4: ROUTER_SERVER4, 6: CLIENT6}
THROUGH: Final = {4: EXIT4, 6: EXIT6}
"""Where the client's requests come from in the eyes of the server, past the tunnel and through it, by IP version."""

_HOME = """
table ip home {
    chain post {
        type nat hook postrouting priority 100;
        ip saddr 192.168.77.0/24 oifname { "to-exit", "to-server" } masquerade
    }
}
"""
# Both families, and what is established too: rules of the forward path know no established flow.
_NO_UDP = """
table inet no_udp {
    chain forward {
        type filter hook forward priority 0;
        meta l4proto udp drop
    }
}
"""


@dataclass(frozen=True, slots=True)
class ThreeHosts:
    """client, exit and server, and the router between them. Made by `three_hosts`."""

    lab: Lab
    client: Namespace
    router: Namespace
    exit: Namespace
    server: Namespace
    line: DelayLine | None
    """Between router and exit, if it is no plain cable."""

    def plug(self, host: Namespace, *addresses: str, device: str = "eth0") -> None:
        """One more host on the home's LAN, with routes to the world if it has no default yet."""
        port = f"lan{host.name.split('-')[1]}"
        self.lab.veth(host, device, self.router, port)
        self.router.ip(f"link set {port} master lan")
        self.lab.address(host, device, *addresses)
        host.ip(f"route replace default via {ROUTER_LAN4} dev {device}")
        host.ip(f"-6 route replace default via {ROUTER_LAN6} dev {device}")

    def block_udp(self) -> None:
        """From now on the router drops all UDP between the home, exit and server."""
        self.router.nft(_NO_UDP)

    def unblock_udp(self) -> None:
        self.router.nft("delete table inet no_udp")

    def path_mtu(self, mtu: int) -> None:
        """What fits between router and exit, told by ICMP to whoever sends more. At least 1280."""
        self.router.ip(f"link set to-exit mtu {mtu}")
        self.exit.ip(f"link set eth0 mtu {mtu}")

    def move_client(self, address4: str, address6: str) -> None:
        """The client loses its addresses and gets these, with their prefix lengths, on the same LAN."""
        self.client.ip("addr flush dev eth0 scope global")
        self.lab.address(self.client, "eth0", address4, address6)
        self.client.ip(f"route replace default via {ROUTER_LAN4} dev eth0")
        self.client.ip(f"-6 route replace default via {ROUTER_LAN6} dev eth0")


def three_hosts(lab: Lab, resolver: Resolver = "own", line: Sequence[str] = ()) -> ThreeHosts:
    """Makes the topology; `resolver` is the client's kind of /etc/resolv.conf, `line` has the options of a delay line
    between router and exit."""
    client, router, exit, server = (
        lab.namespace("client", resolver),
        *map(lab.namespace, ("router", "exit", "server")),
    )
    ends = (router, "to-exit", exit, "eth0")
    delayed = DelayLine(lab, *ends, *line) if line else None
    if delayed is None:
        lab.veth(*ends)
    hosts = ThreeHosts(lab, client=client, router=router, exit=exit, server=server, line=delayed)
    router.ip("link add name lan type bridge")
    router.ip("link set lan up")
    lab.address(router, "lan", f"{ROUTER_LAN4}/24", f"{ROUTER_LAN6}/64", "2a01:e0a:77::1/64")
    lab.forward(router)
    router.nft(_HOME)
    lab.veth(router, "to-server", hosts.server, "eth0")
    lab.address(router, "to-exit", f"{ROUTER_EXIT4}/24", "2a01:4f8:10::1/64")
    lab.address(router, "to-server", f"{ROUTER_SERVER4}/24", "2606:2800:20::1/64")
    for host, address4, address6 in ((hosts.exit, EXIT4, EXIT6), (hosts.server, SERVER4, SERVER6)):
        lab.address(host, "eth0", f"{address4}/24", f"{address6}/64")
        host.ip(f"route add default via {address4.rpartition('.')[0]}.1")
        host.ip(f"-6 route add default via {address6.partition('::')[0]}::1")
        host.resolv_conf.write_text(f"nameserver {SERVER4}\n")
    hosts.plug(hosts.client, f"{CLIENT4}/24", f"{CLIENT6}/64")
    return hosts
