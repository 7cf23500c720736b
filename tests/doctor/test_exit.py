"""The checks of an exit that need no other process."""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.address import Destination
from cryprq_proxy.carriers.lane.udp_socket import SOCKET_BUFFER
from cryprq_proxy.config.exit import exit_from
from cryprq_proxy.doctor import exit_machine
from cryprq_proxy.doctor.checks import CheckState, CheckVerdict, Context
from cryprq_proxy.doctor.exit import invites, peers
from cryprq_proxy.doctor.exit_machine import buffers, clocks, descriptors, firewall, names, routes, target
from cryprq_proxy.errors import StreamReason, StreamRefused
from cryprq_proxy.outbound.resolving.host_configuration import HostConfiguration
from cryprq_proxy.outbound.resolving.resolver import SystemResolver
from cryprq_proxy.pairing.invite_store import InviteStore, beside
from cryprq_proxy.status import ExitStatus, NamesStatus, OutwardReport, PeerSessionStatus
from tun import settings as tun_settings


def context(tmp_path: Path, text: str = "", **more: Any) -> Context:
    file = tmp_path / "exit.toml"
    return Context(file=file, exit=exit_from(text, file, {}), root=tmp_path, **more)


async def test_an_invite_is_told_before_there_is_a_list_of_peers(tmp_path: Path) -> None:
    asked = context(tmp_path, now=lambda: 1000.0)
    assert (await invites(asked)).text == "no invite is open"
    InviteStore(beside(tmp_path / "authorized")).create("laptop", 3600, 1000.0)
    found = await invites(asked)
    assert (found.state, found.text) == (CheckState.OK, "1 open invite: laptop")


async def test_an_empty_list_is_no_failure_while_an_invite_is_open(tmp_path: Path) -> None:
    asked = context(tmp_path, now=lambda: 1000.0)
    assert (await peers(asked)).state is CheckState.FAIL
    InviteStore(beside(tmp_path / "authorized")).create("laptop", 3600, 1000.0)
    found = await peers(asked)
    assert (found.state, found.text) == (CheckState.OK, "no client is on the list yet: it waits for laptop")
    assert (await peers(context(tmp_path, now=lambda: 4601.0))).state is CheckState.FAIL, "the invite is over"


# --- what lies beyond it ---


