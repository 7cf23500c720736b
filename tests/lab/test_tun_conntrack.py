"""Sockets that are kept while their reason to go past the tunnel ends: pause, rule, `--inbound keep`, an earlier run.

conntrack remembers marks and NAT of a flow for as long as it lives, so each test keeps one flow alive across the change
and looks on the outer interface. With "absent" ctnetlink the program cannot delete such entries (what it asks of
conntrack is refused): then a kept socket may be cut off, but nothing of it leaves either.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final

import dns.exception
import dns.message
import pytest

from tests.support.config_files import Settings
from tests.support.lab.capture import Packet
from tests.support.lab.faults import without_ctnetlink
from tests.support.lab.hosts import (
    CLIENT6,
    EXIT4,
    EXIT6,
    ROUTER_LAN4,
    ROUTER_SERVER4,
    SERVER4,
    SERVER6,
)
from tests.support.lab.links import Role
from tests.support.lab.net import LONG, SILENCE, Namespace, until
from tests.support.lab.server import ECHO_PORT
from tests.support.lab.stage import Stage, beside_the_link
from tun.settings import RESOLVER4

DIRECT: Final = {SERVER4: ROUTER_SERVER4, SERVER6: CLIENT6}
THROUGH: Final = {SERVER4: EXIT4, SERVER6: EXIT6}
LAN, FAR = "192.168.77.1", "192.0.2.7"
"""What the network's resolver answers, and the one behind the exit."""
NAME: Final = "both.example.com"
SSH: Final = 2222
QUESTIONS: Final = 10
MOMENT: Final = 0.1
"""Seconds in which one of many packets that are to be lost might be answered; the capture judges them all."""
PAUSE: Final = 60
"""Seconds of a pause that is cut short when all flows are there."""
AGAIN: Final = 1.0
"""Seconds after which a question that may be lost is asked once more."""
CONNTRACK_OF_ANOTHER: Final = (
    "table inet engine { chain out { type filter hook output priority 0; ct state invalid drop; }; }"
)
NAT_OF_ANOTHER: Final = "table ip engine { chain post { type nat hook postrouting priority 100; }; }"


@pytest.fixture(scope="module")
def shared(namespaces: None) -> Iterator[Stage]:
    with Stage() as stage:
        stage.server.dns.answers[f"{NAME}.", "A"] = [FAR]
        stage.resolver.dns.answers[f"{NAME}.", "A"] = [LAN]
        yield stage


