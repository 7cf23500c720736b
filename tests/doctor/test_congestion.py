"""doctor's check of the congestion control, on hosts that allow this and that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest

from cryprq_proxy.base.text import to_json
from cryprq_proxy.client.client import Client
from cryprq_proxy.doctor.checks import CheckState, Context
from cryprq_proxy.doctor.congestion import congestion
from cryprq_proxy.status import CarrierStatus, ClientStatus, ExitStatus, PeerSessionStatus, SessionStatus

STOCK = "reno cubic"


@pytest.fixture
def host(tmp_path: Path) -> Context:
    """A host as it comes, on which nothing runs."""
    allow(tmp_path, STOCK)
    return Context(root=tmp_path)


def allow(root: Path, names: str) -> None:
    directory = root / "proc/sys/net/ipv4"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tcp_allowed_congestion_control").write_text(f"{names}\n")


def client(congestion: str, trip: float | None) -> ClientStatus:
    """The session's own round trip is that of a busy link, or of what lies behind an upstream proxy."""
    carrier = CarrierStatus(kind="tcp", congestion=congestion, connection_round_trip=trip)
    return ClientStatus(link="up", carrier=carrier, session=SessionStatus(round_trip=0.095))


def exit(*sessions: tuple[str, float]) -> ExitStatus:
    return ExitStatus(
        sessions=tuple(
            PeerSessionStatus(link="up", congestion=control, connection_round_trip=trip, round_trip=0.095)
            for control, trip in sessions
        )
    )


async def test_a_host_that_does_not_allow_bbr_is_told_what_to_run(host: Context) -> None:
    found = await congestion(host)
    assert found.state is CheckState.WARN
    assert "does not allow BBR" in found.text and "(it allows reno cubic)" in found.text
    assert "modprobe tcp_bbr;" in found.remedy
    assert "sysctl -w net.ipv4.tcp_allowed_congestion_control='reno cubic bbr'" in found.remedy


async def test_a_host_that_allows_it_is_in_order(host: Context) -> None:
    allow(host.root, "reno bbr")
    found = await congestion(host)
    assert found.state is CheckState.OK
    assert (
        found.text
        == "this host allows BBR, which a link over a long path asks for; no link is up that could tell"
    )


async def test_a_system_that_does_not_tell_is_left_alone(tmp_path: Path) -> None:
    assert (await congestion(Context(root=tmp_path))).state is CheckState.SKIP


@pytest.mark.parametrize("running", [client("bbr", 0.05), exit(("bbr", 0.05), ("bbr", 0.0005))])
async def test_what_a_link_uses_counts_more_than_the_list(
    host: Context, running: ClientStatus | ExitStatus
) -> None:
    """Root may use what the list does not name."""
    host.running = running
    assert (await congestion(host)).text == "links over a long path send with BBR"


@pytest.mark.parametrize("running", [client("cubic", 0.0005), exit(("cubic", 0.0005), ("bbr", 0.05))])
async def test_nothing_is_asked_for_on_a_short_path(
    host: Context, running: ClientStatus | ExitStatus
) -> None:
    host.running = running
    for names in (STOCK, "reno bbr"):
        allow(host.root, names)
        found = await congestion(host)
        assert found.state is CheckState.OK
        assert found.text == (
            "a link whose own connection is short (under 2.0 ms) sends with the host's choice, "
            "which is the best one there: cubic"
        )


@pytest.mark.parametrize(
    "running",
    [
        client("cubic", 0.05),
        client("cubic", None),
        client("", 0.0005),
        ClientStatus(),
        exit(),
        exit(("cubic", 0.0005), ("cubic", 0.05)),
    ],
)
async def test_a_long_path_or_one_that_is_not_known_wants_it(
    host: Context, running: ClientStatus | ExitStatus
) -> None:
    host.running = running
    assert (await congestion(host)).state is CheckState.WARN


@pytest.mark.parametrize(
    "running", [client("reno", 0.05), exit(("bbr", 0.05), ("cubic", 0.0005), ("reno", 0.05))]
)
async def test_a_link_without_bbr_on_a_host_that_allows_it_is_told_with_what_may_be_the_reason(
    host: Context, running: ClientStatus | ExitStatus
) -> None:
    allow(host.root, "reno bbr")
    host.running = running
    found = await congestion(host)
    assert found.state is CheckState.WARN
    assert found.text == (
        "a link over a long path (50.0 ms) sends with reno, though this host allows BBR: its route locks another one, "
        "or it was made before BBR was allowed"
    )
    assert found.remedy.startswith("restart cryprq-proxy") and "congctl lock" in found.remedy


class OwnLink:
    """A link that doctor has just made."""

    def status(self) -> ClientStatus:
        return client("reno", 0.05)


async def test_a_link_that_is_new_can_only_be_locked(host: Context) -> None:
    allow(host.root, "reno bbr")
    host.link = cast(Client, OwnLink())
    found = await congestion(host)
    assert found.text.endswith("sends with reno, though this host allows BBR: its route locks another one")
    assert "restart" not in found.remedy


async def test_a_link_whose_path_was_not_measured_is_told_as_that(host: Context) -> None:
    allow(host.root, "reno bbr")
    host.running = client("reno", None)
    found = await congestion(host)
    assert found.state is CheckState.WARN
    assert found.text.endswith("the kernel had not measured how long its path is")


def test_an_exit_tells_with_what_it_sends() -> None:
    told = json.loads(to_json(exit(("bbr", 0.05))))
    assert told["sessions"][0]["congestion"] == "bbr"
