"""A client with two routes out, and a server on each: what arrives where says which route a packet took.

    guest .2 -- br0 172.20.0.0/24 -- .1 client .2 -- eth0 192.168.77.0/24 -- .1 world
                fd20::/64               |            2a01:e0a:77::/64
                                        +-- cryprq0 (TUN) 198.18.0.2 ------- beyond
                                                          fd63:7279:7071::2

`world` is the network outside, and has the address of the exit. `beyond` is what lies behind the tunnel; a thread
carries packets between the two TUN devices, in place of link and exit. Both have the same public addresses.
The client has the routes and sysctls of the system-wide mode, with the kernel's strict reverse path filter.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from tests.support.lab.net import LONG, Lab, Namespace

MARK: Final = 0x6372
TABLE: Final = 25458
TUN: Final = "cryprq0"
TUNNEL4, TUNNEL6 = "198.18.0.2", "fd63:7279:7071::2"
CLIENT4, CLIENT6 = "192.168.77.2", "2a01:e0a:77::2"
WORLD4, WORLD6 = "192.168.77.1", "2a01:e0a:77::1"
GUEST4, GUEST6 = "172.20.0.2", "fd20::2"
EXIT4, EXIT6 = "5.75.10.2", "2a01:4f8:10::2"
PUBLIC4, PUBLIC6 = "93.184.20.10", "2606:2800:20::10"
RESOLVER4, RESOLVER6 = "8.8.8.8", "2001:4860:4860::8888"
VIRTUAL4, VIRTUAL6 = "198.18.255.53", "fd63:7279:7071::53"


def open_tun(host: Namespace, device: str) -> int:
    """A TUN device without packet information, as a non-blocking descriptor."""
    with host.entered():
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", device.encode(), 0x1001))
    host.sysctl(f"net.ipv6.conf.{device}.addr_gen_mode", "1")
    host.ip(f"link set {device} up")
    return descriptor


class Cable:
    """Carries packets between TUN devices until closed.

    `choose` says for a packet and the device that it came from where it goes, None for nowhere.
    """

    def __init__(self, *devices: int, choose: Callable[[int, bytes], int | None]) -> None:
        self._devices, self._choose = devices, choose
        self._end, self._close = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([*self._devices, self._end], [], [])
            if self._end in ready:
                return
            for device in ready:
                with suppress(OSError):  # the device is down
                    packet = os.read(device, 65536)
                    to = self._choose(device, packet)
                    if to is not None:
                        os.write(to, packet)

    def close(self) -> None:
        os.write(self._close, b"x")
        self._thread.join()
        for descriptor in (*self._devices, self._end, self._close):
            os.close(descriptor)


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Paths:
    """The topology, and what the tests do in it."""

    def __init__(self, lab: Lab, mtu: int = 1280) -> None:
        self.lab = lab
        self.client, self.world = lab.namespace("client"), lab.namespace("world")
        self.beyond, self.guest = lab.namespace("beyond"), lab.namespace("guest")
        client, world, beyond, guest = self.client, self.world, self.beyond, self.guest
        self._sockets: list[socket.socket] = []
        lab.on_close(self._close)
        self.listeners: dict[tuple[str, int], socket.socket] = {}

        lab.veth(client, "eth0", world, "eth0")
        lab.address(client, "eth0", f"{CLIENT4}/24", f"{CLIENT6}/64")
        lab.address(world, "eth0", f"{WORLD4}/24", f"{WORLD6}/64", "fe80::1/64")
        client.ip("link add br0 type bridge")
        client.ip("link set br0 up")
        lab.veth(client, "port0", guest, "eth0")
        client.ip("link set port0 master br0")
        lab.address(client, "br0", "172.20.0.1/24", "fd20::1/64")
        lab.address(guest, "eth0", f"{GUEST4}/24", f"{GUEST6}/64")
        guest.ip("route add default via 172.20.0.1")
        guest.ip("-6 route add default via fd20::1")
        lab.forward(client)
        for host in (world, beyond):
            for address in (EXIT4, PUBLIC4, RESOLVER4):
                lab.address(host, "lo", f"{address}/32")
            for address in (EXIT6, PUBLIC6, RESOLVER6):
                lab.address(host, "lo", f"{address}/128")
        # It is several routers and servers in one: its own address asks for neighbours, as a router's does.
        world.sysctl("net.ipv4.conf.all.arp_announce", "2")
        world.ip(f"route add default via {CLIENT4}")
        world.ip(f"-6 route add default via {CLIENT6}")
        client.ip(f"route add default via {WORLD4}")
        client.ip("-6 route add default via fe80::1 dev eth0")

        self.tun = open_tun(client, TUN)
        far = open_tun(beyond, "far0")
        cable = Cable(self.tun, far, choose=lambda device, _: far if device == self.tun else self.tun)
        lab.on_close(cable.close)
        lab.address(client, TUN, f"{TUNNEL4}/32", f"{TUNNEL6}/128")
        client.ip(f"link set {TUN} mtu {mtu}")
        beyond.ip("route add 198.18.0.0/16 dev far0")
        beyond.ip("-6 route add fd63:7279:7071::/64 dev far0")
        self.route_all()
        client.sysctl("net.ipv4.conf.all.rp_filter", "1")
        client.sysctl("net.ipv4.conf.all.src_valid_mark", "1")

    def route_all(self) -> None:
        """The client's routes and rules, as the system-wide mode sets them."""
        client = self.client
        for ip, local in (("", ("192.168.77.0/24", "172.20.0.0/24")), ("-6", ("fe80::/10", "fd20::/64"))):
            client.ip(f"{ip} route add default dev {TUN} table {TABLE}")
            client.ip(f"{ip} route add unreachable default metric 4278198272 table {TABLE}")
            client.ip(f"{ip} rule add priority 25400 fwmark {MARK} lookup main")
            for prefix in local:
                client.ip(f"{ip} rule add priority 25410 to {prefix} lookup main")
            client.ip(f"{ip} rule add priority 25490 lookup {TABLE}")

    def unroute(self) -> None:
        """The rules are gone, as after a crash of all that keeps them: everything falls through to main."""
        for ip in ("", "-6"):
            self.client.ip(f"{ip} rule del priority 25490")

    def _close(self) -> None:
        for each in self._sockets:
            each.close()

    @contextmanager
    def _as(self, host: Namespace, uid: int) -> Iterator[None]:
        with host.entered():
            os.seteuid(uid)
            try:
                yield
            finally:
                os.seteuid(0)

    def make(
        self,
        host: Namespace,
        address: str,
        kind: socket.SocketKind,
        *,
        bind: tuple[str, int] | None = None,
        mark: int = 0,
        uid: int = 0,
        protocol: int = 0,
    ) -> socket.socket:
        """A socket of the family of `address`, inside `host`; closed with the lab."""
        with self._as(host, uid):
            made = socket.socket(family(address), kind, protocol)
        self._sockets.append(made)
        made.settimeout(LONG)
        if mark:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if bind is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if ":" in bind[0] and kind != socket.SOCK_RAW:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind(bind)
        return made

    def listen(self, host: Namespace, address: str, port: int) -> socket.socket:
        """A TCP listener; its queue takes connections with nobody accepting."""
        made = self.make(host, address, socket.SOCK_STREAM, bind=(address, port))
        made.listen(16)
        made.settimeout(LONG)
        return made

    def udp(self, host: Namespace, address: str, port: int = 0) -> socket.socket:
        return self.make(host, address, socket.SOCK_DGRAM, bind=(address, port))

    def listen_everywhere(self, port: int) -> None:
        """TCP listeners on all addresses of both families, in the world and beyond."""
        for host in (self.world, self.beyond):
            for address in ("0.0.0.0", "::"):
                listener = self.listen(host, address, port)
                listener.setblocking(False)
                self.listeners[f"{host.label} {address}", port] = listener

    def taken(self, port: int) -> tuple[str, str] | None:
        """Which host has got a connection on `port`, and from which address."""
        for (label, each), listener in self.listeners.items():
            if each == port:
                with suppress(BlockingIOError):
                    accepted, peer = listener.accept()
                    self._sockets.append(accepted)
                    return label.split()[0], peer[0]
        return None

    def tcp(
        self, host: Namespace, address: str, port: int, *, mark: int = 0, uid: int = 0, source: str = ""
    ) -> tuple[str, str] | None:
        """Connects; gives who has taken it and the source that it saw, or None if it was refused at once.

        Raises TimeoutError if it was neither.
        """
        with self.make(
            host, address, socket.SOCK_STREAM, mark=mark, uid=uid, bind=(source, 0) if source else None
        ) as tried:
            try:
                tried.connect((address, port))
            except TimeoutError:
                raise
            except OSError:
                assert self.taken(port) is None
                return None
            # A connection is there for us as soon as the other side's acknowledgement comes back.
            taken = self.taken(port)
            while taken is None:
                taken = self.taken(port)
            return taken

    def sends(
        self,
        host: Namespace,
        address: str,
        port: int,
        *,
        mark: int = 0,
        uid: int = 0,
        bind: tuple[str, int] | None = None,
    ) -> bool:
        """Whether the kernel lets a datagram out."""
        made = self.make(host, address, socket.SOCK_DGRAM, mark=mark, uid=uid, bind=bind)
        try:
            made.sendto(b"x", (address, port))
        except PermissionError:
            return False
        return True
