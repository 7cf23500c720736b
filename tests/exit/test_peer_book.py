"""What an exit knows of its peers: names that may hold anything, and what was seen of them since the start."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.exit import peer_book
from cryprq_proxy.exit.peer_book import MAX_PEERS_TOLD, PeerBook
from cryprq_proxy.status import PeerStatus, Traffic
from tests.support.visits import ALICE, BOB, Visit, open_exit

ONE, TWO, THREE = (PeerId(bytes([number]) * 32) for number in (1, 2, 3))


def session(sent: int = 0, received: int = 0, heard: float = 0.0) -> Any:
    return SimpleNamespace(bytes_sent=sent, bytes_received=received, heard=heard)


def entry(began: float, *, up: bool = True, **moved: float) -> Any:
    """As PeerSession."""
    return SimpleNamespace(began=began, up=up, session=session(**moved))  # type: ignore[arg-type]


def told(book: PeerBook) -> list[PeerStatus]:
    """Of an exit without sessions."""
    return [book.status(peer, (), 0.0) for peer in book.first({})]


def test_a_connected_peer() -> None:
    book = PeerBook({ONE: "laptop", TWO: ""})
    book.came(ONE, "192.0.2.1", 100.0)
    book.left(ONE, session(10, 1, 120.0))
    book.came(ONE, "192.0.2.2", 150.0)
    sessions = [
        entry(140.0, up=False, sent=1),
        entry(150.0, sent=5, received=2, heard=170.0),
        entry(160.0, heard=165.0),
    ]
    assert book.status(ONE, sessions, 1000.0) == PeerStatus(
        peer_id=str(ONE),
        name="laptop",
        sessions=3,
        since=1150.0,
        address="192.0.2.2",
        last_seen=1170.0,
        bytes=Traffic(sent=16, received=3),
    )
    assert book.status(TWO, (), 1000.0) == PeerStatus(peer_id=str(TWO))


def test_one_that_is_not_connected() -> None:
    book = PeerBook({ONE: "laptop"})
    book.came(ONE, "192.0.2.1", 100.0)
    found = book.status(ONE, [entry(100.0, up=False, heard=110.0)], 0.0)
    assert (found.sessions, found.since, found.last_seen) == (1, None, 110.0)
    book.left(ONE, session(heard=110.0))
    (found,) = told(book)
    assert (found.sessions, found.since, found.last_seen, found.address) == (0, None, 110.0, "192.0.2.1")


def test_one_that_said_nothing_was_seen_as_it_came() -> None:
    book = PeerBook({ONE: ""})
    book.came(ONE, "192.0.2.1", 100.0)
    book.left(ONE, session(heard=0.0))
    assert told(book)[0].last_seen == 100.0


def test_who_is_no_longer_listed_is_forgotten() -> None:
    book = PeerBook({ONE: "one", TWO: "two"})
    book.came(ONE, "192.0.2.1", 1.0)
    book.came(TWO, "192.0.2.2", 2.0)
    book.replace({TWO: "too"})
    # Its session ends after that.
    book.left(ONE, session(1, 1, 3.0))
    assert len(book) == 1
    assert [(peer.name, peer.last_seen) for peer in told(book)] == [("too", 2.0)]
    book.replace({ONE: "one"})
    assert [peer.last_seen for peer in told(book)] == [None]


def test_only_the_latest_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_book, "MAX_SEEN", 2)
    book = PeerBook({ONE: "", TWO: "", THREE: ""})
    book.came(ONE, "192.0.2.1", 1.0)
    book.came(TWO, "192.0.2.2", 2.0)
    book.left(ONE, session(heard=3.0))
    book.came(THREE, "192.0.2.3", 4.0)
    assert len(book) == 2
    # TWO was seen least lately.
    assert [(peer.peer_id, peer.last_seen) for peer in told(book)] == [
        (str(THREE), 4.0),
        (str(ONE), 3.0),
        (str(TWO), None),
    ]


def test_peers_with_sessions_leave_less_room_for_others() -> None:
    linked = {PeerId(number.to_bytes(32)): 1 for number in range(10)}
    book = PeerBook({PeerId(number.to_bytes(32)): "" for number in range(10, 10 + MAX_PEERS_TOLD)})
    found = book.first(linked)
    assert len(found) == len(set(found)) == MAX_PEERS_TOLD
    assert set(found[:10]) == set(linked)


def test_all_are_told_page_after_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_book, "MAX_PEERS_TOLD", 2)
    book = PeerBook({ONE: "", TWO: "", THREE: ""})
    book.came(THREE, "192.0.2.3", 1.0)
    assert [book.page(start) for start in (0, 2, 3, 10**9)] == [[ONE, TWO], [THREE], [], []]


def test_peers_with_most_sessions_come_first() -> None:
    book = PeerBook({ONE: "one", TWO: "two", THREE: "three"})
    book.came(THREE, "192.0.2.3", 1.0)
    assert book.first({TWO: 1, PeerId(bytes(32)): 2}) == [PeerId(bytes(32)), TWO, THREE, ONE]


def test_names_are_shown_with_a_part_of_the_id() -> None:
    book = PeerBook({ONE: "laptop", TWO: "\x1b]0;owned\x07" + "x" * 1000})
    assert book.shown(ONE) == f"laptop ({str(ONE)[:8]}...)"
    assert book.shown(TWO).startswith("\\x1b]0;owned\\x07xxx")
    assert book.shown(TWO).isprintable() and len(book.shown(TWO)) < 100
    assert book.shown(THREE) == str(THREE)


async def test_the_log_and_the_status_name_a_peer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with open_exit(ALICE, BOB) as exit:
        exit.authorize({ALICE.peer_id: "laptop", BOB.peer_id: ""})
        visit = Visit(exit, ALICE)
        await visit.admit()
        shown = f"laptop ({str(ALICE.peer_id)[:8]}...)"
        assert any(f"link up: {shown} from " in message for message in caplog.messages)
        peers = (await exit.status()).peers
        assert [(peer.name, peer.sessions, peer.since is not None) for peer in peers] == [
            ("laptop", 1, True),
            ("", 0, False),
        ]
        assert peers[0].address and peers[0].last_seen is not None
        visit.cut()