@pytest.fixture
def stage(request: pytest.FixtureRequest, shared: Stage, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """The client's ctnetlink is "usual" or "absent". A test that fails leaves nothing to the next."""
    if getattr(request, "param", "usual") == "absent":
        without_ctnetlink(shared.links, monkeypatch)
    with shared.left_clean():
        yield shared


def can_delete(stage: Stage) -> bool:
    return "no-ctnetlink" not in stage.links.environment["PYTHONPATH"]


# --- one flow each ------------------------------------------------------------------------------------------------


def asks(sock: socket.socket, server: str, seconds: float = LONG) -> str:
    """The address that a question over UDP is answered with; empty for none, or what the system refuses."""
    question = dns.message.make_query(NAME, "A")
    sock.settimeout(seconds)
    try:
        sock.sendto(question.to_wire(), (server, 53))
        while True:
            answer = dns.message.from_wire(sock.recv(4096))
            if answer.id == question.id:
                return str(answer.answer[0][0]) if answer.answer else ""
    except (OSError, dns.exception.DNSException):
        return ""


def asks_by_tcp(sock: socket.socket, seconds: float = LONG) -> str:
    """The same on a connection."""
    wire = dns.message.make_query(NAME, "A").to_wire()
    sock.settimeout(seconds)
    try:
        sock.sendall(len(wire).to_bytes(2) + wire)
        size = int.from_bytes(sock.recv(2, socket.MSG_WAITALL))
        answer = dns.message.from_wire(sock.recv(size, socket.MSG_WAITALL))
    except (OSError, dns.exception.DNSException):
        return ""
    return str(answer.answer[0][0]) if answer.answer else ""


def echoes(sock: socket.socket, address: str, seconds: float = LONG) -> bool:
    """Whether a datagram comes back to an unconnected socket."""
    sock.settimeout(seconds)
    try:
        sock.sendto(b"kept", (address, ECHO_PORT))
        return sock.recv(100) == b"kept"
    except OSError:
        return False


def talks(sock: socket.socket, seconds: float = LONG) -> bool:
    """Whether what is sent on a connection comes back."""
    sock.settimeout(seconds)
    try:
        sock.sendall(b"kept")
        return bool(sock.recv(100))
    except OSError:
        return False


def seen(stage: Stage, service: str) -> str:
    """Where the last request came from."""
    return next(visit.source for visit in reversed(stage.server.visits) if visit.service == service)


@contextmanager
def nothing_beside(stage: Stage) -> Iterator[None]:
    with stage.wire() as wire:
        yield
    assert not beside_the_link(wire)


# --- a pause ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "server"),
    [("usual", str(RESOLVER4)), ("usual", "8.8.8.8"), ("absent", "8.8.8.8")],
    indirect=["stage"],
)
def test_sockets_of_a_pause_leave_nothing_behind_it(stage: Stage, server: str) -> None:
    """They were sent to the network's resolver: by NAT, which outlives the pause."""
    with stage.tunnel(), ExitStack() as stack:
        datagrams = stack.enter_context(stage.socket(server, socket.SOCK_DGRAM))
        stage.pause(PAUSE)
        assert asks(datagrams, server) == LAN
        stream = stack.enter_context(stage.socket(server))
        stream.connect((server, 53))
        assert asks_by_tcp(stream) == LAN
        web = stack.enter_context(stage.socket(SERVER4, socket.SOCK_DGRAM))
        assert echoes(web, SERVER4)
        assert seen(stage, "echo-udp") == DIRECT[SERVER4]
        stage.pause(1)
        until(lambda: stage.fetches(SERVER4) == EXIT4, "the pause has ended")
        with nothing_beside(stage):
            for _ in range(QUESTIONS):
                assert asks(datagrams, server, MOMENT) != LAN
                echoes(web, SERVER4, MOMENT)
            assert asks_by_tcp(stream, SILENCE) == ""
            if can_delete(stage):
                until(lambda: asks(datagrams, server, AGAIN) == FAR, "the socket works through the tunnel")
                assert echoes(web, SERVER4)
                assert seen(stage, "echo-udp") == EXIT4


# --- another run, with other settings -----------------------------------------------------------------------------


def again(stage: Stage, role: Role, how: str) -> None:
    """The end of a run, before the next."""
    if how == "kill":
        assert role.kill() == -signal.SIGKILL
    else:
        assert not role.stop(), role.log


def direct(*addresses: str) -> Settings:
    return {"rule": [{"to": "direct", "cidrs": list(addresses)}]}


def starts(stage: Stage, *options: str, settings: Settings | None = None) -> Role:
    return stage.links.client(stage.client, *options, settings=settings)


@pytest.mark.parametrize(
    ("stage", "how", "options"),
    [("usual", "stop", ("--lan", "block")), ("usual", "kill", ()), ("absent", "kill", ())],
    indirect=["stage"],
)
def test_flows_of_a_rule_that_the_next_run_has_not(stage: Stage, how: str, options: tuple[str, ...]) -> None:
    role = starts(stage, settings=direct(SERVER4, SERVER6))
    with ExitStack() as stack:
        kept, streams = {}, {}
        for address in (SERVER4, SERVER6):
            kept[address] = stack.enter_context(stage.socket(address, socket.SOCK_DGRAM))
            assert echoes(kept[address], address)
            assert seen(stage, "echo-udp") == DIRECT[address]
            streams[address] = stack.enter_context(stage.socket(address))
            streams[address].connect((address, ECHO_PORT))
            assert talks(streams[address])
        again(stage, role, how)
        role = starts(stage, *options)
        with nothing_beside(stage):
            for address, sock in kept.items():
                through = echoes(sock, address, LONG if can_delete(stage) else SILENCE)
                assert through or not can_delete(stage)
                assert not through or seen(stage, "echo-udp") == THROUGH[address]
                talks(streams[address], SILENCE)
        assert not role.stop(), role.log


