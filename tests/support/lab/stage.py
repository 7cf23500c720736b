"""System-wide mode on the standard topology, for tests that ask what a running tunnel does with packets.

    with Stage() as stage, stage.tunnel("--lan", "block") as client:
        assert stage.fetch(SERVER4) == EXIT4

Making hosts and an exit takes seconds, so the tests of a module share one stage, and each has a client of its own.
`tunnel` checks what every run owes, whatever else is tested: a clean end, and a host that is as it was before.

Beside what hosts.py says, the client's reverse path filter is strict, the router's DNS is the network's own resolver,
and the server has a second address of each family, so that one can be treated otherwise than the other. The server
knows a.example.com, which the router does not.
"""

from __future__ import annotations

import difflib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from cryprq_proxy.process.control import query
from tests.support.config_files import Settings
from tests.support.lab.capture import Capture, Packet
from tests.support.lab.hosts import EXIT4, EXIT6, three_hosts
from tests.support.lab.links import PORT, Links, Role
from tests.support.lab.net import LIMIT, LONG, Lab, Namespace, Resolver
from tests.support.lab.orphans import end_orphans
from tests.support.lab.server import ECHO_PORT, FarServer

OTHER4: Final = "93.184.20.11"
OTHER6: Final = "2606:2800:20::11"
"""The server as well."""
TUN: Final = "cryprq0"
NO_CONNECTION: Final = 7
"""Exit code of curl; a time-out has another one."""


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def host_of(address: str) -> str:
    """As it stands in a URL."""
    return f"[{address}]" if ":" in address else address


