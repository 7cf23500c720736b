"""What real kernels send with, on a short path and on a long one.

client 192.0.2.2 ==== veth, or bench/delayline.py with 5 ms ==== 192.0.2.1 exit
"""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cryprq_proxy.carriers.congestion import choose
from tests.support.kernel_files import sysctls
from tests.support.lab.delay_line import DelayLine
from tests.support.lab.net import LONG, Lab, Namespace

ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
DELAY = 0.005
HERE, THERE = "192.0.2.2", "192.0.2.1"


def connected(client: Namespace, exit: Namespace) -> tuple[socket.socket, socket.socket]:
    with exit.entered():
        listener = socket.create_server((THERE, 4433))
    with listener, client.entered():
        dialled = socket.create_connection((THERE, 4433), LONG)
        accepted, _ = listener.accept()
    return dialled, accepted


@pytest.mark.parametrize("path", ["short", "long", "long, of a host that has locked it"])
def test_both_ends_of_a_long_path_send_with_bbr(lab: Lab, path: str) -> None:
    if path == "long" and "bbr" not in ALLOWED.read_text().split():
        pytest.skip("this host does not allow BBR: modprobe tcp_bbr, and configs/sysctl.d")
    client, exit = (lab.namespace(label) for label in ("client", "exit"))
    for host in (client, exit):
        host.sysctl("net.ipv4.tcp_congestion_control", "reno")
    if path.startswith("long"):
        DelayLine(lab, client, "eth0", exit, "eth0", "--delay", str(DELAY))
    else:
        lab.veth(client, "eth0", exit, "eth0")
    for host, address in ((client, HERE), (exit, THERE)):
        lab.address(host, "eth0", f"{address}/24")
        if path.endswith("locked it"):
            host.ip("route replace 192.0.2.0/24 dev eth0 congctl lock reno")
    dialled, accepted = connected(client, exit)
    with dialled, accepted:
        wanted = "bbr" if path == "long" else "reno"
        assert (choose(dialled).control, choose(accepted).control) == (wanted, wanted)
        # It goes on as it is after the change.
        accepted.sendall(b"answer")
        assert dialled.recv(6) == b"answer"


def test_a_host_takes_the_buffers_that_are_shipped(lab: Lab) -> None:
    host = lab.namespace("host")
    for key, value in sysctls().items():
        if key.startswith("net.ipv4.tcp_") and key.endswith(
            "mem"
        ):  # the others are those of the whole machine
            assert host.sysctl(key, " ".join(value)).split() == value