@pytest.mark.parametrize(
    ("stage", "how"), [("usual", "reload"), ("usual", "kill"), ("absent", "reload")], indirect=["stage"]
)
def test_flows_of_a_rule_that_stays(stage: Stage, how: str) -> None:
    """Also where other rules beside it change."""
    role = starts(stage, settings=direct(SERVER4))
    with stage.socket(SERVER4) as stream:
        stream.connect((SERVER4, ECHO_PORT))
        assert talks(stream)
        if how == "kill":
            again(stage, role, how)
            role = starts(stage, settings=direct(SERVER4))
        else:
            reload(stage, role, direct(SERVER4, "192.0.2.1"))
        with stage.wire() as wire:
            assert talks(stream)
        assert {packet.destination for packet in beside_the_link(wire)} == {SERVER4}
        reload(stage, role, {})
        with nothing_beside(stage):
            assert not talks(stream, SILENCE)
        assert not role.stop(), role.log


def reload(stage: Stage, role: Role, settings: Settings) -> None:
    written = role.written
    stage.client_file(settings)
    role.process.send_signal(signal.SIGHUP)
    role.says("reloaded: ", since=written)


# --- from outside -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "how", "later"),
    [
        ("usual", "stop", "keep"),
        ("usual", "stop", "block"),
        ("usual", "kill", "keep"),
        ("absent", "kill", "block"),
    ],
    indirect=["stage"],
)
def test_connections_from_outside_of_an_earlier_run(stage: Stage, how: str, later: str) -> None:
    role = starts(stage, "--inbound", "keep")
    with stage.client.entered():
        listener = socket.create_server(("::", SSH), family=socket.AF_INET6)
    with listener, stage.socket(CLIENT6, host=stage.hosts.server) as far, ExitStack() as stack:
        far.connect((CLIENT6, SSH))
        near = stack.enter_context(listener.accept()[0])

        def sends(seconds: float) -> bool:
            """The side here begins: nothing that comes in gives it a reason."""
            far.settimeout(seconds)
            with suppress(OSError):
                near.sendall(b"from here")
                return bool(far.recv(100))
            return False

        assert sends(LONG)
        again(stage, role, how)
        role = starts(stage, "--inbound", later)
        with stage.wire() as wire:
            assert sends(LONG if later == "keep" else SILENCE) == (later == "keep")
        assert bool(beside_the_link(wire)) == (later == "keep")
        assert not role.stop(), role.log


# --- DNS sockets that live long -----------------------------------------------------------------------------------


def to_the_tunnels_range(packets: list[Packet]) -> list[Packet]:
    return [packet for packet in packets if packet.destination.startswith(("198.18.", "fd63:"))]


@pytest.mark.parametrize(
    ("stage", "how"), [("usual", "stop"), ("usual", "kill"), ("absent", "stop")], indirect=["stage"]
)
def test_a_dns_socket_from_before_and_across_runs(stage: Stage, how: str) -> None:
    """On a machine with a NAT table, as a container engine has: then conntrack settles NAT at a flow's first packet."""
    stage.client.nft(NAT_OF_ANOTHER)
    with ExitStack() as stack:
        stack.callback(stage.client.nft, "delete table ip engine")
        sock = stack.enter_context(stage.socket(ROUTER_LAN4, socket.SOCK_DGRAM))
        assert asks(sock, ROUTER_LAN4) == LAN
        answered: Callable[[], bool] = lambda: asks(sock, ROUTER_LAN4) == FAR  # noqa: E731
        for _ in range(2):
            role = starts(stage)
            with nothing_beside(stage):
                if can_delete(stage):
                    assert answered()
                else:
                    role.says("connections from before cannot be looked at")
                    asks(sock, ROUTER_LAN4, SILENCE)
            again(stage, role, how)
            if how == "stop":
                with stage.wire() as wire:
                    after = asks(sock, ROUTER_LAN4, LONG if can_delete(stage) else SILENCE)
                assert after == LAN or not can_delete(stage)
                if can_delete(stage):
                    assert not to_the_tunnels_range(wire.packets)
        if how == "kill":
            done = stage.links.call(stage.client, "cleanup", "--state-dir", str(stage.links.state_dir))
            assert not done.returncode, done.stderr
            with stage.wire() as wire:
                after = asks(sock, ROUTER_LAN4, LONG if can_delete(stage) else SILENCE)
            assert not to_the_tunnels_range(wire.packets) or not can_delete(stage)
            assert after == LAN or not can_delete(stage)


# --- a time without a filter ---------------------------------------------------------------------------------------