@pytest.mark.parametrize(
    ("reason", "state", "text"),
    [
        (None, "ok", "this machine finds names, one in "),
        (StreamReason.NAME_TIMED_OUT, "fail", "no DNS server of this machine answers, so no page loads by its name"),
        (StreamReason.NAME_FAILED, "fail", "the DNS servers of this machine answer with a failure"),
    ],
)  # fmt: skip
async def test_names(
    reason: StreamReason | None, state: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve_anew(*_: object) -> Sequence[str]:
        if reason is not None:
            raise StreamRefused(reason)
        return ("198.41.0.4",)

    monkeypatch.setattr(SystemResolver, "resolve_anew", resolve_anew)
    configuration = HostConfiguration(servers=("192.0.2.1", "192.0.2.2"))
    monkeypatch.setattr(exit_machine, "read_configuration", lambda: configuration)
    found = await names(Context())
    assert str(found.state) == state and found.text.startswith(text)
    assert found.text.endswith(" (by DNS, from 192.0.2.1, 192.0.2.2)")
    running = ExitStatus(names=NamesStatus(by="DNS, from 127.0.0.53"))
    assert (await names(Context(running=running))).text.endswith("(by DNS, from 127.0.0.53)")


async def test_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    def outward(family: int, _: object) -> OutwardReport:
        return OutwardReport(addressed=True, route=family == exit_machine.AF_INET6)  # type: ignore[attr-defined]

    monkeypatch.setattr(exit_machine, "outward", outward)
    found = await routes(Context())
    assert found.state is CheckState.FAIL
    assert found.text.startswith("this machine has an IPv4 address and no default route for IPv4")
    assert found.remedy.startswith("ip route add default via GATEWAY")


async def test_a_target_by_the_egress_policy(tmp_path: Path) -> None:
    asked = context(tmp_path)
    assert (await target(asked)).state is CheckState.SKIP
    asked.target = Destination("127.0.0.1", 9)
    found = await target(asked)
    assert (found.state, found.text) == (
        CheckState.FAIL,
        "127.0.0.1:9: the egress policy of the exit forbids it",
    )


# --- clocks ---


@pytest.mark.parametrize(
    ("offs", "kept", "state", "text"),
    [
        ([], None, "skip", "no client has told its time yet"),
        ([2.0], None, "ok", "this clock and that of 1 client agree"),
        ([2.0, -3.0, 259_200.0], False, "ok", "this clock and those of 3 clients agree"),
        ([-259_200.0], None, "fail", "this clock is 3 d 0 h ahead of that of 1 client"),
        ([259_201.0, 259_200.0], False, "fail", "this clock is 3 d 0 h behind those of 2 clients"),
        ([259_200.0], True, "warn", "this clock is 3 d 0 h behind that of 1 client, and is kept in step"),
        ([45.0], False, "warn", "this clock is 45 s behind that of 1 client"),
    ],
)
async def test_clocks(
    offs: list[float], kept: bool | None, state: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exit_machine, "clock_is_kept", lambda: kept)
    sessions = [PeerSessionStatus(peer_id=f"peer{number}", clock_off=off) for number, off in enumerate(offs)]
    silent = PeerSessionStatus(peer_id="silent")
    found = await clocks(Context(running=ExitStatus(sessions=(silent, *sessions))))
    assert str(found.state) == state and found.text.startswith(text)


async def test_a_peer_with_several_sessions_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exit_machine, "clock_is_kept", lambda: False)
    wrong = [PeerSessionStatus(peer_id="a", clock_off=9e5) for _ in range(5)]
    right = [PeerSessionStatus(peer_id=name, clock_off=0.0) for name in ("b", "c")]
    found = await clocks(Context(running=ExitStatus(sessions=(*wrong, *right))))
    assert found.state is CheckState.OK
    assert (await clocks(Context())).state is CheckState.SKIP


# --- what the system gives the process ---

LIMITS = "Limit                     Soft Limit           Hard Limit           Units\n"


@pytest.mark.parametrize(
    ("soft", "state", "text"),
    [
        ("1024", "warn", "the running exit may open 1024 files and connections only"),
        ("262144", "ok", "the running exit may open 262144 files and connections"),
        ("unlimited", "ok", "the running exit may open as many files"),
    ],
)
async def test_descriptors_of_a_running_exit(tmp_path: Path, soft: str, state: str, text: str) -> None:
    (tmp_path / "proc/77").mkdir(parents=True)
    (tmp_path / "proc/77/limits").write_text(
        f"{LIMITS}Max open files            {soft:20} 524288     files\n"
    )
    found = await descriptors(context(tmp_path, running=ExitStatus(pid=77)))
    assert str(found.state) == state and found.text.startswith(text)


async def test_descriptors_of_one_that_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    found = await descriptors(context(tmp_path))
    assert found.state is CheckState.WARN
    assert found.text.startswith("an exit started from here may open 1024 ")
    assert (await descriptors(context(tmp_path, running=ExitStatus(pid=77)))).text == found.text


def core(tmp_path: Path, received: int, sent: int) -> None:
    directory = tmp_path / "proc/sys/net/core"
    directory.mkdir(parents=True)
    (directory / "rmem_max").write_text(f"{received}\n")
    (directory / "wmem_max").write_text(f"{sent}\n")


async def test_buffers(tmp_path: Path) -> None:
    asked = context(tmp_path, euid=1000)
    assert (await buffers(asked)).state is CheckState.SKIP
    core(tmp_path, 212_992, SOCKET_BUFFER)
    found = await buffers(asked)
    assert found.state is CheckState.WARN and found.text.endswith(": net.core.rmem_max is 212992")
    assert f"sysctl -w net.core.rmem_max={SOCKET_BUFFER};" in found.remedy
    asked.euid = 0
    assert "those of root" in (await buffers(asked)).text
    off = context(tmp_path, "[lane]\nenabled = false\n", euid=1000)
    assert (await buffers(off)).state is CheckState.SKIP


