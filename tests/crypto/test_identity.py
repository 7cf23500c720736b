"""Peer ids as text, identities as files, and signatures that only hold together."""

from __future__ import annotations

import base64
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.crypto.identity import PUBLIC_SIZE, SIGNATURE_SIZE, Identity, PeerId, verify_signatures
from cryprq_proxy.crypto.primitives import ed25519_verify, select_provider, sha256
from cryprq_proxy.errors import ConfigError, LocalError

PROVIDER = select_provider()
SEEDS = bytes(range(32)), bytes(range(32, 64))
IDENTITY = Identity(PROVIDER, *SEEDS)
FILE = Path("identity")
LINE = b"cryprq-identity-1 " + base64.b64encode(SEEDS[0] + SEEDS[1]) + b"\n"


# --- peer ids ---


@given(st.binary(min_size=32, max_size=32))
def test_peer_id_round_trip(raw: bytes) -> None:
    peer = PeerId(raw)
    text = str(peer)
    assert len(text) == 52
    assert text == text.lower()
    for spelling in (text, text.upper(), text.title()):
        assert PeerId.parse(spelling) == peer
        assert hash(PeerId.parse(spelling)) == hash(peer)
    assert bytes(peer) == raw


@given(st.text() | st.text("abcdefghijklmnopqrstuvwxyzABCDEFG234567=", min_size=50, max_size=54))
def test_peer_id_parse_raises_only_config_errors(text: str) -> None:
    try:
        peer = PeerId.parse(text)
    except ConfigError as error:
        assert str(error)
        return
    assert str(peer) == text.lower()


def test_peer_id_pad_bits() -> None:
    """260 bits for 256: of the 32 last characters that a text could have, two stand for an id."""
    text = str(PeerId(bytes(32)))
    accepted = []
    for last in "abcdefghijklmnopqrstuvwxyz234567":
        try:
            accepted.append(PeerId.parse(text[:-1] + last))
        except ConfigError as error:
            assert "last character" in str(error)
    assert accepted == [PeerId(bytes(32)), PeerId(bytes(31) + b"\1")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a" * 51,
        "a" * 53,
        "a" * 51 + "=",
        "a" * 51 + "1",
        "a" * 51 + " ",
        "\u0131" * 52,
        "\u212a" + "a" * 51,
    ],
)
def test_peer_id_wrong_texts(text: str) -> None:
    with pytest.raises(ConfigError):
        PeerId.parse(text)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_peer_id_wrong_size(size: int) -> None:
    with pytest.raises(LocalError):
        PeerId(bytes(size))


def test_peer_id_repr_is_short() -> None:
    assert repr(PeerId(bytes(32))) == "PeerId(aaaaaaaa...)"


def test_peer_id_is_the_hash_of_both_keys() -> None:
    assert len(IDENTITY.public) == PUBLIC_SIZE == 1984
    assert bytes(IDENTITY.peer_id) == sha256(IDENTITY.public)
    # The frozen one of these seeds: an id must never change.
    assert str(IDENTITY.peer_id) == "rtiqylgfzkjtmuwc2qcjncd6b5ovrea2mwym3oxs643ggsepckca"


def test_providers_give_the_same_id() -> None:
    assert Identity(select_provider("pure"), *SEEDS).peer_id == IDENTITY.peer_id


# --- signatures ---


def test_both_signatures_count() -> None:
    data = b"data"
    public, signature = IDENTITY.public, IDENTITY.sign(data)
    assert len(signature) == SIGNATURE_SIZE == 3373
    assert verify_signatures(PROVIDER, public, signature, data)
    assert not verify_signatures(PROVIDER, public, signature, b"date")
    other = Identity.generate(PROVIDER)
    theirs = other.sign(data)
    for key, ed25519, mldsa in itertools.product(
        (public, other.public), (signature, theirs), (signature, theirs)
    ):
        matching = signature if key == public else theirs
        expected = ed25519 is matching and mldsa is matching
        assert verify_signatures(PROVIDER, key, ed25519[:64] + mldsa[64:], data) is expected
    mixed = public[:32] + other.public[32:]
    assert verify_signatures(PROVIDER, mixed, signature[:64] + theirs[64:], data)  # but its id is nobody's
    assert PeerId.of(mixed) not in {IDENTITY.peer_id, other.peer_id}


