"""`peers`: the list, and what the running exit has seen of those on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.commands import listed_peers
from cryprq_proxy.commands.listed_peers import PeersListing
from cryprq_proxy.config.exit import ExitConfig
from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.errors import CryprqError
from cryprq_proxy.pairing.invitation import ExitHere
from cryprq_proxy.pairing.invite_store import Invite
from cryprq_proxy.status import PeerStatus, Traffic

ONE, TWO, THREE = (PeerId(bytes([number]) * 32) for number in (1, 2, 3))
NAMES = {ONE: "laptop", TWO: "\x1b[2Jphone", THREE: ""}


def seen(peer: PeerId, **more: Any) -> dict[str, PeerStatus]:
    return {str(peer): PeerStatus(peer_id=str(peer), name=NAMES[peer], **more)}


def shown(listing: PeersListing, width: int = 200) -> list[str]:
    return [" ".join(line.split()) for part in listing.lines(width) for line in part.splitlines()]


def test_who_is_connected_since_when_and_from_where() -> None:
    now = time.time()
    told = (
        seen(THREE)
        | seen(TWO, address="192.0.2.2", last_seen=now - 7300)
        | seen(ONE, sessions=1, since=now - 61, address="192.0.2.1", last_seen=now, bytes=Traffic(sent=2048))
    )
    lines = shown(PeersListing(NAMES, (), {}, (), told))
    assert lines == [
        "peer sessions connected from last seen sent received id",
        f"laptop ({str(ONE)[:8]}...) 1 for 1 min 1 s 192.0.2.1 0 s ago 2.0 KiB 0 B {ONE}",
        f"\\x1b[2Jphone ({str(TWO)[:8]}...) 0 - 192.0.2.2 2 h 1 min ago 0 B 0 B {TWO}",
        f"{str(THREE)[:8]}... 0 - - not since the start 0 B 0 B {THREE}",
    ]
    narrow = PeersListing(NAMES, (), {}, (), told).lines(80)
    assert max(len(line) for part in narrow for line in part.splitlines()) <= 80


def test_a_crowd_is_shown_like_few_and_without_the_layout_of_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = {PeerId(number.to_bytes(32)): f"peer{number}" for number in range(1, 5001)}
    told = {
        str(peer): PeerStatus(peer_id=str(peer), name=name, sessions=int(name == "peer4000"))
        for peer, name in crowd.items()
    }
    few = dict(list(crowd.items())[3990:4000])
    expected = shown(PeersListing(few, (), {}, (), told))

    def refuse(*_: object) -> str:
        raise AssertionError("rich lays thousands of rows out")

    monkeypatch.setattr(listed_peers, "draw", refuse)
    lines = shown(PeersListing(crowd, (), {}, (), told))
    assert len(lines) == 5001
    assert lines[:2] == expected[:2]
    assert set(expected) <= set(lines)


def test_whom_the_exit_has_not_told_of_and_who_is_revoked() -> None:
    listing = PeersListing({ONE: "laptop", TWO: NAMES[TWO]}, (THREE,), {TWO: "phone"}, (), seen(ONE))
    lines = shown(listing)
    assert lines[-2:] == [
        f"{THREE} not told: ask again, or restart the exit",
        f"\\x1b[2Jphone ({str(TWO)[:8]}...) revoked: not let in",
    ]
    told = listing.told()
    assert told["running"] is True
    assert told["peers"] == [
        {
            "name": "laptop", "peer_id": str(ONE), "sessions": 0, "since": None, "address": "", "last_seen": None,
            "bytes": {"sent": 0, "received": 0},
        },
        {"name": "", "peer_id": str(THREE)},
    ]  # fmt: skip
    assert told["revoked"] == [{"name": "phone", "peer_id": str(TWO)}]


@pytest.mark.parametrize(
    ("allowed", "pages"), [(1, None), (2, seen(TWO)), (2, CryprqError("another version"))]
)
def test_all_of_a_crowd_are_asked_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    allowed: int,
    pages: dict[str, PeerStatus] | CryprqError | None,
) -> None:
    """Where the status tells of fewer than are let in; an exit of an older version tells no more than that."""

    def query_peers(path: Path) -> Iterator[PeerStatus]:
        assert path == tmp_path / "exit.sock" and pages is not None
        if isinstance(pages, CryprqError):
            raise pages
        yield from pages.values()

    monkeypatch.setattr(listed_peers, "query_peers", query_peers)
    here = ExitHere(
        ExitConfig(), tmp_path / "authorized", tmp_path / "exit.sock", list(seen(ONE).values()), allowed, None, (), "",
        False,
    )  # fmt: skip
    told = PeersListing.of(here).seen
    assert told == (seen(ONE) | pages if isinstance(pages, dict) else seen(ONE))


def test_without_a_running_exit_there_are_names_and_ids() -> None:
    invite = Invite("guest", "0" * 64, 0, 0)
    listing = PeersListing({ONE: "laptop"}, (THREE,), {}, (invite,), None)
    lines = shown(listing)
    assert lines[:2] == [f"laptop {ONE}", f"(allow) {THREE}"]
    assert lines[3].startswith("guest, until ") or lines[4].startswith("guest, until ")
    assert listing.told()["running"] is False
    assert listing.told()["peers"][0] == {"name": "laptop", "peer_id": str(ONE)}
    assert shown(PeersListing({}, (), {}, (), {})) == ["no peers; invite one with: cryprq-proxy invite NAME"]
