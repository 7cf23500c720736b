"""The primitives against published vectors, and the two providers against each other."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from dilithium_py.ml_dsa import ML_DSA_65
from kyber_py.ml_kem import ML_KEM_768

from cryprq_proxy.crypto import primitives
from cryprq_proxy.crypto.primitives import (
    AEAD_TAG_SIZE,
    Cipher,
    Ed25519Key,
    InvalidTag,
    Provider,
    X25519Key,
    ciphers_by_speed,
    constant_time_equal,
    ed25519_verify,
    hkdf,
    hmac_sha256,
    new_aead,
    select_provider,
)
from cryprq_proxy.errors import ConfigError, HandshakeError, LocalError

VECTORS = Path(__file__).parent.parent / "vectors"
MLKEM = json.loads((VECTORS / "mlkem768.json").read_text())
MLDSA = json.loads((VECTORS / "mldsa65.json").read_text())
PROVIDERS = ("cryptography", "pure")

unhex = bytes.fromhex


def fixed(*values: bytes) -> Callable[[int], bytes]:
    """Entropy that yields these values, in order, and no others."""
    remaining = iter(values)

    def take(size: int) -> bytes:
        value = next(remaining)
        assert len(value) == size
        return value

    return take


def case_id(case: Any) -> str:
    return f"{case['tcId']}"


@pytest.fixture(params=PROVIDERS)
def provider(request: pytest.FixtureRequest) -> Provider:
    return select_provider(request.param)


# --- NIST ACVP ---


@pytest.mark.parametrize("case", MLKEM["keyGen"], ids=case_id)
def test_mlkem_key_generation(provider: Provider, case: dict[str, str]) -> None:
    key = provider.generate_kem(fixed(unhex(case["d"]) + unhex(case["z"])))
    assert key.public == unhex(case["ek"])


@pytest.mark.parametrize("case", MLKEM["encapsulation"], ids=case_id)
def test_mlkem_encapsulation(case: dict[str, str]) -> None:
    secret, ciphertext = select_provider("pure").encapsulate(unhex(case["ek"]), fixed(unhex(case["m"])))
    assert (secret, ciphertext) == (unhex(case["k"]), unhex(case["c"]))


@pytest.mark.parametrize("case", MLKEM["decapsulation"]["tests"], ids=case_id)
def test_mlkem_decapsulation(case: dict[str, str]) -> None:
    # Only the pure package takes an expanded key; test_providers_agree_on_decapsulation ties the fast one to it.
    assert ML_KEM_768.decaps(unhex(MLKEM["decapsulation"]["dk"]), unhex(case["c"])) == unhex(case["k"])


@pytest.mark.parametrize("case", MLDSA["keyGen"], ids=case_id)
def test_mldsa_key_generation(provider: Provider, case: dict[str, str]) -> None:
    assert provider.mldsa_key(unhex(case["seed"])).public == unhex(case["pk"])


@pytest.mark.parametrize("case", MLDSA["sigGen"], ids=case_id)
def test_mldsa_signing(case: dict[str, str]) -> None:
    signature = ML_DSA_65._sign_internal(unhex(case["sk"]), unhex(case["message"]), unhex(case["rnd"]))
    assert signature == unhex(case["signature"])


def verify_internal(public: bytes, message: bytes, signature: bytes) -> bool:
    """FIPS 204, algorithm 8, by OpenSSL: mu is computed here, as there is no other way to its internal interface."""
    tr = hashlib.shake_256(public).digest(64)
    mu = hashlib.shake_256(tr + message).digest(64)
    try:
        MLDSA65PublicKey.from_public_bytes(public).verify_mu(signature, mu)
    except InvalidSignature:
        return False
    return True


@pytest.mark.parametrize(
    "case", MLDSA["sigVer"]["tests"], ids=lambda case: f"{case['tcId']}-{case['reason']}"
)
def test_mldsa_verification(case: dict[str, Any]) -> None:
    public, message = unhex(MLDSA["sigVer"]["pk"]), unhex(case["message"])
    signature = unhex(case["signature"])
    assert verify_internal(public, message, signature) is case["testPassed"]
    assert ML_DSA_65._verify_internal(public, message, signature) is case["testPassed"]


# --- ML-KEM ---


def test_providers_agree_on_decapsulation() -> None:
    seed = os.urandom(64)
    keys = [select_provider(name).generate_kem(fixed(seed)) for name in PROVIDERS]
    assert keys[0].public == keys[1].public
    for name in PROVIDERS:
        secret, ciphertext = select_provider(name).encapsulate(keys[0].public)
        assert [key.decapsulate(ciphertext) for key in keys] == [secret, secret]
        wrong = bytes((ciphertext[0] ^ 1,)) + ciphertext[1:]
        rejected = keys[0].decapsulate(wrong)
        assert rejected != secret
        assert keys[1].decapsulate(wrong) == rejected  # implicit rejection is deterministic


def test_encapsulation_needs_a_canonical_key(provider: Provider) -> None:
    public = provider.generate_kem().public
    q = 3329
    for coefficient in (q, q + 1, 4095):  # in the first coefficient: 12 bits, little endian
        malformed = bytes((coefficient & 0xFF, coefficient >> 8 | public[1] & 0xF0)) + public[2:]
        with pytest.raises(HandshakeError):
            provider.encapsulate(malformed)
    highest = bytes((q - 1 & 0xFF, q - 1 >> 8 | public[1] & 0xF0)) + public[2:]
    assert len(provider.encapsulate(highest)[1]) == 1088


@pytest.mark.parametrize("size", [0, 1, 1183, 1185, 1568])
def test_encapsulation_needs_the_right_length(provider: Provider, size: int) -> None:
    with pytest.raises(HandshakeError):
        provider.encapsulate(bytes(size))


@pytest.mark.parametrize("size", [0, 1, 1087, 1089, 1568])
def test_decapsulation_needs_the_right_length(provider: Provider, size: int) -> None:
    with pytest.raises(HandshakeError):
        provider.generate_kem().decapsulate(bytes(size))


# --- ML-DSA ---


@pytest.mark.parametrize(("signer", "verifier"), list(itertools.product(PROVIDERS, PROVIDERS)))
def test_mldsa_between_providers(signer: str, verifier: str) -> None:
    key = select_provider(signer).mldsa_key(bytes(range(32)))
    signature = key.sign(b"data", b"context")
    verify = select_provider(verifier).mldsa_verify
    assert verify(key.public, signature, b"data", b"context")
    assert not verify(key.public, signature, b"date", b"context")
    assert not verify(key.public, signature, b"data", b"contexT")
    assert not verify(key.public, signature, b"tdata", b"contex")


def test_mldsa_verify_refuses_garbage(provider: Provider) -> None:
    key = provider.mldsa_key(bytes(32))
    for public in (b"", bytes(1951), bytes(1952), b"\xff" * 1952, bytes(1953), key.public):
        for signature in (b"", bytes(3308), bytes(3309), b"\xff" * 3309, bytes(3310)):
            assert not provider.mldsa_verify(public, signature, b"data", b"")


def test_signatures_are_hedged(provider: Provider) -> None:
    key = provider.mldsa_key(bytes(32))
    assert key.sign(b"data", b"") != key.sign(b"data", b"")


# --- the choice of a provider ---


class NoPostQuantum:
    """An OpenSSL before 3.5."""

    def mlkem_supported(self) -> bool:
        return False

    def mldsa_supported(self) -> bool:
        return False


def choose(name: str | None) -> Provider:
    return select_provider.__wrapped__(name)  # without the cache


def test_fast_provider_by_default() -> None:
    assert (select_provider().name, select_provider().fast) == ("cryptography", True)
    assert (choose("pure").name, choose("pure").fast) == ("kyber-py + dilithium-py", False)


def test_unknown_provider() -> None:
    with pytest.raises(ConfigError, match="no provider 'openssl'"):
        choose("openssl")


def test_old_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(primitives, "backend", NoPostQuantum())
    assert not choose(None).fast
    with pytest.raises(ConfigError, match="OpenSSL"):
        choose("cryptography")


@pytest.mark.parametrize("package", ["kyber_py.ml_kem", "dilithium_py.ml_dsa"])
def test_pure_packages_missing(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match="not installed"):
        choose("pure")


# --- X25519, Ed25519 ---


def test_x25519_of_rfc_7748() -> None:
    bob = X25519Key(fixed(unhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")))
    alice = unhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert bob.public == unhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    assert bob.exchange(alice) == unhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")


SMALL_ORDER_X25519 = [
    bytes(32),
    b"\1" + bytes(31),
    unhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    unhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    unhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    unhex("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    unhex("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


@pytest.mark.parametrize("peer", [*SMALL_ORDER_X25519, b"", bytes(31), bytes(33)], ids=bytes.hex)
def test_x25519_refuses_useless_keys(peer: bytes) -> None:
    with pytest.raises(HandshakeError):
        X25519Key().exchange(peer)


def test_ed25519_of_rfc_8032() -> None:
    key = Ed25519Key(unhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert key.public == unhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    signature = key.sign(b"")
    assert signature == unhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )
    assert ed25519_verify(key.public, signature, b"")
    assert not ed25519_verify(key.public, signature, b"x")
    assert not ed25519_verify(key.public, signature[:-1], b"")
    assert not ed25519_verify(key.public[:-1], signature, b"")


# --- hashes ---


def test_hmac_of_rfc_4231() -> None:
    assert hmac_sha256(b"Jefe", b"what do ya want for nothing?") == unhex(
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


def test_hkdf_of_rfc_5869() -> None:
    okm = hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert okm == unhex(
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_hkdf_limits() -> None:
    assert len(hkdf(b"", b"", b"", 8160)) == 8160
    assert hkdf(b"", b"", b"", 0) == b""
    for length in (-1, 8161):
        with pytest.raises(LocalError):
            hkdf(b"", b"", b"", length)


def test_constant_time_equal() -> None:
    assert constant_time_equal(b"abc", b"abc")
    assert not constant_time_equal(b"abc", b"abd")
    assert not constant_time_equal(b"abc", b"ab")


# --- AEAD ---


@pytest.mark.parametrize("cipher", Cipher)
def test_aead(cipher: Cipher) -> None:
    aead, nonce = new_aead(cipher, bytes(32)), bytes(12)
    sealed = aead.encrypt(nonce, b"data", b"ad")
    assert len(sealed) == 4 + AEAD_TAG_SIZE
    buffer = bytearray(len(sealed))
    assert aead.encrypt_into(nonce, memoryview(b"data"), b"ad", buffer) == len(sealed)
    assert buffer == sealed
    assert aead.decrypt(nonce, buffer, b"ad") == b"data"
    opened = bytearray(4)
    assert aead.decrypt_into(nonce, sealed, b"ad", opened) == 4
    assert opened == b"data"
    for bad in (sealed[:-1], sealed + b"\0", b"", bytes(20)):
        with pytest.raises(InvalidTag):
            aead.decrypt(nonce, bad, b"ad")
    with pytest.raises(InvalidTag):
        aead.decrypt(nonce, sealed, b"da")


def test_the_ciphers_are_different() -> None:
    assert len({new_aead(cipher, bytes(32)).encrypt(bytes(12), b"", None) for cipher in Cipher}) == len(
        Cipher
    )


@pytest.mark.parametrize("faster", Cipher)
def test_ciphers_by_speed(monkeypatch: pytest.MonkeyPatch, faster: Cipher) -> None:
    monkeypatch.setattr(primitives, "_probe", lambda cipher: 1 if cipher is faster else 2)
    order = ciphers_by_speed.__wrapped__()
    assert order[0] is faster
    assert set(order) == set(Cipher)


def test_ciphers_by_speed_measures() -> None:
    assert set(ciphers_by_speed()) == set(Cipher)
    assert ciphers_by_speed() is ciphers_by_speed()