@pytest.mark.parametrize("offset", [*range(0, SIGNATURE_SIZE, 97), 63, 64, SIGNATURE_SIZE - 1])
def test_each_byte_of_a_signature_counts(offset: int) -> None:
    wrong = bytearray(IDENTITY.sign(b"data"))
    wrong[offset] ^= 1
    assert not verify_signatures(PROVIDER, IDENTITY.public, bytes(wrong), b"data")


@pytest.mark.parametrize("size", [0, 1, 32, 64, 3372, 3374])
def test_sizes_of_keys_and_signatures(size: int) -> None:
    assert not verify_signatures(PROVIDER, IDENTITY.public, bytes(size), b"data")
    assert not verify_signatures(PROVIDER, bytes(size), IDENTITY.sign(b"data"), b"data")


IDENTITY_POINT = b"\1" + bytes(31)
SMALL_ORDER = [
    IDENTITY_POINT,
    b"\xec" + b"\xff" * 30 + b"\x7f",
    bytes(32),
    bytes(31) + b"\x80",
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
]


def test_a_small_order_key_has_signatures_of_nobody() -> None:
    """The reason for the rule: with R the neutral point and S = 0, this holds for any data."""
    assert ed25519_verify(IDENTITY_POINT, IDENTITY_POINT + bytes(32), b"anything")


@pytest.mark.parametrize("small", SMALL_ORDER, ids=bytes.hex)
def test_small_order_keys_do_not_pass(small: bytes) -> None:
    for mldsa_public, mldsa_signature in (
        (IDENTITY.public[32:], bytes(3309)),
        (bytes(1952), bytes(3309)),
        (IDENTITY.public[32:], IDENTITY.sign(b"other data")[64:]),
    ):
        for point in SMALL_ORDER:
            signature = point + bytes(32) + mldsa_signature
            assert not verify_signatures(PROVIDER, small + mldsa_public, signature, b"data")


# --- the file ---


def test_the_format() -> None:
    assert IDENTITY.line() == LINE
    assert Identity.parse(PROVIDER, LINE, FILE).peer_id == IDENTITY.peer_id


@pytest.mark.parametrize(
    "content",
    [
        b"",
        LINE[:-1],
        LINE + b"\n",
        LINE[:-1] + b"\r\n",
        b" " + LINE,
        LINE.replace(b"-1 ", b"-2 "),
        LINE.replace(b"-1 ", b"-1  "),
        LINE.replace(b"==", b"="),
        LINE.replace(b"==\n", b"A=\n"),
        LINE[:-4] + b"x==\n",  # other pad bits: a second spelling of the same seeds
        b"\xff" * len(LINE),
        LINE * 1000,
    ],
)
def test_other_formats_are_refused(content: bytes) -> None:
    with pytest.raises(ConfigError, match="not an identity of this version"):
        Identity.parse(PROVIDER, content, FILE)


@given(st.binary(max_size=200))
def test_parse_raises_only_config_errors(content: bytes) -> None:
    with pytest.raises(ConfigError):
        Identity.parse(PROVIDER, content, FILE)


def test_no_secrets_in_repr() -> None:
    text = repr(IDENTITY)
    assert text == f"Identity({IDENTITY.peer_id!r})"
    for seed in SEEDS:
        assert seed.hex() not in text


@pytest.mark.parametrize("size", [0, 31, 33])
def test_seed_sizes(size: int) -> None:
    with pytest.raises(LocalError):
        Identity(PROVIDER, bytes(size), bytes(32))
    with pytest.raises(LocalError):
        Identity(PROVIDER, bytes(32), bytes(size))
