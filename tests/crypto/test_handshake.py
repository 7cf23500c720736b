"""The handshake: both providers, frozen flights, and what happens when a single thing is wrong."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from cryprq_proxy.crypto import client_handshake, exit_handshake
from cryprq_proxy.crypto.client_handshake import ClientHandshake, ShortClientHandshake
from cryprq_proxy.crypto.exit_handshake import ExitHandshake
from cryprq_proxy.crypto.handshake import (
    FIRST_SIZE,
    LENGTH,
    SECOND_SIZE,
    THIRD_SIZE,
    EpochSecrets,
    default_psk,
    record_keys,
)
from cryprq_proxy.crypto.identity import Identity, PeerId
from cryprq_proxy.crypto.payloads import (
    JOIN_CLIENT,
    JOIN_EXIT,
    Choice,
    Claim,
    HandshakeOffer,
    InviteClaim,
    JoinClaim,
    join_proof,
)
from cryprq_proxy.crypto.primitives import (
    Cipher,
    Ed25519Key,
    Entropy,
    Provider,
    hkdf,
    select_provider,
    sha256,
    system_entropy,
)
from cryprq_proxy.errors import HandshakeError, LocalError
from tests.support.handshakes import (
    AES,
    BOTH,
    CHACHA,
    CLIENT,
    EXIT,
    FAST,
    FlightTest,
    Hostile,
    flights,
    new_client,
    new_exit,
)
from tests.vectors.make import FROZEN, FastReader, frozen

RESUME = bytes(range(32))
JOIN = JoinClaim(bytes(range(16)), 7, bytes(range(32)))
INVITE = InviteClaim(bytes(range(100, 116)))


# --- what works ---


@pytest.mark.parametrize(("ours", "theirs"), list(itertools.product(("cryptography", "pure"), repeat=2)))
def test_every_pair_of_providers(ours: str, theirs: str) -> None:
    client_provider, exit_provider = select_provider(ours), select_provider(theirs)
    client_id, exit_id = Identity.generate(client_provider), Identity.generate(exit_provider)
    client = new_client(identity=client_id, exit_id=exit_id.peer_id, provider=client_provider)
    exit_ = new_exit(identity=exit_id, provider=exit_provider)
    flights(client, exit_)
    assert exit_.result.peer == client_id.peer_id
    assert client.result.peer == exit_id.peer_id
    assert (client.result.provider, exit_.result.provider) == (client_provider.name, exit_provider.name)
    expected = replace(client.result, peer=client_id.peer_id, provider=exit_provider.name)
    assert exit_.result == expected
    assert exit_.joins is None
    assert client.join_hash == exit_.join_hash


@pytest.mark.parametrize("claim", [None, JOIN, INVITE], ids=["new", "join", "invite"])
def test_sizes(claim: Claim) -> None:
    first, second, third = flights(new_client(), new_exit(), claim)
    assert len(first) in FIRST_SIZE
    assert len(second) in SECOND_SIZE
    assert len(third) in THIRD_SIZE
    assert LENGTH.unpack(LENGTH.pack(SECOND_SIZE[-1])) == (SECOND_SIZE[-1],)


def test_secrets_are_all_different_and_new() -> None:
    seen: set[bytes] = set()
    for _ in range(2):
        client, exit_ = new_client(), new_exit()
        flights(client, exit_)
        epoch = client.result.epoch
        secrets = [getattr(epoch, field.name) for field in fields(EpochSecrets)]
        secrets.append(client.result.session_id)
        assert [len(secret) for secret in secrets] == [32] * 6 + [16]
        seen.update(secrets)
    assert len(seen) == 14


def test_the_record_keys_of_a_path() -> None:
    client, exit_ = record_keys(RESUME, 0x01020304)
    assert client == hkdf(RESUME, b"", b"cryprq/2 client record\x01\x02\x03\x04", 32)
    assert exit_ == hkdf(RESUME, b"", b"cryprq/2 exit record\x01\x02\x03\x04", 32)
    keys = {key for path in (0, 1, 256, 2**32 - 1) for key in record_keys(RESUME, path)}
    assert len(keys) == 8


@pytest.mark.parametrize(
    "provider", [select_provider("pure"), FastReader()], ids=lambda provider: provider.name
)
def test_frozen(provider: Provider) -> None:
    """The protocol is what it was: the pure pair writes the frozen flights, the fast one reads them."""
    assert frozen(provider) == json.loads(FROZEN.read_text())


def test_a_configured_psk() -> None:
    psk = bytes(range(32))
    client, exit_ = new_client(psk=psk), new_exit(psk=psk)
    flights(client, exit_)
    assert client.result.epoch == exit_.result.epoch
    assert default_psk(EXIT.peer_id) == sha256(b"cryprq/1 psk0" + bytes(EXIT.peer_id))
    flights(new_client(psk=default_psk(EXIT.peer_id)), new_exit())


def test_join() -> None:
    client, exit_ = new_client(), new_exit()
    exit_.read_first(client.write_first())
    client.read_second(exit_.write_second())
    session_id, secret = bytes(range(16)), bytes(range(32))
    claim = JoinClaim.make(session_id, secret, client.join_hash, 3)
    exit_.read_third(client.write_third(claim))
    assert exit_.joins == claim
    h = exit_.join_hash
    assert claim.proves(secret, h)
    assert not claim.proves(bytes(32), h)
    assert not claim.proves(secret, bytes(32))
    for wrong in (replace(claim, path=4), replace(claim, proof=bytes(32))):
        assert not wrong.proves(secret, h)
    assert join_proof(secret, JOIN_CLIENT, h, 3) == claim.proof
    assert join_proof(secret, JOIN_EXIT, h, 3) != claim.proof


@pytest.mark.parametrize(
    ("claim", "joins", "invite"),
    [(None, None, None), (JOIN, JOIN, None), (INVITE, None, INVITE.secret)],
    ids=["new", "join", "invite"],
)
def test_what_the_client_asks_for(claim: Claim, joins: JoinClaim | None, invite: bytes | None) -> None:
    client, exit_ = new_client(), new_exit()
    flights(client, exit_, claim)
    assert (exit_.joins, exit_.invite) == (joins, invite)
    assert client.result.session_id == exit_.result.session_id


def test_no_secrets_in_repr() -> None:
    assert repr(INVITE) == "InviteClaim(...)"
    client = new_client()
    flights(client, new_exit())
    result = client.result
    assert repr(result.epoch) == "EpochSecrets(...)"
    assert repr(result) == (
        f"Established(cipher=CHACHA20_POLY1305, peer={EXIT.peer_id!r}, provider='cryptography')"
    )


# --- what a stranger or a meddler sees ---


@pytest.mark.parametrize(
    "changes",
    [
        {"exit_id": CLIENT.peer_id},
        {"psk": bytes(32)},
        {"exit_id": CLIENT.peer_id, "psk": default_psk(EXIT.peer_id)},
    ],
    ids=["id", "psk", "id with the right psk"],
)
def test_who_does_not_know_the_exit(changes: dict[str, Any]) -> None:
    with pytest.raises(HandshakeError):
        new_exit().read_first(new_client(**changes).write_first())


def test_a_private_exit_is_not_reached_with_its_id_alone() -> None:
    with pytest.raises(HandshakeError):
        new_exit(psk=bytes(32)).read_first(new_client().write_first())


def impostor(identity: Identity) -> ExitHandshake:
    """An exit that knows EXIT's id, but has other keys."""
    exit_ = new_exit()
    exit_._signer._identity = identity
    return exit_


