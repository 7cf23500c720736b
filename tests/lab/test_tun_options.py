"""What the settings of system-wide mode let out or in: exclusions, the LAN, the kill switch, inbound, pause, confirm.

The far server tells which way a request took: past the tunnel it comes from the home's router (IPv4) or the client
itself (IPv6), through it from the exit. A capture tells that only what was let out went past.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.lab.hosts import (
    CLIENT4,
    CLIENT6,
    DIRECT,
    EXIT4,
    EXIT6,
    ROUTER_LAN4,
    ROUTER_LAN6,
    ROUTER_SERVER4,
    SERVER4,
    SERVER6,
    THROUGH,
)
from tests.support.lab.net import LONG, SILENCE, Namespace, until
from tests.support.lab.server import ECHO_PORT
from tests.support.lab.stage import OTHER4, OTHER6, Stage, beside_the_link, host_of

PRINTER4, PRINTER6 = "192.168.77.9", "2a01:e0a:77::9"
ROOT = Path("/")
USER = 4321
"""Somebody without a name on this machine."""
PRINTER_PORT = 9100
SSH = 2222


@pytest.fixture(scope="module")
def stage(namespaces: None) -> Iterator[Stage]:
    with Stage() as stage:
        printer = stage.lab.namespace("printer")
        stage.hosts.plug(printer, f"{PRINTER4}/24", f"{PRINTER6}/64")
        yield stage


@pytest.fixture
def printer(stage: Stage) -> Namespace:
    """Another host on the home's LAN."""
    return next(host for host in stage.lab.hosts if host.label == "printer")


# --- services inside hosts ----------------------------------------------------------------------------------------


