"""doctor's check of the congestion control, on hosts that allow this and that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cryprq_proxy.base.text import to_json
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
    carrier = CarrierStatus(kind="tcp", congestion=congestion)
    return ClientStatus(link="up", carrier=carrier, session=SessionStatus(round_trip=trip))


def exit(*sessions: tuple[str, float]) -> ExitStatus:
    return ExitStatus(
        sessions=tuple(
            PeerSessionStatus(link="up", congestion=control, round_trip=trip) for control, trip in sessions
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
    assert (await congestion(host)).state is CheckState.OK


async def test_a_system_that_does_not_tell_is_left_alone(tmp_path: Path) -> None:
    assert (await congestion(Context(root=tmp_path))).state is CheckState.SKIP


@pytest.mark.parametrize("running", [client("bbr", 0.05), exit(("cubic", 0.001), ("bbr", 0.05))])
async def test_what_a_link_uses_counts_more_than_the_list(
    host: Context, running: ClientStatus | ExitStatus
) -> None:
    """Root may use what the list does not name."""
    host.running = running
    assert (await congestion(host)).text == "links over a long path send with BBR"


@pytest.mark.parametrize("running", [client("cubic", 0.0005), exit(("cubic", 0.0005))])
async def test_nothing_is_asked_for_on_a_short_path(
    host: Context, running: ClientStatus | ExitStatus
) -> None:
    host.running = running
    found = await congestion(host)
    assert found.state is CheckState.OK
    assert found.text.endswith("the host's choice is the best one: cubic")


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


def test_an_exit_tells_with_what_it_sends() -> None:
    told = json.loads(to_json(exit(("bbr", 0.05))))
    assert told["sessions"][0]["congestion"] == "bbr"
