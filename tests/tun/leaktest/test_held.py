"""Kept flows: one socket each over the whole time, and what is judged bears another text than what was sent before."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest

from tun.device.packets import TCP, UDP
from tun.leaktest.canaries import CanaryTargets
from tun.leaktest.held import hold


def test_each_flow_keeps_its_socket_and_gets_another_text_for_the_judgement() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(20)
        waits: list[float] = []
        flows = hold(CanaryTargets(dns=(), hosts=("127.0.0.1",), devices=("eth0",)), 1.0, waits.append)
        try:
            assert {(flow.canary.name, flow.canary.protocol) for flow in flows} == {
                ("TCP, kept", TCP),
                ("QUIC, kept", UDP),
                ("STUN, kept", UDP),
            }
            assert len(waits) == 2
            assert not {flow.canary.device for flow in flows} - {""}
            ports = {flow.sock.getsockname()[1] for flow in flows}
            assert len(ports) == 3
            quic = next(flow for flow in flows if flow.canary.name == "QUIC, kept")
            quic.sock.sendto(quic.canary.payload, server.getsockname())
            data, sender = server.recvfrom(2048)
            assert quic.canary.token in data
            assert sender[1] in ports
        finally:
            for flow in flows:
                flow.sock.close()


def test_a_kernel_without_ipv6_keeps_the_flows_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnlyIpv4(socket.socket):
        def __init__(self, family: int, *more: Any) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, *more)

    monkeypatch.setattr(socket, "socket", OnlyIpv4)
    flows = hold(CanaryTargets(dns=(), hosts=("::1", "127.0.0.1")), 0.0, lambda seconds: None)
    try:
        assert [(flow.canary.name, flow.canary.address) for flow in flows] == [
            ("TCP, kept", "127.0.0.1"),
            ("QUIC, kept", "127.0.0.1"),
            ("STUN, kept", "127.0.0.1"),
        ]
    finally:
        for flow in flows:
            flow.sock.close()
