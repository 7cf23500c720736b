"""The tickets that an exit knows: which there are at a time, and what becomes of them."""

from __future__ import annotations

import random

import pytest

from cryprq_proxy.crypto.payloads import join_ticket
from cryprq_proxy.errors import HandshakeError, LocalError
from cryprq_proxy.exit.ticket_book import AHEAD, Ticket, TicketBook
from tests.support.handshakes import PATH, RESUME, new_exit, new_short_client

OLD, NEW = bytes(range(32)), bytes(range(100, 132))


def paths(book: TicketBook[str], secret: bytes, owner: str = "session") -> list[int]:
    """The numbers below 40 for which `owner` has tickets of this secret."""
    found = {path: book.find(join_ticket(secret, path)) for path in range(40)}
    for path, ticket in found.items():
        assert ticket in (None, Ticket(owner, path, secret))
    return [path for path, ticket in found.items() if ticket is not None]


def test_the_next_eight_paths() -> None:
    book: TicketBook[str] = TicketBook()
    book.renew("session", [OLD])
    assert paths(book, OLD) == list(range(1, 1 + AHEAD)), "path 0 is that of the first handshake"
    assert len(book) == AHEAD == 8
    assert book.find(bytes(16)) is None


def test_to_find_uses_nothing_up() -> None:
    book: TicketBook[str] = TicketBook()
    book.renew("session", [OLD])
    first = book.find(join_ticket(OLD, 5))
    assert first == book.find(join_ticket(OLD, 5)) == Ticket("session", 5, OLD)


def test_a_taken_path_ends_all_up_to_it() -> None:
    book: TicketBook[str] = TicketBook()
    book.renew("session", [OLD])
    assert book.advance("session", 3)
    assert paths(book, OLD) == list(range(4, 4 + AHEAD))
    for stale in (3, 2, 0, -1):
        assert not book.advance("session", stale), "of two that came at once the second is too late"
    assert paths(book, OLD) == list(range(4, 4 + AHEAD))


def test_a_path_that_joined_with_signatures_may_be_far_ahead() -> None:
    book: TicketBook[str] = TicketBook()
    book.renew("session", [OLD, NEW])
    assert book.advance("session", 20)
    assert paths(book, OLD) == paths(book, NEW) == list(range(21, 21 + AHEAD))
    assert len(book) == 2 * AHEAD


def test_two_epochs_while_the_next_is_unconfirmed() -> None:
    book: TicketBook[str] = TicketBook()
    book.renew("session", [OLD])
    book.advance("session", 1)
    book.renew("session", [OLD, NEW])
    assert paths(book, OLD) == paths(book, NEW) == list(range(2, 2 + AHEAD))
    book.advance("session", 2)
    book.renew("session", [NEW])
    assert paths(book, OLD) == []
    assert paths(book, NEW) == list(range(3, 3 + AHEAD))
    assert len(book) == AHEAD


def test_no_more_than_two_epochs() -> None:
    book: TicketBook[str] = TicketBook()
    with pytest.raises(LocalError, match="at most 2"):
        book.renew("session", [OLD, NEW, RESUME])
    assert len(book) == 0


def test_a_pause_does_not_begin_the_numbers_anew() -> None:
    """As after a day without a signed handshake."""
    book: TicketBook[str] = TicketBook()
    book.renew("session", [OLD])
    book.advance("session", 4)
    book.renew("session", [])
    assert len(book) == 0 == len(paths(book, OLD))
    assert book.advance("session", 6), "by a signed handshake"
    book.renew("session", [NEW])
    assert paths(book, NEW) == list(range(7, 7 + AHEAD))


def test_sessions_do_not_meet() -> None:
    book: TicketBook[str] = TicketBook()
    book.renew("one", [OLD])
    book.renew("other", [NEW])
    book.advance("one", 8)
    assert paths(book, OLD, "one") == list(range(9, 9 + AHEAD))
    assert paths(book, NEW, "other") == list(range(1, 1 + AHEAD))
    book.forget("one")
    book.forget("one")
    assert paths(book, OLD) == []
    assert not book.advance("one", 9)
    assert paths(book, NEW, "other") == list(range(1, 1 + AHEAD))


def test_numbers_end() -> None:
    book: TicketBook[str] = TicketBook()
    book.renew("session", [OLD])
    assert book.advance("session", 2**32 - 3)
    assert len(book) == 2
    assert not book.advance("session", 2**32)
    assert book.advance("session", 2**32 - 1)
    assert len(book) == 0
    assert not book.advance("session", 2**32 - 1)


def test_it_stays_small_whatever_happens() -> None:
    chance = random.Random(5)
    book: TicketBook[int] = TicketBook()
    latest: dict[int, tuple[list[bytes], int]] = {}
    for _ in range(2000):
        owner, path = chance.randrange(4), chance.randrange(200)
        secrets, first = latest.get(owner, ([], 1))
        match chance.randrange(4):
            case 0:
                secrets = [*secrets, chance.randbytes(32)][-2:]
                book.renew(owner, secrets)
                latest[owner] = secrets, first
            case 1 if chance.random() < 0.05:
                book.forget(owner)
                latest.pop(owner, None)
            case _:
                fits = owner in latest and path >= first
                assert book.advance(owner, path) is fits
                if fits:
                    latest[owner] = secrets, path + 1
        assert len(book) == sum(AHEAD * len(secrets) for secrets, _ in latest.values())
    for owner, (secrets, first) in latest.items():
        for secret in secrets:
            assert book.find(join_ticket(secret, first)) == Ticket(owner, first, secret)
            assert book.find(join_ticket(secret, first - 1)) is None


def test_no_secrets_in_repr() -> None:
    book: TicketBook[str] = TicketBook()
    book.renew("session", [OLD])
    assert repr(book) == "TicketBook(1 sessions)"
    assert repr(book.find(join_ticket(OLD, 1))) == "Ticket(path=1)"


# --- with the handshake ---


def test_a_ticket_opens_one_path() -> None:
    book: TicketBook[str] = TicketBook()
    book.renew("session", [RESUME])
    waiting = []
    for _ in range(2):
        client, exit_ = new_short_client(), new_exit()
        exit_.read_first(client.write_first())
        client.read_second(exit_.write_second())
        waiting.append((exit_, client.write_third()))
    exit_, third = waiting[0]
    known = exit_.read_short_third(third, book.find)
    assert known == Ticket("session", PATH, RESUME)
    assert book.advance(known.owner, exit_.path.number)
    exit_, third = waiting[1]
    with pytest.raises(HandshakeError, match="unknown"):
        exit_.read_short_third(third, book.find)