def test_an_exit_with_other_keys() -> None:
    client, exit_ = new_client(), impostor(CLIENT)
    exit_.read_first(client.write_first())
    with pytest.raises(HandshakeError, match="not the expected one"):
        client.read_second(exit_.write_second())


class Forger(Identity):
    """Shows the public key of another identity, and signs as well as it can without its seeds."""

    def __init__(
        self, public: bytes, ed25519: Callable[[bytes], bytes], mldsa: Callable[[bytes], bytes]
    ) -> None:
        super().__init__(FAST, bytes(32), bytes(32))
        self.__dict__["public"] = public
        self._forge_ed25519, self._forge_mldsa = ed25519, mldsa

    def sign(self, data: bytes, entropy: Entropy = system_entropy) -> bytes:
        return self._forge_ed25519(data) + self._forge_mldsa(data)


NEUTRAL_POINT = b"\1" + bytes(31)
FORGERS = {
    "no signature": (EXIT.public, lambda data: bytes(64), lambda data: bytes(3309)),
    "Ed25519 broken": (EXIT.public, lambda data: EXIT.sign(data)[:64], lambda data: bytes(3309)),
    "ML-DSA broken": (EXIT.public, lambda data: bytes(64), lambda data: EXIT.sign(data)[64:]),
    "other data": (EXIT.public, lambda data: EXIT.sign(b"")[:64], lambda data: EXIT.sign(b"")[64:]),
    "small order": (
        NEUTRAL_POINT + EXIT.public[32:],
        lambda data: NEUTRAL_POINT + bytes(32),
        lambda data: EXIT.sign(b"")[64:],
    ),
    "no ML-DSA key": (
        Ed25519Key(bytes(32)).public + bytes(1952),
        Ed25519Key(bytes(32)).sign,
        lambda data: bytes(3309),
    ),
}


