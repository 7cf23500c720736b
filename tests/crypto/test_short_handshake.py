"""The short pattern: a path for a client with a ticket, and what is left to whoever has only a part of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from cryprq_proxy.crypto.exit_handshake import ExitHandshake
from cryprq_proxy.crypto.handshake import (
    FIRST_SIZE,
    SHORT_PATTERN,
    SHORT_SECOND_SIZE,
    SHORT_THIRD_SIZE,
    THIRD_SIZE,
    EstablishedPath,
    begin,
    default_psk,
    record_keys,
)
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.noise import HandshakeState
from cryprq_proxy.crypto.payloads import Choice, HandshakeOffer, Pattern, join_ticket
from cryprq_proxy.crypto.primitives import Cipher, select_provider, system_entropy
from cryprq_proxy.errors import HandshakeError, LocalError
from tests.support.handshakes import (
    AES,
    BOTH,
    CHACHA,
    CLIENT,
    EXIT,
    FAST,
    PATH,
    RESUME,
    FlightTest,
    Hostile,
    new_client,
    new_exit,
    new_short_client,
)


@dataclass(frozen=True)
class Known:
    path: int
    secret: bytes


TICKETS = {join_ticket(RESUME, path): Known(path, RESUME) for path in range(1, 9)}


def short_flights(client: Any, exit_: ExitHandshake) -> tuple[bytes, bytes, bytes]:
    first = client.write_first()
    exit_.read_first(first)
    second = exit_.write_second()
    client.read_second(second)
    third = client.write_third()
    assert exit_.read_short_third(third, TICKETS.get) == Known(PATH, RESUME)
    return first, second, third


# --- what works ---


@pytest.mark.parametrize(("ours", "theirs"), list(itertools.product(("cryptography", "pure"), repeat=2)))
def test_every_pair_of_providers(ours: str, theirs: str) -> None:
    exit_provider = select_provider(theirs)
    client = new_short_client(provider=select_provider(ours))
    exit_ = new_exit(identity=EXIT, provider=exit_provider)
    short_flights(client, exit_)
    assert exit_.pattern is Pattern.SHORT
    assert exit_.path == replace(client.result, provider=exit_provider.name)
    assert client.result.number == PATH


def test_sizes() -> None:
    client, exit_ = new_short_client(), new_exit()
    first, second, third = short_flights(client, exit_)
    assert [len(flight) for flight in (first, second, third)] == [1258, 1158, 52]
    assert len(first) == len(new_client().write_first()), (
        "the first flight tells nobody which pattern follows"
    )
    assert (client.second_size, exit_.third_size) == (SHORT_SECOND_SIZE, SHORT_THIRD_SIZE)
    signed = new_exit()
    signed.read_first(new_client().write_first())
    assert (signed.pattern, signed.third_size) == (Pattern.SIGNED, THIRD_SIZE)


def test_two_handshakes_with_one_ticket_share_no_key() -> None:
    keys: set[bytes] = set()
    for _ in range(2):
        client, exit_ = new_short_client(), new_exit()
        short_flights(client, exit_)
        keys.update((client.result.records, *record_keys(client.result.records, PATH)))
    assert len(keys) == 6


def test_a_configured_psk() -> None:
    psk = bytes(range(32))
    short_flights(new_short_client(psk=psk), new_exit(psk=psk))
    short_flights(new_short_client(psk=default_psk(EXIT.peer_id)), new_exit())


def test_cipher_and_features() -> None:
    client = new_short_client(ciphers=(AES, CHACHA), features=5)
    exit_ = new_exit(ciphers=(AES, CHACHA), features=6)
    short_flights(client, exit_)
    assert (client.result.cipher, client.result.features) == (AES, 4)


def test_no_secrets_in_repr() -> None:
    path = EstablishedPath(3, Cipher.CHACHA20_POLY1305, 0, bytes(32), "cryptography")
    assert repr(path) == "EstablishedPath(number=3, cipher=CHACHA20_POLY1305, provider='cryptography')"


# --- what a stranger or a meddler sees ---


@pytest.mark.parametrize("changes", [{"exit_id": CLIENT.peer_id}, {"psk": bytes(32)}], ids=["id", "psk"])
def test_who_does_not_know_the_exit(changes: dict[str, Any]) -> None:
    with pytest.raises(HandshakeError):
        new_exit().read_first(new_short_client(**changes).write_first())


def prepare(name: str) -> tuple[Callable[[bytes], object], bytes]:
    """The point where one side reads one flight."""
    client, exit_ = new_short_client(), new_exit()
    first = client.write_first()
    if name == "first":
        return exit_.read_first, first
    exit_.read_first(first)
    second = exit_.write_second()
    if name == "second":
        return client.read_second, second
    client.read_second(second)
    return lambda flight: exit_.read_short_third(flight, TICKETS.get), client.write_third()


FLIGHTS = [
    FlightTest("first", prepare, FIRST_SIZE, [0, 32, 1216, 1232]),
    FlightTest("second", prepare, SHORT_SECOND_SIZE, [0, 32, 1120, 1136, 1142]),
    FlightTest("third", prepare, SHORT_THIRD_SIZE, list(range(52))),
]


@pytest.mark.parametrize("flight", FLIGHTS, ids=lambda flight: flight.name)
def test_each_byte_counts(flight: FlightTest) -> None:
    flight.changed()


@pytest.mark.parametrize("flight", FLIGHTS, ids=lambda flight: flight.name)
def test_other_lengths(flight: FlightTest) -> None:
    flight.other_lengths()


class Meddler:
    """Knows the exit's id, and so answers its clients. It has every ephemeral key, but no secret of a session."""

    def __init__(self, guess: bytes = bytes(32)) -> None:
        self.noise: HandshakeState = begin(
            SHORT_PATTERN, EXIT.peer_id, None, FAST, system_entropy, initiator=False
        )
        self.noise.tickets = self
        self._guess = guess
        self.ticket = b""

    def answer(self, first: bytes) -> bytes:
        offer = HandshakeOffer.decode(self.noise.read_message(first))
        assert offer.pattern is Pattern.SHORT
        return self.noise.write_message(Choice(2, CHACHA, 0).encode())

    def show(self) -> tuple[bytes, bytes]:
        raise AssertionError("an exit shows no tickets")

    def look_up(self, ticket: bytes) -> bytes:
        self.ticket = ticket
        return self._guess