class Stage:
    """Hosts, far server, network resolver and a running exit. A context manager."""

    def __init__(
        self,
        resolver: Resolver = "own",
        *,
        clients: tuple[str, ...] = ("client",),
        ipv6: bool = True,
        exit_settings: Settings | None = None,
        exit_flags: tuple[str, ...] = (),
        line: tuple[str, ...] = (),
    ) -> None:
        """`line` has the options of a delay line between router and exit."""
        self.lab = Lab()
        try:
            self.hosts = three_hosts(self.lab, resolver, line)
            self.client = self.hosts.client
            for address in (f"{OTHER4}/24", f"{OTHER6}/64 nodad"):
                # Not preferred: what the server sends without having been asked comes from the first address.
                self.hosts.server.ip(f"addr add {address} dev eth0 preferred_lft 0")
            for device in ("all", "default", "eth0"):
                self.client.sysctl(f"net.ipv4.conf.{device}.rp_filter", "1")
            if not ipv6:
                self.hosts.exit.ip("-6 route del default")
            self.server = FarServer(self.lab, self.hosts.server)
            self.server.dns.answers["a.example.com.", "A"] = ["192.0.2.7"]
            self.resolver = FarServer(self.lab, self.hosts.router, only=("dns",))
            """What the network tells its hosts to ask; it is also reached at the router's other addresses."""
            self.links = Links(self.lab.directory / "links")
            self._exit_settings, self._exit_flags, self._clients = exit_settings, exit_flags, clients
            self.exit = self._start_exit()
        except BaseException:
            self.lab.close()
            raise

    # --- the program -----------------------------------------------------------------------------------------------

    @contextmanager
    def tunnel(
        self, *options: str, settings: Settings | None = None, address: str = f"{EXIT4}:{PORT}"
    ) -> Iterator[Role]:
        """A client in system-wide mode. At the end it is stopped, unless it has ended, and nothing of it is left."""
        before = self.client.snapshot()
        role = self.links.client(self.client, *options, settings=settings, address=address)
        try:
            yield role
        finally:
            # Of programs inside the tunnel: as long as it stands, this and all that they repeat goes there.
            end_orphans(self.client)
            code = role.stop() if role.process.poll() is None else 0
            end_orphans(self.client, PORT)
        assert not code, role.log
        self.unchanged_since(before)

    def _start_exit(self) -> Role:
        return self.links.exit(
            self.hosts.exit, self._exit_settings, clients=self._clients, flags=self._exit_flags
        )

    def restart_exit(self, meanwhile: Callable[[], object], *, killed: bool = False) -> None:
        """The exit ends, or is killed; `meanwhile` is called, and it starts again."""
        code = self.exit.kill() if killed else self.exit.stop()
        assert killed or not code, self.exit.log
        meanwhile()
        self.exit = self._start_exit()

    def unchanged_since(self, before: str) -> None:
        """The client's routes, rules, filter, sysctls and resolver are those of this snapshot."""
        after = self.client.snapshot()
        assert after == before, "\n".join(difflib.unified_diff(before.split("\n"), after.split("\n"), n=0))

    @contextmanager
    def left_clean(self) -> Iterator[None]:
        """A test inside that fails leaves no client, and nothing of one, to the next."""
        before = self.client.snapshot()
        try:
            yield
        finally:
            for role in self.links.roles:
                if role.host is self.client and role.process.poll() is None:
                    role.kill()
            end_orphans(self.client, PORT)
            if self.client.snapshot() != before:
                self.links.call(self.client, "cleanup", "--state-dir", str(self.links.state_dir))

    def client_file(self, settings: Settings | None = None) -> Path:
        """The configuration of a client that a test starts by itself, or that runs and will read it again."""
        peer = f"cryprq://{self.links.identity('exit')[1]}@{EXIT4}:{PORT}"
        own = {"peer": peer, "tun": {"state_dir": str(self.links.state_dir)}}
        return self.links.config("client", {**own, **(settings or {})})

    def command(self, *arguments: str) -> str:
        """One of the short commands, to the client that runs; its standard output."""
        file = self.links.directory / "client.toml"
        done = self.links.call(self.client, *arguments, "--config", str(file))
        assert not done.returncode, done.stderr
        return done.stdout

    def pause(self, seconds: int) -> None:
        """From now on, also where a longer pause stands; without starting a process for it."""
        query(self.links.directory / "client.sock", "pause", timeout=LIMIT, argument=str(seconds))

    def status(self) -> dict[str, Any]:
        """What the client says of its system-wide mode."""
        system: dict[str, Any] = self.links.status()["tun"]
        return system

    def uptime(self) -> float:
        """Seconds since the client started, by its own clock."""
        seconds: float = self.links.status()["uptime"]
        return seconds

    def exit_status(self) -> dict[str, Any]:
        """What the exit says of its network interface."""
        network: dict[str, Any] = self.links.status("exit")["network"]
        return network

    # --- packets ---------------------------------------------------------------------------------------------------

    def fetch(self, address: str, path: str = "/address", host: Namespace | None = None) -> str:
        """An HTTP request from the client, or from `host`; with the default path, the address that the server saw."""
        url = f"http://{host_of(address)}{path}"
        return (host or self.client).run(["curl", "-sS", "--max-time", f"{LONG:g}", url])

    def fetches(self, address: str, host: Namespace | None = None) -> str:
        """As `fetch`, but empty if it fails; for a test that tries again."""
        url = f"http://{host_of(address)}/address"
        return (host or self.client).attempt(["curl", "-s", "--max-time", "5", url]).stdout

    def refuses(self, address: str) -> bool:
        """A connection is refused at once: a program is told and need not wait for its time-out."""
        url = f"http://{host_of(address)}/address"
        return self.client.attempt(["curl", "-s", "--max-time", f"{LONG:g}", url]).returncode == NO_CONNECTION

    def ping(self, address: str, host: Namespace | None = None, seconds: float = LONG) -> bool:
        """Whether an echo is answered; give SILENCE for one that is not to be."""
        command = ["ping", "-n", "-c", "1", "-W", f"{seconds:g}", address]
        return not (host or self.client).attempt(command).returncode

    def echo(self, address: str, host: Namespace | None = None) -> str:
        """A datagram to the server and back; the address that the server saw."""
        with self.socket(address, socket.SOCK_DGRAM, host) as sock:
            sock.sendto(b"echo", (address, ECHO_PORT))
            assert sock.recv(100) == b"echo"
        return next(visit.source for visit in reversed(self.server.visits) if visit.service == "echo-udp")

    def socket(
        self, address: str, kind: socket.SocketKind = socket.SOCK_STREAM, host: Namespace | None = None
    ) -> socket.socket:
        """A socket of the client, or of `host`, for the family of `address`."""
        with (host or self.client).entered():
            sock = socket.socket(family(address), kind)
        sock.settimeout(LONG)
        return sock

    def wire(self) -> Capture:
        """All that goes over the client's outer interface."""
        return Capture(self.client, "eth0")

    # --- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> list[str]:
        """What went wrong in any process."""
        try:
            return self.links.close()
        finally:
            self.lab.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        wrong = self.close()
        if kind is None:
            assert not wrong, "\n\n".join(wrong)


def beside_the_link(capture: Capture, exits: tuple[str, ...] = (EXIT4, EXIT6)) -> list[Packet]:
    """What left the host and was neither the link to the exit nor neighbourly."""
    return [
        packet for packet in capture.sent() if packet.destination not in exits or not _is_of_the_link(packet)
    ]


def _is_of_the_link(packet: Packet) -> bool:
    """Given that it goes to the exit. After the end nobody has the lane's port any more, and the kernel says so to an
    exit that is slow to notice: port unreachable (RFC 792; RFC 4443, section 3.1)."""
    if packet.protocol in ("tcp", "udp"):
        return packet.destination_port == PORT
    return (packet.protocol, packet.source_port, packet.destination_port) in (
        ("icmp", 3, 3),
        ("icmpv6", 1, 4),
    )
