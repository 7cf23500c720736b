"""What the flights carry: every payload byte by byte, and any bytes at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.crypto.payloads import (
    JOIN_CLIENT,
    VERSION,
    Choice,
    Claim,
    HandshakeOffer,
    InviteClaim,
    JoinClaim,
    Pattern,
    choose,
    decode_path,
    decode_proof,
    encode_path,
    encode_proof,
    join_proof,
    join_ticket,
    version_mismatch,
)
from cryprq_proxy.crypto.primitives import Cipher, hkdf, hmac_sha256
from cryprq_proxy.errors import HandshakeError, LocalError

AES, CHACHA = Cipher.AES_256_GCM, Cipher.CHACHA20_POLY1305
BOTH = (CHACHA, AES)
INVITE = InviteClaim(bytes(range(100, 116)))

# --- the offer and the choice ---

values = st.lists(st.integers(0, 255), min_size=1, max_size=26).map(tuple)
offers = st.builds(
    HandshakeOffer,
    values.map(lambda versions: (*versions, VERSION)),
    values,
    st.integers(0, 2**32 - 1),
    st.sampled_from(Pattern),
)


def test_the_bytes_of_an_offer() -> None:
    offer = HandshakeOffer((2,), (CHACHA, AES), 3, Pattern.SHORT)
    assert offer.encode() == bytes.fromhex("01 02  02 02 01  00000003  01")


@given(offers)
def test_offer_round_trip(offer: HandshakeOffer) -> None:
    encoded = offer.encode()
    assert 9 <= len(encoded) <= 64
    assert HandshakeOffer.decode(encoded) == offer
    for size in range(len(encoded)):
        with pytest.raises(HandshakeError):
            HandshakeOffer.decode(encoded[:size])
    with pytest.raises(HandshakeError):
        HandshakeOffer.decode(encoded + b"\0")


@given(
    st.binary(max_size=80)
    | st.builds(lambda rest: bytes((1, VERSION)) + rest, st.binary(min_size=7, max_size=12))
)
def test_offer_of_any_bytes(payload: bytes) -> None:
    try:
        offer = HandshakeOffer.decode(payload)
    except HandshakeError:
        return
    if VERSION in offer.versions:
        assert offer.encode() == payload
    try:
        choice = choose(offer, BOTH)
    except HandshakeError:
        return
    assert Choice.decode(choice.encode()) == choice
    assert choice.version == VERSION
    if VERSION in offer.versions:
        assert choice.cipher in offer.ciphers


@pytest.mark.parametrize("versions", [(VERSION,), (9,)])
def test_an_offer_that_is_too_long(versions: tuple[int, ...]) -> None:
    offer = HandshakeOffer((*versions, *range(10, 40)), tuple(range(28)), 0)
    assert len(offer.encode()) == 66
    with pytest.raises(HandshakeError, match="too long"):
        HandshakeOffer.decode(offer.encode())


@pytest.mark.parametrize("pattern", [2, 255])
def test_a_pattern_that_does_not_exist(pattern: int) -> None:
    payload = HandshakeOffer((VERSION,), BOTH, 0).encode()[:-1] + bytes((pattern,))
    with pytest.raises(HandshakeError, match="pattern"):
        HandshakeOffer.decode(payload)


@given(values.filter(lambda versions: VERSION not in versions), st.binary(max_size=30))
def test_offers_of_other_versions(versions: tuple[int, ...], rest: bytes) -> None:
    """Only the versions are read, and the choice names ours."""
    offer = HandshakeOffer.decode(bytes((len(versions), *versions)) + rest)
    assert offer == HandshakeOffer(versions, (), 0, Pattern.SIGNED)
    assert choose(offer, BOTH, 3) == Choice(VERSION, CHACHA, 0)


def test_the_offer_of_version_1() -> None:
    assert HandshakeOffer.decode(bytes.fromhex("01 01  02 02 01  00000003")).versions == (1,)


@pytest.mark.parametrize(
    ("theirs", "peer", "own", "sentence"),
    [
        (
            1,
            "client",
            "exit",
            "the client speaks version 1 of the protocol and this exit version 2; update the client",
        ),
        (
            3,
            "client",
            "exit",
            "the client speaks version 3 of the protocol and this exit version 2; update this exit",
        ),
        (
            1,
            "exit",
            "client",
            "the exit speaks version 1 of the protocol and this client version 2; update the exit",
        ),
        (
            3,
            "exit",
            "client",
            "the exit speaks version 3 of the protocol and this client version 2; update this client",
        ),
    ],
)
def test_which_side_to_update(theirs: int, peer: str, own: str, sentence: str) -> None:
    assert version_mismatch(theirs, peer, own) == sentence


@given(st.binary(max_size=10) | st.binary(min_size=5, max_size=5).map(lambda rest: b"\2" + rest))
def test_choice_of_any_bytes(payload: bytes) -> None:
    try:
        choice = Choice.decode(payload)
    except HandshakeError:
        return
    assert choice.version == payload[0]
    if choice.version == VERSION:
        assert choice.encode() == payload


@given(st.integers(0, 255).filter(lambda version: version != VERSION), st.binary(max_size=30))
def test_choices_of_other_versions(version: int, rest: bytes) -> None:
    assert Choice.decode(bytes((version,)) + rest) == Choice(version, CHACHA, 0)


@pytest.mark.parametrize("payload", ["", "02", "02 02 000000", "02 02 0000000000", "02 03 00000000"])
def test_choices_that_are_none(payload: str) -> None:
    with pytest.raises(HandshakeError):
        Choice.decode(bytes.fromhex(payload))


# --- the third flight ---

joins = st.builds(
    JoinClaim,
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**32 - 1),
    st.binary(min_size=32, max_size=32),
)
invites = st.binary(min_size=16, max_size=16).map(InviteClaim)


@given(st.none() | joins | invites)
def test_proof_round_trip(claim: Claim) -> None:
    encoded = encode_proof(claim)
    assert decode_proof(encoded) == claim
    for size in range(len(encoded)):
        with pytest.raises(HandshakeError):
            decode_proof(encoded[:size])
    with pytest.raises(HandshakeError):
        decode_proof(encoded + b"\0")


@given(
    st.binary(max_size=130)
    | st.builds(lambda kind, rest: bytes((kind,)) + rest, st.integers(0, 3), st.binary(max_size=54))
)
def test_proof_of_any_bytes(payload: bytes) -> None:
    try:
        claim = decode_proof(payload)
    except HandshakeError:
        return
    assert encode_proof(claim) == payload


def test_an_invite_is_seventeen_bytes() -> None:
    assert encode_proof(INVITE) == b"\2" + INVITE.secret
    assert decode_proof(b"\2" + bytes(16)) == InviteClaim(bytes(16))
    for size in (0, 15, 17, 60):
        with pytest.raises(HandshakeError):
            decode_proof(b"\2" + bytes(size))
        with pytest.raises(LocalError):
            InviteClaim(bytes(size))


def test_the_bytes_of_a_join() -> None:
    claim = JoinClaim(bytes(range(16)), 0x01020304, bytes(range(32)))
    assert encode_proof(claim) == b"\1" + bytes(range(16)) + b"\1\2\3\4" + bytes(range(32))


def test_what_proof_and_ticket_cover() -> None:
    secret, h = bytes(range(32)), bytes(32)
    assert join_proof(secret, JOIN_CLIENT, h, 7) == hmac_sha256(secret, b"resume C" + h + b"\0\0\0\7")
    assert join_ticket(secret, 7) == hkdf(secret, b"", b"cryprq/2 ticket\0\0\0\7", 16)


@pytest.mark.parametrize("kind", [3, 255])
def test_unknown_kinds_abort(kind: int) -> None:
    for size in (1, 17, 53):
        with pytest.raises(HandshakeError):
            decode_proof(bytes((kind,)) + bytes(size - 1))


@pytest.mark.parametrize("arguments", [(15, 32), (17, 32), (16, 31), (16, 33)])
def test_the_sizes_of_a_join(arguments: tuple[int, int]) -> None:
    with pytest.raises(LocalError):
        JoinClaim(bytes(arguments[0]), 0, bytes(arguments[1]))


@pytest.mark.parametrize("path", [-1, 2**32])
def test_the_numbers_of_paths(path: int) -> None:
    for call in (
        lambda: join_proof(bytes(32), JOIN_CLIENT, bytes(32), path),
        lambda: join_ticket(bytes(32), path),
        lambda: encode_path(path),
    ):
        with pytest.raises(LocalError):
            call()


@given(st.binary(max_size=8) | st.binary(min_size=4, max_size=4))
def test_path_of_any_bytes(payload: bytes) -> None:
    try:
        path = decode_path(payload)
    except HandshakeError:
        assert len(payload) != 4
        return
    assert encode_path(path) == payload
