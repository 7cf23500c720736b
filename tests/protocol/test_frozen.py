"""frozen.json from its own randomness, with what the page says and no line of the program's protocol.

The program's code is used for nothing but ML-KEM and ML-DSA with given randomness, which OpenSSL does not offer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from cryprq_proxy.crypto.primitives import select_provider
from tests.support import second_flights as flights
from tests.support.pages import ROOT, table

FROZEN: dict[str, Any] = json.loads((ROOT / "tests/vectors/frozen.json").read_text())
DRAWN: dict[str, dict[str, str]] = FROZEN["randomness"]
PAGE = ROOT / "docs/protocol.md"
PURE = select_provider("pure")


def drawn(label: str, name: str) -> bytes:
    return bytes.fromhex(DRAWN[label][name])


def given(value: bytes) -> Callable[[int], bytes]:
    return lambda size: value


class Signer:
    """An identity, and what it draws for one signature."""

    def __init__(self, identity: str, label: str) -> None:
        self._ed25519 = Ed25519PrivateKey.from_private_bytes(drawn(identity, "Ed25519 seed"))
        self._mldsa = PURE.mldsa_key(drawn(identity, "ML-DSA-65 seed"))
        self._label = label
        self.public = self._ed25519.public_key().public_bytes_raw() + self._mldsa.public

    def sign(self, data: bytes) -> bytes:
        rnd = given(drawn(self._label, "ML-DSA-65 rnd"))
        return self._ed25519.sign(data) + self._mldsa.sign(data, flights.CONTEXT, rnd)


class Both:
    """Both sides of an exchange in one symmetric state; `steps` are the values that the page prints."""

    def __init__(self, name: bytes, prologue: bytes, psk: bytes, asks: str, answers: str) -> None:
        self.noise = flights.Noise(name, prologue)
        self._psk = psk
        self._asks, self._answers = asks, answers
        self._e = X25519PrivateKey.from_private_bytes(drawn(asks, "X25519"))
        self._e1 = MLKEM768PrivateKey.from_seed_bytes(drawn(asks, "ML-KEM-768 seed"))
        self.steps: dict[str, str] = {}

    def first(self, payload: bytes) -> bytes:
        noise = self.noise
        noise.mix_key_and_hash(self._psk)
        e = self._e.public_key().public_bytes_raw()
        noise.mix_hash(e)
        noise.mix_key(e)
        return e + noise.encrypt(self._e1.public_key().public_bytes_raw()) + noise.encrypt(payload)

    def second(self) -> bytes:
        """Up to `ekem1`."""
        noise = self.noise
        private = X25519PrivateKey.from_private_bytes(drawn(self._answers, "X25519"))
        e = private.public_key().public_bytes_raw()
        noise.mix_hash(e)
        noise.mix_key(e)
        shared = private.exchange(X25519PublicKey.from_public_bytes(self._e.public_key().public_bytes_raw()))
        noise.mix_key(shared)
        m = given(drawn(self._answers, "ML-KEM-768 m"))
        secret, ciphertext = PURE.encapsulate(self._e1.public_key().public_bytes_raw(), m)
        sealed = noise.encrypt(ciphertext)
        noise.mix_key(secret)
        self.steps |= {
            "X25519 of both `e`": shared.hex(),
            "secret of ML-KEM-768": secret.hex(),
            "k after `ekem1`": noise.k.hex(),
        }
        return e + sealed

    def secret(self, label: str, size: int = 32) -> str:
        return flights.hkdf(self.noise.ck, b"cryprq/2 " + label.encode(), size, self.noise.h).hex()


EXIT_ID = flights.sha256(Signer("exit identity", "exit").public)
CHOICE = bytes([2, 2, 0, 0, 0, 0])


def link(asks: str, answers: str) -> Both:
    psk = flights.sha256(b"cryprq/1 psk0" + EXIT_ID)
    return Both(flights.LINK_NAME, b"cryprq/1 link" + EXIT_ID, psk, asks, answers)


def offer(pattern: int) -> bytes:
    return bytes([1, 2, 2, 2, 1, 0, 0, 0, 0, pattern])


def signed(both: Both, signer: Signer, role: bytes) -> bytes:
    s = both.noise.encrypt(signer.public)
    both.steps[f"h after `s` of the {'exit' if role == b'S' else 'client'}"] = both.noise.h.hex()
    return s + both.noise.encrypt(signer.sign(b"cryprq/1 handshake\0" + role + both.noise.h))


def handshake(asks: str, answers: str, third: Callable[[bytes], bytes]) -> tuple[Both, list[str]]:
    """The signed pattern; `third` makes payload 3 of h2. Returns the flights."""
    both = link(asks, answers)
    flight1 = both.first(offer(0))
    flight2 = both.second() + signed(both, Signer("exit identity", answers), b"S")
    flight2 += both.noise.encrypt(CHOICE)
    h2 = both.noise.h
    both.steps["h2, after payload 2"] = h2.hex()
    flight3 = signed(both, Signer("client identity", asks), b"C") + both.noise.encrypt(third(h2))
    both.steps |= {"ck after payload 3": both.noise.ck.hex(), "h after payload 3": both.noise.h.hex()}
    return both, [flight.hex() for flight in (flight1, flight2, flight3)]


def claim(h2: bytes) -> bytes:
    path = (7).to_bytes(4)
    proof = flights.proof(drawn("old secret", "resume secret"), b"C", h2, 7)
    return b"\1" + drawn("old session", "session id") + path + proof


def short() -> tuple[Both, list[str]]:
    both, resume = link("short client", "short exit"), bytes.fromhex(FROZEN["epoch 1"]["resume"])
    flight1 = both.first(offer(1))
    flight2 = both.second() + both.noise.encrypt(CHOICE)
    flight3 = both.noise.encrypt(flights.ticket(resume, 8))
    both.noise.mix_key_and_hash(resume)
    both.steps["k after `resume`"] = both.noise.k.hex()
    flight3 += both.noise.encrypt((8).to_bytes(4))
    both.steps |= {"ck after payload 3": both.noise.ck.hex(), "h after payload 3": both.noise.h.hex()}
    return both, [flight.hex() for flight in (flight1, flight2, flight3)]


@pytest.fixture(scope="module", name="signed_pattern")
def _signed_pattern() -> Iterator[tuple[Both, list[str]]]:
    yield handshake("client", "exit", claim)


def test_the_signed_pattern(signed_pattern: tuple[Both, list[str]]) -> None:
    both, made = signed_pattern
    assert made == [FROZEN[flight] for flight in ("first", "second", "third")]
    labels = {"records": "records", "client lane": "client_lane", "exit lane": "exit_lane", "chain": "chain"}
    for label, name in {**labels, "resume": "resume"}.items():
        assert both.secret(label) == FROZEN["epoch 0"][name]
    assert both.secret("session id", 16) == FROZEN["session_id"]
    assert both.noise.h.hex() == FROZEN["epoch 0"]["hash"]


def test_the_short_pattern() -> None:
    both, made = short()
    assert made == [FROZEN["short"][flight] for flight in ("first", "second", "third")]
    assert both.secret("records") == FROZEN["short"]["records"]


def test_the_invited_handshake() -> None:
    secret = drawn("invite", "secret")
    both, made = handshake("invited client", "inviting exit", lambda _: b"\2" + secret)
    invite = FROZEN["invite"]
    assert made == [invite[flight] for flight in ("first", "second", "third")]
    assert both.secret("session id", 16) == invite["session_id"]


def test_the_rotation() -> None:
    epoch = {name: bytes.fromhex(value) for name, value in FROZEN["epoch 0"].items()}
    prologue = b"cryprq/2 rekey" + bytes.fromhex(FROZEN["session_id"]) + (1).to_bytes(4) + epoch["hash"]
    both = Both(flights.REKEY_NAME, prologue, epoch["chain"], "rekey", "rekey answer")
    assert both.first(b"").hex() == FROZEN["rekey"]
    assert (both.second() + both.noise.encrypt(b"")).hex() == FROZEN["rekey_answer"]
    assert both.secret("chain") == FROZEN["epoch 1"]["chain"]


@pytest.mark.parametrize("pattern", ["signed", "short"])
def test_the_page_prints_the_steps(pattern: str, signed_pattern: tuple[Both, list[str]]) -> None:
    both, _ = signed_pattern if pattern == "signed" else short()
    rows = dict(row[:2] for row in table(PAGE, f"step of the {pattern} pattern", "value"))
    labels = ("client", "exit") if pattern == "signed" else ("short client", "short exit")
    expected = {name.replace("`", ""): value for name, value in both.steps.items()}
    for side, label in zip(("client", "exit"), labels, strict=True):
        expected[f"private key of the {side}'s e"] = drawn(label, "X25519").hex()
    expected["m of ML-KEM-768"] = drawn(labels[1], "ML-KEM-768 m").hex()
    expected["d || z of ML-KEM-768"] = drawn(labels[0], "ML-KEM-768 seed").hex()
    assert rows == expected