def test_who_answers_for_the_exit_reads_the_ticket_and_no_more() -> None:
    client, meddler = new_short_client(), Meddler()
    client.read_second(meddler.answer(client.write_first()))
    third = client.write_third()
    with pytest.raises(HandshakeError, match="authenticate"):
        meddler.noise.read_message(third)
    assert meddler.ticket == join_ticket(RESUME, PATH)
    # As if it had read the payload: it has mixed all that it can.
    meddler.noise._symmetric.mix_hash(third[32:])
    meddler.noise._end()
    records = meddler.noise.export(b"records", 32)
    assert meddler.noise.h != client._noise.h
    assert not {records, *record_keys(records, PATH)} & {
        client.result.records,
        *record_keys(client.result.records, PATH),
    }


def test_only_the_secret_is_missing_to_the_meddler() -> None:
    """So that the test before shows what it says."""
    client, meddler = new_short_client(), Meddler(guess=RESUME)
    client.read_second(meddler.answer(client.write_first()))
    meddler.noise.read_message(client.write_third())
    assert meddler.noise.export(b"records", 32) == client.result.records


def test_a_copied_ticket_is_useless_and_remains() -> None:
    """The meddler goes to the exit with the ticket that it has read."""
    thief, exit_ = new_short_client(), new_exit()
    thief._noise.tickets = _Thief(join_ticket(RESUME, PATH))
    exit_.read_first(thief.write_first())
    thief.read_second(exit_.write_second())
    found = []

    def find(ticket: bytes) -> Known | None:
        found.append(TICKETS.get(ticket))
        return found[-1]

    with pytest.raises(HandshakeError, match="authenticate"):
        exit_.read_short_third(thief.write_third(), find)
    assert found == [Known(PATH, RESUME)]
    for early in (lambda: exit_.path, lambda: exit_.result, lambda: exit_.joins):
        with pytest.raises(LocalError):
            early()


class _Thief:
    def __init__(self, ticket: bytes) -> None:
        self._ticket = ticket

    def show(self) -> tuple[bytes, bytes]:
        return self._ticket, bytes(32)

    def look_up(self, ticket: bytes) -> bytes:
        raise AssertionError("a client looks up no tickets")


def test_an_unknown_ticket() -> None:
    for changes in ({"resume": bytes(32)}, {"path": 9}):
        client, exit_ = new_short_client(**changes), new_exit()
        exit_.read_first(client.write_first())
        client.read_second(exit_.write_second())
        with pytest.raises(HandshakeError, match="unknown"):
            exit_.read_short_third(client.write_third(), TICKETS.get)


def test_a_ticket_for_another_path() -> None:
    """A client with the secret says two things at once."""
    client, exit_ = new_short_client(), new_exit()
    client._path = PATH + 1
    exit_.read_first(client.write_first())
    client.read_second(exit_.write_second())
    with pytest.raises(HandshakeError, match="another path"):
        exit_.read_short_third(client.write_third(), TICKETS.get)
    with pytest.raises(LocalError):
        _ = exit_.path


def test_recorded_flights() -> None:
    """Of a third flight that was recorded nothing opens again, though its first flight does."""
    (first, second, third), (_, other_second, other_third) = (
        short_flights(new_short_client(), new_exit()) for _ in "12"
    )
    assert second != other_second
    client = new_short_client()
    client.write_first()
    with pytest.raises(HandshakeError):
        client.read_second(second)
    for old in (third, other_third):
        exit_ = new_exit()
        exit_.read_first(first)  # a repeated first flight opens: the driver remembers those it has seen
        exit_.write_second()
        with pytest.raises(HandshakeError, match="authenticate"):
            exit_.read_short_third(old, TICKETS.get)