@contextmanager
def guest_of(stage: Stage) -> Iterator[Namespace]:
    """A container behind a bridge, whose engine has no NAT of its own."""
    client, guest = stage.client, stage.lab.namespace("guest")
    client.ip("link add name br0 type bridge")
    client.ip("link set br0 up")
    stage.lab.address(client, "br0", "172.20.0.1/24")
    stage.lab.veth(client, "guest", guest, "eth0")
    client.ip("link set guest master br0")
    stage.lab.address(guest, "eth0", "172.20.0.2/24")
    guest.ip("route add default via 172.20.0.1")
    before = client.sysctl("net.ipv4.ip_forward")
    client.sysctl("net.ipv4.ip_forward", "1")
    try:
        yield guest
    finally:
        client.sysctl("net.ipv4.ip_forward", before)
        guest.close()
        client.ip("link del br0")


@pytest.mark.parametrize("who", ["host", "guest"])
def test_sockets_that_begin_without_a_filter_go_on_with_it(stage: Stage, who: str) -> None:
    """What they send first has no NAT, and conntrack would keep it so for as long as they send."""
    with ExitStack() as stack:
        host = stack.enter_context(guest_of(stage)) if who == "guest" else stage.client
        role = stack.enter_context(stage.tunnel())
        if who == "guest":
            until(lambda: stage.fetches(SERVER4, host) == EXIT4, "the container is tunnelled")
        stack.enter_context(nothing_beside(stage))
        servers = ["9.9.9.9", ROUTER_LAN4, *(["2620:fe::fe"] if who == "host" else [])]
        asking = {
            server: stack.enter_context(stage.socket(server, socket.SOCK_DGRAM, host)) for server in servers
        }
        echoing = stack.enter_context(stage.socket(SERVER4, socket.SOCK_DGRAM, host))
        since = role.written
        # Stopped, so that the filter is not back before they have begun.
        role.process.send_signal(signal.SIGSTOP)
        try:
            # Without any rule that needs it, conntrack would follow nothing.
            stage.client.nft(f"flush ruleset\n{CONNTRACK_OF_ANOTHER}")
            for server, sock in asking.items():
                sock.sendto(b"begun", (server, 53))
            echoing.sendto(b"begun", (SERVER4, ECHO_PORT))
        finally:
            role.process.send_signal(signal.SIGCONT)
        role.says("kill switch: another program changed it", since=since)
        # An entry that nobody answers ends by itself only some time after the last packet: these keep it alive.
        for server, sock in asking.items():
            until(lambda sock=sock, server=server: asks(sock, server, AGAIN) == FAR, f"{server} answers")  # type: ignore[misc]
        until(lambda: echoes(echoing, SERVER4, AGAIN), "an echo")
        stage.client.run(["nft", "delete", "table", "inet", "engine"])


def test_a_guest_gets_its_answer_although_connections_are_deleted_meanwhile(stage: Stage) -> None:
    """Its question waits at the forwarder, so nothing has answered it yet; without its NAT nothing could."""
    asked, told = threading.Event(), threading.Event()

    def late(question: dns.message.QueryMessage) -> dns.message.Message:
        asked.set()
        told.wait(LONG)
        return stage.server.dns.lookup(question)

    with ExitStack() as stack:
        guest = stack.enter_context(guest_of(stage))
        role = stack.enter_context(stage.tunnel())
        until(lambda: stage.fetches(SERVER4, guest) == EXIT4, "the container is tunnelled")
        stage.server.dns.answer = late
        stack.callback(setattr, stage.server.dns, "answer", stage.server.dns.lookup)
        stack.callback(told.set)
        sock = stack.enter_context(stage.socket(ROUTER_LAN4, socket.SOCK_DGRAM, guest))
        question = dns.message.make_query("late.example.com", "A")
        sock.sendto(question.to_wire(), (ROUTER_LAN4, 53))
        assert asked.wait(LONG)
        # With other rules, what has ended is deleted before the reload is said to be over.
        reload(stage, role, direct(SERVER6))
        told.set()
        # Also where the forwarder has given up meanwhile, it says so.
        assert dns.message.from_wire(sock.recv(4096)).id == question.id


def test_a_taken_port_is_named(stage: Stage) -> None:
    """The forwarder's port is the same in every run; nobody but root can have it."""
    with stage.client.entered():
        taken = socket.create_server(("0.0.0.0", 1022))
    with taken:
        role = stage.links.client(stage.client, ready="port 1022")
        assert role.wait() == 2
    stage.links.roles.remove(role)
    stage.links.call(stage.client, "cleanup", "--state-dir", str(stage.links.state_dir))