class Served:
    """An echo service in a host, one thread a connection."""

    def __init__(self, host: Namespace, port: int) -> None:
        with host.entered():
            self._listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        self._open: list[socket.socket] = [self._listener]
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._echo, args=[connection], daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def close(self) -> None:
        """Nothing of it is left on the network: also of a connection that has just come in."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


@contextmanager
def served(host: Namespace, port: int = PRINTER_PORT) -> Iterator[None]:
    service = Served(host, port)
    try:
        yield
    finally:
        service.close()


def talk(sock: socket.socket) -> bool:
    """Whether what is sent comes back."""
    try:
        sock.sendall(b"hello")
        return sock.recv(100) == b"hello"
    except OSError:
        return False


def comes_back(sock: socket.socket, data: bytes) -> bool:
    """Whether all of `data`, of which a part may have been sent before, comes back."""
    received = b""
    with suppress(OSError):
        while len(received) < len(data) and (piece := sock.recv(100)):
            received += piece
    return received == data


def talks(
    stage: Stage,
    address: str,
    host: Namespace | None = None,
    *,
    port: int = PRINTER_PORT,
    seconds: float = LONG,
) -> bool:
    """Whether a new connection opens and carries something."""
    with stage.socket(address, host=host) as sock:
        sock.settimeout(seconds)
        try:
            sock.connect((address, port))
        except OSError:
            return False
        return talk(sock)


# --- what goes past it on purpose ---------------------------------------------------------------------------------


def test_excluded_prefixes_go_past_the_tunnel_and_nothing_else(stage: Stage) -> None:
    with stage.wire() as wire, stage.tunnel("--exclude", f"{SERVER4}/32", "--exclude", SERVER6):
        for version, out, inside in ((4, SERVER4, OTHER4), (6, SERVER6, OTHER6)):
            assert stage.fetch(out) == DIRECT[version]
            assert stage.echo(out) == DIRECT[version]
            assert stage.ping(out)
            assert stage.fetch(inside) == THROUGH[version]
            assert stage.ping(inside)
        stage.server.forget()
        # Questions to an excluded server go to the forwarder like all others.
        stage.client.run(["dig", "+short", "+tries=1", f"+time={LONG:g}", f"@{SERVER4}", "c.example.com"])
        assert stage.server.sources("dns") == {EXIT4}
    assert {p.destination for p in beside_the_link(wire)} == {SERVER4, SERVER6}


def test_only_included_prefixes_go_through_the_tunnel(stage: Stage) -> None:
    with stage.wire() as wire, stage.tunnel("--include", SERVER4, "--include", f"{SERVER6}/128"):
        stage.resolver.forget()
        for version, out, inside in ((4, OTHER4, SERVER4), (6, OTHER6, SERVER6)):
            assert stage.fetch(inside) == THROUGH[version]
            assert stage.echo(inside) == THROUGH[version]
            assert stage.ping(inside)
            assert stage.fetch(out) == DIRECT[version]
            assert stage.ping(out)
        assert stage.client.run(["dig", "+short", "a.example.com"]) == "192.0.2.7\n"
        assert not stage.resolver.visits
    assert {p.destination for p in beside_the_link(wire)} == {OTHER4, OTHER6}


def test_an_excluded_user_goes_past_the_tunnel_but_not_with_dns(stage: Stage) -> None:
    user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--"]
    with stage.tunnel("--exclude-uid", str(USER)):
        stage.resolver.forget()
        for version, address in ((4, SERVER4), (6, SERVER6)):
            url = f"http://{host_of(address)}/address"
            assert (
                stage.client.run([*user, "curl", "-sS", "--max-time", f"{LONG:g}", url], cwd=ROOT)
                == DIRECT[version]
            )
            assert stage.fetch(address) == THROUGH[version]
        asked = stage.client.run([*user, "dig", "+short", f"@{ROUTER_LAN4}", "a.example.com"], cwd=ROOT)
        assert asked == "192.0.2.7\n"
        assert not stage.resolver.visits


# --- the LAN ------------------------------------------------------------------------------------------------------


def test_the_lan_is_reached_directly(stage: Stage, printer: Namespace) -> None:
    with served(printer), served(stage.client), stage.tunnel("--lan", "allow"):
        for address in (PRINTER4, ROUTER_LAN4, f"{ROUTER_LAN6}%eth0"):
            assert stage.ping(address)
        assert talks(stage, PRINTER4)
        assert talks(stage, CLIENT4, printer), "the LAN reaches what this machine serves"
        # A public prefix is no LAN, even on the link: it is reached through the tunnel.
        with stage.wire() as wire:
            assert talks(stage, PRINTER6)
        assert PRINTER6 not in {p.destination for p in beside_the_link(wire)}
        assert stage.fetch(SERVER4) == EXIT4


def test_the_lan_is_blocked_at_once(stage: Stage, printer: Namespace) -> None:
    with served(printer), served(stage.client), stage.tunnel("--lan", "block"), stage.wire() as wire:
        for address in (PRINTER4, ROUTER_LAN4):
            assert not stage.ping(address, seconds=SILENCE)
            with stage.socket(address) as sock, pytest.raises(OSError) as refused:
                sock.connect((address, PRINTER_PORT))
            assert not isinstance(refused.value, TimeoutError)
        assert not talks(stage, CLIENT4, printer, seconds=SILENCE)
        assert stage.fetch(SERVER4) == EXIT4
    assert not beside_the_link(wire)


# --- without the kill switch --------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["on", "off"])
def test_the_kill_switch_holds_where_the_routes_do_not(stage: Stage, switch: str) -> None:
    """Another program's rule, before ours, leads past the tunnel."""
    client = stage.client
    directions = ((4, SERVER4, OTHER4), (6, SERVER6, OTHER6))
    with stage.wire() as wire, stage.tunnel("--kill-switch", switch), ExitStack() as stack:
        for version, address, _ in directions:
            rule = f"{'-6 ' if version == 6 else ''}rule"
            client.ip(f"{rule} add to {address} lookup main priority 100")
            stack.callback(client.ip, f"{rule} del to {address} lookup main priority 100")
        for version, address, other in directions:
            if switch == "on":
                assert stage.refuses(address)
                assert not stage.ping(address, seconds=SILENCE)
            else:
                assert stage.fetch(address) == DIRECT[version]
                assert stage.ping(address)
            assert stage.fetch(other) == THROUGH[version]
        state = stage.status()["kill_switch"]
        assert state["on"] == (switch == "on")
        assert bool(state["kept_in"]["blocked"]) == (switch == "on")
    assert {p.destination for p in beside_the_link(wire)} == (set() if switch == "on" else {SERVER4, SERVER6})