async def test_large_buffers(tmp_path: Path) -> None:
    core(tmp_path, SOCKET_BUFFER, SOCKET_BUFFER)
    assert (await buffers(context(tmp_path, euid=1000))).state is CheckState.OK


# --- the packet filter ---


def dropping(hook: str, **more: str) -> dict[str, Any]:
    base = {"family": "inet", "table": "filter", "name": hook, "type": "filter", "hook": hook}
    return {"chain": {**base, "policy": "drop", **more}}


def rule(table: str, port: int, transport: str) -> dict[str, Any]:
    left = {"payload": {"protocol": transport, "field": "dport"}}
    expressions = [{"match": {"op": "==", "left": left, "right": port}}, {"accept": None}]
    return {"rule": {"family": "inet", "table": table, "chain": "input", "expr": expressions}}


async def filtered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *ruleset: dict[str, Any], text: str = ""
) -> CheckVerdict:
    told = json.dumps({"nftables": [{"metainfo": {}}, *ruleset]})
    monkeypatch.setattr(exit_machine, "output_of", lambda *_, **__: told)
    return await firewall(context(tmp_path, text, euid=0))


async def test_a_filter_that_lets_clients_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (await filtered(monkeypatch, tmp_path)).text == "no rule of the packet filter keeps clients out"
    opened = [dropping("input"), rule("filter", 4433, "tcp"), rule("filter", 4433, "udp")]
    assert (await filtered(monkeypatch, tmp_path, *opened)).state is CheckState.OK
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/ip_tables_names").write_text("filter\n")
    assert (await filtered(monkeypatch, tmp_path)).text.endswith(
        "; rules of the old iptables are not looked at"
    )


@pytest.mark.parametrize(
    ("where", "remedy"),
    [
        ({}, "nft insert rule inet filter input tcp dport 4433 accept; for good, in /etc/nftables.conf"),
        ({"table": "firewalld"}, "firewall-cmd --permanent --add-port=4433/tcp && firewall-cmd --reload"),
        ({"family": "ip", "name": "INPUT"}, "ufw allow 4433/tcp; without ufw: iptables -I INPUT -p tcp"),
    ],
)
async def test_a_filter_that_keeps_clients_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: dict[str, str], remedy: str
) -> None:
    found = await filtered(monkeypatch, tmp_path, dropping("input", **where))
    assert found.state is CheckState.FAIL and found.remedy.startswith(remedy)
    assert found.text.startswith("the packet filter drops what comes in for TCP port 4433 (chain ")


async def test_a_filter_that_keeps_the_lane_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    opened = [dropping("input"), rule("filter", 4433, "tcp")]
    found = await filtered(monkeypatch, tmp_path, *opened)
    assert found.state is CheckState.WARN and "UDP port 4433" in found.text
    found = await filtered(monkeypatch, tmp_path, *opened, text="[lane]\nenabled = false\n")
    assert found.state is CheckState.OK


async def test_a_filter_that_forwards_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (await filtered(monkeypatch, tmp_path, dropping("forward"))).state is CheckState.OK
    found = await filtered(monkeypatch, tmp_path, dropping("forward"), text="[tun]\nenabled = true\n")
    assert found.state is CheckState.FAIL and f"iifname {tun_settings.EXIT_DEVICE} accept" in found.remedy


async def test_a_filter_that_is_not_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "sudo" in (await firewall(context(tmp_path, euid=1000))).text
    strange = {"rule": {"family": "inet", "table": "filter", "chain": "input", "expr": ["what"]}}
    assert (await filtered(monkeypatch, tmp_path, dropping("input"), strange)).state is CheckState.SKIP
    for said in (None, "", "{", "[]", '{"nftables": 7}'):
        monkeypatch.setattr(exit_machine, "output_of", lambda *_, said=said, **__: said)
        assert (await firewall(context(tmp_path, euid=0))).state is CheckState.SKIP