def test_the_other_pattern_is_not_read() -> None:
    short, signed = new_short_client(), new_client()
    second = {}
    for client in (short, signed):
        exit_ = new_exit()
        exit_.read_first(client.write_first())
        second[client] = exit_.write_second()
    for client, other in ((short, signed), (signed, short)):
        with pytest.raises(HandshakeError, match="wrong length"):
            client.read_second(second[other])


def test_an_exit_that_signs_for_a_short_client() -> None:
    """One that ignores the pattern gets nothing out of the client."""
    client, exit_ = new_short_client(), new_exit()
    first = client.write_first()
    exit_._noise.read_message(first)
    second = exit_._noise.write_message(Choice(2, CHACHA, 0).encode())
    with pytest.raises(HandshakeError, match="wrong length"):
        client.read_second(second)
    with pytest.raises(HandshakeError, match="authenticate"):
        client._noise.read_message(second)


def test_a_client_with_a_malformed_kem_key() -> None:
    client, exit_ = new_short_client(provider=Hostile(public=b"\xff" * 1184)), new_exit()
    exit_.read_first(client.write_first())
    with pytest.raises(HandshakeError, match="ML-KEM"):
        exit_.write_second()


def test_an_exit_with_a_wrong_kem_ciphertext() -> None:
    client, exit_ = new_short_client(), new_exit(provider=Hostile(ciphertext=bytes(1088)))
    exit_.read_first(client.write_first())
    with pytest.raises(HandshakeError):
        client.read_second(exit_.write_second())


@pytest.mark.parametrize("useless", [bytes(32), b"\1" + bytes(31)], ids=["zero", "one"])
def test_an_exit_with_a_key_of_small_order(useless: bytes) -> None:
    client, meddler = new_short_client(), Meddler()
    meddler.noise.read_message(client.write_first())
    with pytest.raises(HandshakeError, match="X25519"):
        client.read_second(useless + bytes(1126))


@pytest.mark.parametrize(
    "choice", [Choice(2, AES, 0), Choice(2, CHACHA, 1), Choice(1, CHACHA, 0), Choice(3, CHACHA, 0)]
)
def test_choices_that_were_not_offered(choice: Choice) -> None:
    client, exit_ = new_short_client(ciphers=(CHACHA,)), new_exit()
    exit_.read_first(client.write_first())
    exit_._choice = choice
    with pytest.raises(HandshakeError, match=r"not offered|version"):
        client.read_second(exit_.write_second())


def test_the_exit_needs_a_cipher_too() -> None:
    with pytest.raises(HandshakeError, match="no cipher"):
        new_exit(ciphers=BOTH).read_first(new_short_client(ciphers=(AES,)).write_first())


# --- the order of the calls ---


def test_client_calls_out_of_turn() -> None:
    client, exit_ = new_short_client(), new_exit()
    for early in (client.write_third, lambda: client.read_second(b""), lambda: client.result):
        with pytest.raises(LocalError):
            early()
    exit_.read_first(client.write_first())
    client.read_second(exit_.write_second())
    for call in (lambda: client.result, client.write_first):
        with pytest.raises(LocalError):
            call()
    client.write_third()
    with pytest.raises(LocalError):
        client.write_third()


def test_exit_calls_out_of_turn() -> None:
    client, exit_ = new_short_client(), new_exit()
    exit_.read_first(client.write_first())
    with pytest.raises(LocalError):
        exit_.read_short_third(bytes(52), TICKETS.get)
    client.read_second(exit_.write_second())
    third = client.write_third()
    for early in (exit_.write_second, lambda: exit_.read_third(third), lambda: exit_.path):
        with pytest.raises(LocalError):
            early()
    exit_.read_short_third(third, TICKETS.get)
    for late in (
        lambda: exit_.read_short_third(third, TICKETS.get),
        lambda: exit_.result,
        lambda: exit_.joins,
        lambda: exit_.invite,
    ):
        with pytest.raises(LocalError):
            late()


def test_a_signed_client_has_no_short_end() -> None:
    client, exit_ = new_client(), new_exit()
    exit_.read_first(client.write_first())
    client.read_second(exit_.write_second())
    third = client.write_third()
    with pytest.raises(LocalError):
        exit_.read_short_third(third, TICKETS.get)
    exit_.read_third(third)


@pytest.mark.parametrize("path", [-1, 2**32])
def test_the_numbers_of_paths(path: int) -> None:
    with pytest.raises(LocalError):
        new_short_client(path=path)


def test_no_side_does_the_work_of_the_other() -> None:
    client, exit_ = new_short_client(), new_exit()
    exit_.read_first(client.write_first())
    client.read_second(exit_.write_second())
    with pytest.raises(HandshakeError):
        exit_.read_short_third(bytes(52), TICKETS.get)
    for tickets, call in ((client._noise.tickets, "look_up"), (exit_._noise.tickets, "show")):
        with pytest.raises(LocalError):
            getattr(tickets, call)(*([bytes(16)] if call == "look_up" else []))


def test_an_identity_plays_no_part() -> None:
    """The exit's is needed for its id, the client's not at all."""
    stranger = Identity.generate(FAST)
    with pytest.raises(HandshakeError):
        new_exit(identity=stranger).read_first(new_short_client().write_first())