@pytest.mark.parametrize("name", FORGERS)
def test_forged_exits(name: str) -> None:
    forger = Forger(*FORGERS[name])
    pinned = PeerId.of(forger.public)
    client, exit_ = new_client(exit_id=pinned), new_exit(identity=forger)
    exit_.read_first(client.write_first())
    with pytest.raises(HandshakeError, match="are invalid"):
        client.read_second(exit_.write_second())


@pytest.mark.parametrize("name", FORGERS)
def test_forged_clients(name: str) -> None:
    client, exit_ = new_client(identity=Forger(*FORGERS[name])), new_exit()
    exit_.read_first(client.write_first())
    client.read_second(exit_.write_second())
    third = client.write_third()
    with pytest.raises(HandshakeError, match="are invalid"):
        exit_.read_third(third)
    with pytest.raises(LocalError):
        _ = exit_.result


def test_a_signature_does_not_serve_the_other_role() -> None:
    """A client that is also an exit cannot be made to sign for the exit's role."""
    client, exit_ = new_client(exit_id=CLIENT.peer_id), new_exit(identity=CLIENT)
    client._signer._role = b"S"
    exit_.read_first(client.write_first())
    with pytest.raises(HandshakeError, match="are invalid"):
        client.read_second(exit_.write_second())


def prepare(name: str) -> tuple[Callable[[bytes], object], bytes]:
    """The point where one side reads one flight."""
    client, exit_ = new_client(), new_exit()
    first = client.write_first()
    if name == "first":
        return exit_.read_first, first
    exit_.read_first(first)
    second = exit_.write_second()
    if name == "second":
        return client.read_second, second
    client.read_second(second)
    return exit_.read_third, client.write_third(JOIN)


FLIGHTS = [
    FlightTest("first", prepare, FIRST_SIZE, [0, 32, 1216, 1232]),
    FlightTest("second", prepare, SECOND_SIZE, [0, 32, 1120, 1136, 1168, 3120, 3136, 3200, 6509, 6525, 6531]),
    FlightTest("third", prepare, THIRD_SIZE, [0, 32, 1984, 2000, 2064, 5373, 5389, 5390, 5406, 5410]),
]


@pytest.mark.parametrize("flight", FLIGHTS, ids=lambda flight: flight.name)
def test_each_byte_counts(flight: FlightTest) -> None:
    flight.changed()


@pytest.mark.parametrize("flight", FLIGHTS, ids=lambda flight: flight.name)
def test_other_lengths(flight: FlightTest) -> None:
    flight.other_lengths()


def test_flights_of_another_handshake() -> None:
    (first, second, third), (_, other_second, other_third) = (flights(new_client(), new_exit()) for _ in "12")
    client = new_client()
    client.write_first()
    with pytest.raises(HandshakeError):
        client.read_second(second)
    exit_ = new_exit()
    exit_.read_first(first)  # a repeated first flight opens: the driver remembers those it has seen
    exit_.write_second()
    for old in (third, other_third):
        with pytest.raises((HandshakeError, LocalError)):
            exit_.read_third(old)
    assert second != other_second


def test_a_client_with_a_malformed_kem_key() -> None:
    """A peer that knows the exit may send anything under a key that opens."""
    client, exit_ = new_client(provider=Hostile(public=b"\xff" * 1184)), new_exit()
    exit_.read_first(client.write_first())
    with pytest.raises(HandshakeError, match="ML-KEM"):
        exit_.write_second()


def test_an_exit_with_a_wrong_kem_ciphertext() -> None:
    client, exit_ = new_client(), new_exit(provider=Hostile(ciphertext=bytes(1088)))
    exit_.read_first(client.write_first())
    with pytest.raises(HandshakeError):
        client.read_second(exit_.write_second())


@pytest.mark.parametrize("useless", [bytes(32), b"\1" + bytes(31)], ids=["zero", "one"])
def test_x25519_keys_of_small_order(useless: bytes) -> None:
    client, exit_ = new_client(), new_exit()
    noise = client._noise

    class Useless:
        public = useless

    def write_e() -> bytes:
        noise._e = Useless()  # type: ignore[assignment]
        noise._mix_e(useless)
        return useless

    # The tokens of a first flight by hand, with an ephemeral key that gives an all-zero secret.
    noise._mix_psk()
    first = (
        write_e()
        + noise._write_e1()
        + noise._symmetric.encrypt_and_hash(HandshakeOffer((2,), BOTH, 0).encode())
    )
    exit_.read_first(first)
    with pytest.raises(HandshakeError, match="X25519"):
        exit_.write_second()


