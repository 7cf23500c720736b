"""Which connections came in from outside, by what `netstat` of macOS says."""

from __future__ import annotations

from ipaddress import ip_address

from tun.firewall.inbound import InboundConnection
from tun.macos.open_connections import EPHEMERAL, connections, observe
from tun.macos.programs import Command, ProgramAnswer

LISTED = """\
Active Internet connections (including servers)
Proto Recv-Q Send-Q  Local Address          Foreign Address        (state)
tcp4       0      0  192.168.1.23.22        203.0.113.9.51234      ESTABLISHED
tcp4       0      0  192.168.1.23.52345     17.57.144.84.5223      ESTABLISHED
tcp6       0      0  2001:db8:1:2::23.22    2001:db8:9::1.50000    ESTABLISHED
tcp6       0      0  fe80::1c2f%en0.445     fe80::9%en0.50001      ESTABLISHED
tcp4       0      0  127.0.0.1.22           127.0.0.1.50100        ESTABLISHED
tcp4       0      0  192.168.1.23.22        203.0.113.9.51235      TIME_WAIT
tcp46      0      0  *.22                   *.*                    LISTEN
tcp4       0      0  *.*                    *.*                    CLOSED
tcp4       0      0  nonsense               *.*                    LISTEN
"""
CAME_IN = frozenset(
    InboundConnection(ip_address(local), port, ip_address(remote), remote_port)
    for local, port, remote, remote_port in (
        ("192.168.1.23", 22, "203.0.113.9", 51234),
        ("2001:db8:1:2::23", 22, "2001:db8:9::1", 50000),
        ("fe80::1c2f", 445, "fe80::9", 50001),
    )
)


def test_those_of_listening_ports_and_of_low_ones() -> None:
    assert connections(LISTED.splitlines()) == CAME_IN


def test_ports_of_clients_are_asked_for() -> None:
    answers = {"first": "40000\n", "last": "50000\n"}

    def run(command: Command) -> ProgramAnswer:
        assert not command.changes
        if command.argv[0] == "sysctl":
            said = answers.get(command.argv[-1].rpartition(".")[2])
            return ProgramAnswer(said or "", "" if said else "unknown oid", 0 if said else 1)
        return ProgramAnswer(LISTED)

    found = observe(run)
    assert (found.connections, found.ephemeral, found.keep) == (CAME_IN, (40000, 50000), True)
    answers.clear()
    assert observe(run).ephemeral == EPHEMERAL
