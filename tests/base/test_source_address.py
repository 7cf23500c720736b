"""The source address towards the Internet, without a packet."""

from __future__ import annotations

import socket

import pytest

from cryprq_proxy.base import source_address as module
from cryprq_proxy.base.source_address import source_address


def test_loopback_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OUTSIDE", {socket.AF_INET: "127.0.0.9", socket.AF_INET6: "::1"})
    assert source_address(socket.AF_INET) is None
    assert source_address(socket.AF_INET6) is None


def test_without_a_route_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_OUTSIDE", {socket.AF_INET: "240.0.0.1.example"})
    assert source_address(socket.AF_INET) is None