# --- from outside -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inbound", ["keep", "block"])
def test_connections_from_outside(stage: Stage, inbound: str) -> None:
    """The home's router lets the port through, as for somebody who works on this machine from afar."""
    far, router = stage.hosts.server, stage.hosts.router
    router.nft(
        "table ip opened { chain pre { type nat hook prerouting priority -100;"
        f" iifname to-server tcp dport {SSH} dnat to {CLIENT4}; }}; }}"
    )
    ways = (ROUTER_SERVER4, CLIENT6)
    patience = LONG if inbound == "keep" else SILENCE
    with ExitStack() as stack:
        stack.callback(router.nft, "delete table ip opened")
        stack.enter_context(served(stage.client, SSH))
        old = []
        for address in ways:
            sock = stack.enter_context(stage.socket(address, host=far))
            sock.connect((address, SSH))
            assert talk(sock)
            sock.settimeout(patience)
            old.append(sock)
        with stage.tunnel("--inbound", inbound):
            kept = inbound == "keep"
            assert [talk(sock) for sock in old] == [kept, kept]
            assert [talks(stage, address, far, port=SSH, seconds=patience) for address in ways] == [
                kept,
                kept,
            ]
            assert stage.ping(CLIENT6, far, patience) == kept
            for address, seen in ((SERVER4, EXIT4), (SERVER6, EXIT6)):
                assert stage.fetch(address) == seen, "what begins here is tunnelled all the same"


def test_a_port_of_the_forwarder_that_every_user_may_have(stage: Stage) -> None:
    """As in a container: engines lower the first port that users may bind to 0."""
    first = "net.ipv4.ip_unprivileged_port_start"
    before = stage.client.sysctl(first)
    said = f"every user may listen on port 1022 here ({first} is 0)"
    doctor = ("doctor", "--no-speed", "--config", str(stage.links.directory / "client.toml"))
    try:
        stage.client.sysctl(first, "0")
        with stage.tunnel() as client:
            assert client.log.count(said) == 1
            assert said in stage.links.call(stage.client, *doctor).stdout
    finally:
        stage.client.sysctl(first, before)


def test_after_a_kill_what_is_kept_waits_for_the_next_start(stage: Stage) -> None:
    """The kernel looks up the route before the filter marks the packet, and the tunnel's has no device any more."""
    far = stage.hosts.server
    with ExitStack() as stack:
        stack.enter_context(served(stage.client, SSH))
        role = stage.links.client(stage.client, "--inbound", "keep")
        shell = stack.enter_context(stage.socket(CLIENT6, host=far))
        shell.connect((CLIENT6, SSH))
        assert talk(shell)
        role.kill()
        shell.settimeout(SILENCE)
        with stage.wire() as wire:
            assert not talk(shell)
            assert not talks(stage, CLIENT6, far, port=SSH, seconds=SILENCE), "no new one comes in"
        assert CLIENT6 not in {packet.source for packet in beside_the_link(wire)}
        shell.settimeout(LONG)
        again = stage.links.client(stage.client, "--inbound", "keep")
        try:
            shell.sendall(b"world")
            assert comes_back(shell, b"helloworld"), "what was said in the meantime too"
        finally:
            assert again.stop() == 0


# --- for a time ---------------------------------------------------------------------------------------------------