# --- the choices ---


@pytest.mark.parametrize(
    ("client", "exit_", "chosen"),
    [
        ((AES, CHACHA), (AES, CHACHA), AES),
        ((CHACHA, AES), (AES, CHACHA), CHACHA),
        ((AES, CHACHA), (CHACHA, AES), CHACHA),
        ((CHACHA, AES), (CHACHA, AES), CHACHA),
        ((CHACHA,), (AES, CHACHA), CHACHA),
        ((AES,), (AES,), AES),
        ((AES,), (CHACHA, AES), None),
        ((CHACHA,), (AES,), None),
    ],
)
def test_ciphers(client: tuple[Cipher, ...], exit_: tuple[Cipher, ...], chosen: Cipher | None) -> None:
    ours, theirs = new_client(ciphers=client), new_exit(ciphers=exit_)
    if chosen is None:
        with pytest.raises(HandshakeError, match="no cipher"):
            theirs.read_first(ours.write_first())
    else:
        flights(ours, theirs)
        assert ours.result.cipher is theirs.result.cipher is chosen


def test_default_ciphers_agree() -> None:
    client, exit_ = new_client(ciphers=None), new_exit(ciphers=None)
    flights(client, exit_)
    assert client.result.cipher is exit_.result.cipher


def test_unknown_offers_mean_nothing() -> None:
    client, exit_ = new_client(), new_exit()
    client._offer = HandshakeOffer((9, 2, 77), (200, AES, CHACHA), 2**32 - 1)
    flights(client, exit_)
    assert exit_.result.cipher is CHACHA
    assert exit_.result.features == 0
    assert exit_.outdated is None


@pytest.mark.parametrize(
    "choice",
    [
        Choice(2, AES, 0),
        Choice(2, CHACHA, 1),
        Choice(2, CHACHA, 2**31),
    ],
)
def test_choices_that_were_not_offered(choice: Choice) -> None:
    client, exit_ = new_client(ciphers=(CHACHA,)), new_exit()
    exit_.read_first(client.write_first())
    exit_._choice = choice
    with pytest.raises(HandshakeError, match="not offered"):
        client.read_second(exit_.write_second())


# --- the order of the calls ---


def test_client_calls_out_of_turn() -> None:
    client = new_client()
    for early in (
        client.write_third,
        lambda: client.read_second(b""),
        lambda: client.result,
        lambda: client.join_hash,
    ):
        with pytest.raises(LocalError):
            early()
    exit_ = new_exit()
    exit_.read_first(client.write_first())
    with pytest.raises(LocalError):
        client.write_first()
    client.read_second(exit_.write_second())
    with pytest.raises(LocalError):
        _ = client.result
    client.write_third()
    with pytest.raises(LocalError):
        client.write_third()


def test_exit_calls_out_of_turn() -> None:
    client, exit_ = new_client(), new_exit()
    for early in (
        exit_.write_second,
        lambda: exit_.read_third(b""),
        lambda: exit_.result,
        lambda: exit_.joins,
        lambda: exit_.invite,
        lambda: exit_.join_hash,
        lambda: exit_.pattern,
        lambda: exit_.outdated,
        lambda: exit_.third_size,
    ):
        with pytest.raises(LocalError):
            early()
    first = client.write_first()
    exit_.read_first(first)
    with pytest.raises(LocalError):
        exit_.read_first(first)
    client.read_second(exit_.write_second())
    for call in (exit_.write_second, lambda: exit_.joins, lambda: exit_.result, lambda: exit_.path):
        with pytest.raises(LocalError):
            call()


def test_every_step_of_the_tables_is_a_method() -> None:
    for side, steps in (
        (ClientHandshake, client_handshake._CLIENT_STEPS),
        (ShortClientHandshake, client_handshake._CLIENT_STEPS),
        (ExitHandshake, exit_handshake._EXIT_STEPS),
        (ExitHandshake, exit_handshake._SHORT_EXIT_STEPS),
        (ExitHandshake, exit_handshake._OUTDATED_EXIT_STEPS),
    ):
        assert all(callable(getattr(side, call)) for _, call in steps)


@pytest.mark.parametrize("psk", [b"", bytes(31), bytes(33)])
def test_psk_size(psk: bytes) -> None:
    with pytest.raises(LocalError):
        new_client(psk=psk)
    with pytest.raises(LocalError):
        new_exit(psk=psk)
