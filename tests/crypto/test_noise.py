"""The Noise engine against published vectors, and its behaviour with bytes and calls that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cryprq_proxy.crypto.noise import PATTERNS, HandshakeState, message_overhead, protocol_name
from cryprq_proxy.crypto.primitives import hkdf, select_provider
from cryprq_proxy.crypto.symmetric import CipherState
from cryprq_proxy.errors import HandshakeError, LocalError

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "noise.json").read_text())
PSK = bytes(range(32))


def pattern_of(vector: dict[str, str]) -> str:
    return vector["handshake"].split("_")[1]


def vector_id(vector: dict[str, str]) -> str:
    return "-".join([pattern_of(vector), *(key for key in ("prologue",) if key in vector)])


def state(pattern: str, *, initiator: bool, **changes: Any) -> HandshakeState:
    arguments: dict[str, Any] = {"prologue": b"", "provider": select_provider()}
    if "psk0" in pattern:
        arguments["psk"] = PSK
    return HandshakeState(pattern, initiator=initiator, **(arguments | changes))


class Signer:
    """A toy instead of signing keys: a signature is the hash and the public key."""

    public_size = 5
    signature_size = 37

    def __init__(self, public: bytes) -> None:
        self.public = public
        self.peer = b""

    def sign(self, h: bytes) -> bytes:
        return h + self.public

    def verify(self, public: bytes, signature: bytes, h: bytes) -> None:
        if signature != h + public:
            raise HandshakeError("forged")
        self.peer = public


class Pocket:
    """One ticket and its secret, for both sides."""

    ticket, secret = b"a ticket of 16 B", bytes(range(32, 64))

    def show(self) -> tuple[bytes, bytes]:
        return self.ticket, self.secret

    def look_up(self, ticket: bytes) -> bytes:
        if ticket != self.ticket:
            raise HandshakeError("unknown")
        return self.secret


SIGNED, SHORT = "XXhfs+sig+psk0", "XXhfs+sig+psk0 short"


def pair(pattern: str) -> tuple[HandshakeState, HandshakeState]:
    signed = pattern == SIGNED
    initiator, responder = (
        state(pattern, initiator=side, **({"authenticator": Signer(name)} if signed else {}))
        for side, name in ((True, b"first"), (False, b"other"))
    )
    if pattern == SHORT:
        initiator.tickets, responder.tickets = Pocket(), Pocket()
    return initiator, responder


def run(pattern: str, payload: bytes = b"payload") -> tuple[HandshakeState, HandshakeState, list[bytes]]:
    writer, reader = initiator, responder = pair(pattern)
    messages = []
    for _ in PATTERNS[pattern]:
        messages.append(writer.write_message(payload))
        assert reader.read_message(messages[-1]) == payload
        assert writer.h == reader.h
        writer, reader = reader, writer
    return initiator, responder, messages


# --- published vectors ---


def split(side: HandshakeState) -> list[CipherState]:
    """The ciphers that `Split` gives (section 5.2). The vectors use them; the link exports its keys instead."""
    return [CipherState(key) for key in side._symmetric._derive(b"", 2)]


@pytest.mark.parametrize("vector", VECTORS, ids=vector_id)
def test_published_vectors(vector: dict[str, str]) -> None:
    def side(*, initiator: bool) -> HandshakeState:
        ephemeral = bytes.fromhex(vector["gen_init_ephemeral" if initiator else "gen_resp_ephemeral"])
        psk = {"psk": bytes.fromhex(vector["preshared_key"])} if "preshared_key" in vector else {}
        prologue = bytes.fromhex(vector.get("prologue", ""))
        return state(
            pattern_of(vector), initiator=initiator, prologue=prologue, entropy=lambda size: ephemeral, **psk
        )

    assert protocol_name(pattern_of(vector)).decode() == vector["handshake"]
    writer, reader = initiator, responder = side(initiator=True), side(initiator=False)
    for index in range(2):
        payload = bytes.fromhex(vector[f"msg_{index}_payload"])
        message = writer.write_message(payload)
        assert message.hex() == vector[f"msg_{index}_ciphertext"]
        assert reader.read_message(message) == payload
        writer, reader = reader, writer
    for index, sender, receiver in zip((2, 3), split(initiator), split(responder), strict=True):
        payload = bytes.fromhex(vector[f"msg_{index}_payload"])
        ciphertext = sender.encrypt(b"", payload)
        assert ciphertext.hex() == vector[f"msg_{index}_ciphertext"]
        assert receiver.decrypt(b"", ciphertext) == payload


def test_all_vectors_are_there() -> None:
    assert {pattern_of(vector) for vector in VECTORS} == {"NN", "NNpsk0"}
    assert any("prologue" in vector for vector in VECTORS)
    assert any(vector["msg_0_payload"] for vector in VECTORS)


# --- every pattern ---


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pattern(pattern: str) -> None:
    initiator, responder, messages = run(pattern)
    assert initiator.h == responder.h
    assert initiator.export(b"label", 40) == responder.export(b"label", 40)
    assert initiator.export(b"label", 32) != initiator.export(b"other", 32)
    first, second = split(initiator)
    assert first.encrypt(b"", b"x") != second.encrypt(b"", b"x")
    if pattern == "NN":  # its first payload is not encrypted
        return
    for index, message in enumerate(messages):
        overhead = message_overhead(pattern, index, public_size=5, signature_size=37)
        assert len(message) == overhead + len(b"payload")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_each_byte_counts(pattern: str) -> None:
    _, _, messages = run(pattern)
    for index, message in enumerate(messages):
        if pattern == "NN" and index == 0:
            continue
        step = 1 if len(message) < 200 else 41
        for offset in [*range(0, len(message), step), len(message) - 1]:
            # The sides' own ephemeral keys are fresh each time, so the messages before are too.
            writer, reader = pair(pattern)
            for _ in range(index):
                reader.read_message(writer.write_message())
                writer, reader = reader, writer
            wrong = bytearray(writer.write_message(b"payload"))
            wrong[offset] ^= 0x80
            with pytest.raises(HandshakeError):
                reader.read_message(bytes(wrong))
            with pytest.raises(LocalError):  # the state is unusable from now on
                reader.read_message(bytes(wrong))


@pytest.mark.parametrize("pattern", ["NNpsk0", "NNhfs+psk0", SIGNED, SHORT])
def test_truncated_first_message(pattern: str) -> None:
    message = pair(pattern)[0].write_message()
    for size in range(len(message)):
        with pytest.raises(HandshakeError):
            pair(pattern)[1].read_message(message[:size])


def test_an_unencrypted_message_can_be_too_short() -> None:
    with pytest.raises(HandshakeError, match="too short"):
        state("NN", initiator=False).read_message(bytes(31))


@pytest.mark.parametrize("pattern", ["NNpsk0", "NNhfs+psk0"])
@pytest.mark.parametrize("change", [{"psk": bytes(32)}, {"prologue": b"other"}], ids=["psk", "prologue"])
def test_both_sides_need_the_same_start(pattern: str, change: dict[str, bytes]) -> None:
    message = state(pattern, initiator=True).write_message()
    with pytest.raises(HandshakeError):
        state(pattern, initiator=False, **change).read_message(message)


def test_unknown_ephemeral_is_refused_where_it_is_used() -> None:
    initiator = state("NN", initiator=True)
    initiator.write_message()
    with pytest.raises(HandshakeError, match="X25519"):
        initiator.read_message(bytes(64))


def test_forged_signature() -> None:
    class Forger(Signer):
        def sign(self, h: bytes) -> bytes:
            return bytes(32) + self.public

    initiator = state("XXhfs+sig+psk0", initiator=True, authenticator=Signer(b"first"))
    responder = state("XXhfs+sig+psk0", initiator=False, authenticator=Forger(b"other"))
    responder.read_message(initiator.write_message())
    with pytest.raises(HandshakeError, match="forged"):
        initiator.read_message(responder.write_message())


# --- two patterns of one name ---


def test_the_short_pattern_has_the_name_of_the_long_one() -> None:
    assert protocol_name(SHORT) == protocol_name(SIGNED)
    assert PATTERNS[SHORT][0] == PATTERNS[SIGNED][0]


def test_a_responder_follows_the_initiator() -> None:
    initiator = pair(SHORT)[0]
    responder = state(SIGNED, initiator=False, authenticator=Signer(b"other"))
    responder.read_message(initiator.write_message())
    responder.follow(SHORT)
    responder.tickets = Pocket()
    initiator.read_message(responder.write_message())
    assert responder.read_message(initiator.write_message(b"payload")) == b"payload"
    assert initiator.export(b"label", 32) == responder.export(b"label", 32)
    assert initiator.finished and responder.finished


def test_a_pattern_that_has_gone_elsewhere_cannot_be_followed() -> None:
    initiator, responder = pair(SIGNED)
    with pytest.raises(LocalError, match="cannot follow"):
        responder.follow("NNhfs+psk0")
    message = initiator.write_message()
    responder.read_message(message)
    responder.write_message()
    with pytest.raises(LocalError, match="cannot follow"):
        responder.follow(SHORT)
    broken = pair(SIGNED)[1]
    with pytest.raises(HandshakeError):
        broken.read_message(message[:-1])
    with pytest.raises(LocalError, match="cannot follow"):
        broken.follow(SHORT)


def last_message(**wrong: bytes) -> tuple[HandshakeState, bytes]:
    """A responder, and the last message of an initiator whose pocket has something wrong."""
    initiator, responder = pair(SHORT)
    pocket = Pocket()
    vars(pocket).update(wrong)
    initiator.tickets = pocket
    responder.read_message(initiator.write_message())
    initiator.read_message(responder.write_message())
    return responder, initiator.write_message()


def test_unknown_tickets() -> None:
    responder, message = last_message(ticket=bytes(16))
    with pytest.raises(HandshakeError, match="unknown"):
        responder.read_message(message)


def test_tickets_without_their_secret() -> None:
    responder, message = last_message(secret=bytes(32))
    with pytest.raises(HandshakeError, match="authenticate"):
        responder.read_message(message)


def test_a_side_without_tickets() -> None:
    responder, message = last_message()
    responder.tickets = None
    with pytest.raises(LocalError, match="tickets"):
        responder.read_message(message)


# --- the psk rule, the export ---


def test_psk_rule() -> None:
    """With a psk, `e` is mixed into the key: the same psk gives different first keys each time."""
    initiators = [state("NNpsk0", initiator=True) for _ in range(2)]
    tags = {initiator.write_message()[32:] for initiator in initiators}
    assert len(tags) == 2


def test_export_is_hkdf() -> None:
    initiator, _, _ = run("NNhfs+psk0")
    ck = initiator._symmetric._ck
    assert initiator.export(b"label", 50) == hkdf(ck, initiator.h, b"cryprq/2 label", 50)


# --- misuse ---


def test_calls_out_of_turn() -> None:
    initiator, responder = pair("NNpsk0")
    for call in (initiator.read_message, responder.write_message):
        with pytest.raises(LocalError, match="out of turn"):
            call(b"")
    message = initiator.write_message()
    with pytest.raises(LocalError, match="out of turn"):
        initiator.write_message()
    responder.read_message(message)
    initiator.read_message(responder.write_message())
    for late in (initiator.write_message, initiator.read_message, responder.write_message):
        with pytest.raises(LocalError, match="out of turn"):
            late(b"")


def test_nothing_is_exported_before_the_end() -> None:
    initiator, responder = pair("NNpsk0")
    message = initiator.write_message()
    for side in (initiator, responder):
        with pytest.raises(LocalError, match="not finished"):
            side.export(b"label", 32)
    responder.read_message(message)
    with pytest.raises(HandshakeError):
        initiator.read_message(bytes(48))
    with pytest.raises(LocalError, match="not finished"):
        initiator.export(b"label", 32)


@pytest.mark.parametrize(
    ("pattern", "changes"),
    [
        ("NN", {"psk": PSK}),
        ("NNpsk0", {"psk": None}),
        ("NNpsk0", {"psk": PSK[:-1]}),
        ("NN", {"authenticator": Signer(b"first")}),
        ("XXhfs+sig+psk0", {}),
    ],
)
def test_what_a_pattern_needs(pattern: str, changes: dict[str, Any]) -> None:
    with pytest.raises(LocalError, match="does not fit"):
        state(pattern, initiator=True, **changes)


def test_message_limit() -> None:
    with pytest.raises(LocalError, match="65535"):
        state("NN", initiator=True).write_message(bytes(65504))
    with pytest.raises(HandshakeError, match="65535"):
        state("NN", initiator=False).read_message(bytes(65536))
    assert state("NN", initiator=False).read_message(bytes(65535)) == bytes(65503)
