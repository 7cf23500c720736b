"""Which setting of the resolver this system has; against a real bus in test_resolved.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tun.linux.resolver import choose as choosing
from tun.linux.resolver import resolved_bus
from tun.linux.resolver.choose import choose, points_to_resolved
from tun.linux.resolver.resolvconf import ResolvConf
from tun.linux.resolver.resolved import Resolved
from tun.resolver.left_alone import LeftAlone


def record(entry: object) -> None:
    raise AssertionError("nothing is to be changed")


@pytest.mark.parametrize(
    ("content", "points"),
    [
        ("nameserver 127.0.0.53\n", True),
        ("nameserver 127.0.0.53\nnameserver 127.0.0.54\n", True),
        ("nameserver 127.0.0.53\nnameserver 192.0.2.1\n", False),
        ("nameserver 192.0.2.1\n", False),
        ("", False),
    ],
)
def test_the_servers_say_whether_resolved_is_asked(tmp_path: Path, content: str, points: bool) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(content)
    assert points_to_resolved(path) is points


def test_a_link_into_its_directory_says_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "RESOLVED_FILES", (tmp_path / "resolve",))
    (tmp_path / "resolve").mkdir()
    (tmp_path / "resolve" / "resolv.conf").write_text("nameserver 192.0.2.1\n")
    path = tmp_path / "resolv.conf"
    path.symlink_to("resolve/resolv.conf")
    assert points_to_resolved(path)
    (tmp_path / "directory").mkdir()
    assert not points_to_resolved(tmp_path / "directory")


@pytest.mark.parametrize("runs", [True, False])
async def test_resolved_is_set_where_it_runs_and_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    async def asked(bus_address: str | None) -> bool:
        return runs

    monkeypatch.setattr(resolved_bus, "runs", asked)
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.53\n")
    found = await choose(record, path=path, state=tmp_path)
    assert isinstance(found, Resolved if runs else ResolvConf)
    assert isinstance(await choose(record, leave=True, path=path, state=tmp_path), LeftAlone)


@pytest.mark.parametrize(
    ("tls_only", "servers", "said"),
    [
        (True, "nameserver 192.0.2.1\n", "asks by TLS only"),
        (False, "nameserver 192.0.2.1\n", ""),
        (False, "nameserver fe80::1%eth0\n", "knows no server whose questions reach the forwarder"),
        (False, "", "for example DNS=198.18.255.53"),
    ],
)
async def test_why_resolved_left_alone_does_not_reach_the_forwarder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tls_only: bool, servers: str, said: str
) -> None:
    async def asks_by_tls_only(bus_address: str | None) -> bool:
        return tls_only

    monkeypatch.setattr(resolved_bus, "asks_by_tls_only", asks_by_tls_only)
    uplink = tmp_path / "uplink"
    uplink.write_text(servers)
    found = await Resolved(record, uplink=uplink).out_of_reach(("198.18.255.53",))
    assert (said in found) if said else not found
