"""System-wide mode beside the devices and networks around this machine.

Discovery on the LAN is sent as most programs send it: no interface is named. A capture on the outer interface tells
what reaches the LAN, one on the TUN device what enters the tunnel.
"""

from __future__ import annotations

import os
import pty
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from tests.support.lab.capture import Capture
from tests.support.lab.hosts import (
    CLIENT4,
    CLIENT6,
    EXIT4,
    SERVER4,
    SERVER6,
)
from tests.support.lab.net import LONG, SILENCE
from tests.support.lab.stage import TUN, Stage, beside_the_link

DISCOVERY = (
    ("239.255.255.250", 1900),  # SSDP
    ("224.0.0.251", 5353),  # mDNS
    ("255.255.255.255", 9999),
    ("192.168.77.255", 9999),
    ("ff02::fb", 5353),
    ("ff02::c", 1900),
    ("ff12::1234", 9999),  # the same scope, with the flag of an address that nobody has assigned
    ("ff05::c", 1900),
)
SSH = 2222
OTHER_CABLE = "172.30.9"


def discover(stage: Stage, address: str, port: int) -> bool:
    """Send one datagram without naming an interface; whether the kernel took it."""
    with stage.socket(address, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        try:
            sock.sendto(b"who is there?", (address, port))
        except OSError:
            return False
    return True


def destinations(capture: Capture) -> set[tuple[str, int]]:
    return {(packet.destination, packet.destination_port) for packet in capture.sent()}


def test_discovery_goes_out_on_the_lan_and_not_into_the_tunnel(stage: Stage) -> None:
    with stage.tunnel("--lan", "allow"):
        # After the TUN device: the kernel takes the oldest route for groups.
        stage.client.ip("link set eth0 multicast off")
        stage.client.ip("link set eth0 multicast on")
        with stage.wire() as wire, Capture(stage.client, TUN) as inside:
            taken = [address for address, port in DISCOVERY if discover(stage, address, port)]
        assert stage.fetch(SERVER4) == EXIT4
    assert taken == [address for address, _ in DISCOVERY]
    assert destinations(wire) >= set(DISCOVERY)
    assert not destinations(inside) & set(DISCOVERY)


@pytest.mark.parametrize("switch", ["on", "off"])
def test_discovery_is_refused_where_the_lan_is_blocked(stage: Stage, switch: str) -> None:
    with (
        stage.tunnel("--lan", "block", "--kill-switch", switch),
        stage.wire() as wire,
        Capture(stage.client, TUN) as inside,
    ):
        taken = [address for address, port in DISCOVERY if discover(stage, address, port)]
    assert not taken
    assert not beside_the_link(wire)
    assert not destinations(inside) & set(DISCOVERY)


def test_a_second_network_of_a_container_is_no_guest(stage: Stage) -> None:
    """This host is a container on two networks: eth1 is a cable like eth0, and has no default route."""
    other = stage.lab.namespace("other")
    stage.lab.veth(stage.client, "eth1", other, "eth0")
    stage.lab.address(stage.client, "eth1", f"{OTHER_CABLE}.2/24")
    stage.lab.address(other, "eth0", f"{OTHER_CABLE}.1/24")
    try:
        assert stage.ping(f"{OTHER_CABLE}.1")
        with stage.tunnel("--lan", "block"), Capture(stage.client, "eth1") as wire:
            with stage.socket(SERVER4) as sock, suppress(OSError):
                sock.connect((f"{OTHER_CABLE}.1", 80))
            assert not stage.ping(f"{OTHER_CABLE}.1", seconds=SILENCE)
            assert stage.fetch(SERVER4) == EXIT4
        assert not beside_the_link(wire)
    finally:
        stage.client.ip("link del eth1")


# --- connections from outside -------------------------------------------------------------------------------------


class Shell:
    """A connection from afar to this machine, as that of somebody who works here."""

    def __init__(self, stage: Stage) -> None:
        with stage.client.entered():
            self._listener = socket.create_server(("::", SSH), family=socket.AF_INET6)
        self._far = stage.socket(CLIENT6, host=stage.hosts.server)
        self._far.connect((CLIENT6, SSH))
        self._near, _ = self._listener.accept()

    def lives(self) -> bool:
        try:
            self._near.sendall(b"$ ")
            return self._far.recv(10) == b"$ "
        except OSError:
            return False

    def close(self) -> None:
        for sock in (self._near, self._far, self._listener):
            sock.close()


@contextmanager
def at_terminal(stage: Stage, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A client in the foreground of a terminal of its own, and the other end of that terminal."""
    master, slave = pty.openpty()
    try:
        file = stage.client_file()
        command = ["setsid", "--ctty", *stage.links.command("--tun", *options, "--config", str(file))]
        with open(slave) as terminal:
            process = stage.client.popen(
                command, stdin=terminal, stderr=subprocess.PIPE, env=stage.links.environment
            )
        yield process, master
    finally:
        os.close(master)


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What the process writes to standard error, up to `text`."""
    assert process.stderr is not None
    said = ""
    while text not in said:
        letter = process.stderr.read(1)
        assert letter, f"it did not say {text!r}, but: {said}"
        said += letter
    return said


def test_nobody_is_cut_off_without_being_asked(stage: Stage) -> None:
    before = stage.client.snapshot()
    with closing(Shell(stage)) as shell, at_terminal(stage) as (process, terminal):
        assert SERVER6 in read_until(process, "Go on nevertheless?")
        assert stage.client.snapshot() == before
        os.write(terminal, b"n\n")
        assert "nothing was changed" in read_until(process, "nothing was changed")
        assert process.wait(LONG) == 1
        assert shell.lives()
    stage.unchanged_since(before)


@pytest.mark.parametrize("answer", ["yes", "--yes"])
def test_who_has_answered_is_not_asked(stage: Stage, answer: str) -> None:
    options = ["--yes"] if answer == "--yes" else []
    before = stage.client.snapshot()
    with closing(Shell(stage)), at_terminal(stage, *options) as (process, terminal):
        if answer == "yes":
            read_until(process, "Go on nevertheless?")
            os.write(terminal, b"y\n")
        assert "nevertheless" not in read_until(process, "ready: ")
        process.terminate()
        process.communicate(timeout=20)
        assert not process.returncode
    stage.unchanged_since(before)


def test_a_service_manager_is_told_and_not_asked(stage: Stage) -> None:
    with closing(Shell(stage)), stage.tunnel() as client:
        client.says(f"ends connections to this machine .*{SERVER6}.*--inbound keep")
    # The LAN is reached past the tunnel, so a connection from there lives on.
    with stage.client.entered():
        listener = socket.create_server((CLIENT4, SSH))
    with listener, stage.socket(CLIENT4, host=stage.hosts.router) as near:
        near.connect((CLIENT4, SSH))
        with stage.tunnel() as client:
            assert "--inbound keep" not in client.log