def test_a_pause_opens_and_closes_by_itself(stage: Stage) -> None:
    """For a captive portal: the network's own resolver answers, new connections are direct, old ones stay inside."""
    stage.resolver.dns.answers[("portal.example.com.", "A")] = ["192.168.77.1"]
    with stage.tunnel(), ExitStack() as stack:
        inside = stack.enter_context(stage.socket(SERVER4))
        inside.connect((SERVER4, ECHO_PORT))
        assert talk(inside)
        assert "60 s" in stage.command("pause", "60")
        assert stage.status()["kill_switch"]["paused"] > 0
        for version, address in ((4, SERVER4), (6, SERVER6)):
            assert stage.fetch(address) == DIRECT[version]
        for asked in (f"@{ROUTER_LAN4}", "@198.18.255.53"):
            answer = stage.client.run(
                ["dig", "+short", "+tries=1", f"+time={LONG:g}", asked, "portal.example.com"]
            )
            assert answer == "192.168.77.1\n", asked
        outside = stack.enter_context(stage.socket(SERVER4))
        outside.connect((SERVER4, ECHO_PORT))
        assert talk(outside)
        with stage.wire() as wire:
            assert talk(inside), "a tunnelled connection goes on"
        assert not beside_the_link(wire)
        assert "1 s" in stage.command("pause", "1")
        until(lambda: stage.fetches(SERVER4) == EXIT4, "the pause has ended")
        with stage.wire() as wire:
            assert stage.fetch(SERVER6) == EXIT6
            assert not talk(outside), "what was begun in the pause is cut"
            assert stage.client.run(["dig", "+short", f"@{ROUTER_LAN4}", "portal.example.com"]) == ""
        assert not beside_the_link(wire)
        assert stage.status()["kill_switch"]["paused"] == 0


def test_a_flush_ends_no_pause_and_begins_none_again(stage: Stage) -> None:
    """What is left of it is put back with the filter; after its end, its mark is refused by the filter of a repair."""
    flush = ["nft", "flush", "ruleset"]
    with stage.tunnel() as client, ExitStack() as stack:
        stage.pause(20)
        outside = stack.enter_context(stage.socket(SERVER4))
        outside.connect((SERVER4, ECHO_PORT))
        assert talk(outside)
        stage.client.run(flush)
        client.says(r"the pause goes on for \d+ s")
        assert 0 < stage.status()["kill_switch"]["paused"] < 20
        assert talk(outside)
        assert stage.fetch(SERVER4) == DIRECT[4]
        until(lambda: stage.fetches(SERVER4) == EXIT4, "the pause has ended when it should", 20 + LONG)
        stage.client.run(flush)
        until(lambda: stage.status()["kill_switch"]["standing"], "the filter stands again")
        with stage.wire() as wire:
            assert stage.fetch(SERVER6) == EXIT6
            assert not talk(outside), "what was begun in the pause is cut"
        assert not beside_the_link(wire)
        assert stage.status()["kill_switch"]["paused"] == 0


def test_what_is_not_confirmed_is_rolled_back(stage: Stage) -> None:
    before = stage.client.snapshot()
    role = stage.links.client(stage.client, "--confirm", "8")
    assert stage.fetch(SERVER4) == EXIT4
    role.says("not confirmed")
    assert role.wait() == 1
    stage.unchanged_since(before)
    assert stage.fetch(SERVER4) == ROUTER_SERVER4


def test_what_is_confirmed_stays(stage: Stage) -> None:
    # Long enough for the command to start on a busy machine.
    with stage.tunnel("--confirm", "10") as client:
        assert stage.command("confirm") == "confirmed\n"
        again = stage.links.call(
            stage.client, "confirm", "--config", str(stage.links.directory / "client.toml")
        )
        assert (again.returncode, again.stdout) == (1, "")
        assert "there is nothing to confirm: it is confirmed already" in again.stderr
        until(lambda: stage.uptime() > 11, "more than the time to confirm has passed")
        assert stage.fetch(SERVER4) == EXIT4
        assert client.process.poll() is None
