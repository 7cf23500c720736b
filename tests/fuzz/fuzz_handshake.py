"""Invariant: whatever is in a flight, sealed properly or not, only HandshakeError leaves, and ids are canonical."""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["cryprq_proxy"]):
    from cryprq_proxy.crypto.client_handshake import ClientHandshake, ShortClientHandshake
    from cryprq_proxy.crypto.exit_handshake import ExitHandshake
    from cryprq_proxy.crypto.handshake import (
        FIRST_SIZE,
        SECOND_SIZE,
        SHORT_SECOND_SIZE,
        SHORT_THIRD_SIZE,
        THIRD_SIZE,
        EpochSecrets,
    )
    from cryprq_proxy.crypto.identity import Identity, PeerId, verify_signatures
    from cryprq_proxy.crypto.noise import HandshakeState
    from cryprq_proxy.crypto.payloads import (
        VERSION,
        Choice,
        HandshakeOffer,
        Pattern,
        choose,
        decode_path,
        decode_proof,
        encode_path,
        encode_proof,
        join_ticket,
    )
    from cryprq_proxy.crypto.primitives import (
        Cipher,
        Entropy,
        KemKey,
        MldsaKey,
        select_provider,
        system_entropy,
    )
    from cryprq_proxy.crypto.rekey import answer_rekey
    from cryprq_proxy.errors import ConfigError, HandshakeError
    from cryprq_proxy.exit.ticket_book import Ticket

PROVIDER = select_provider()
IDENTITY = Identity(PROVIDER, bytes(32), bytes(32))
CIPHERS = (Cipher.CHACHA20_POLY1305, Cipher.AES_256_GCM)
SECRET, PATH = bytes(range(32)), 1
TICKETS = {join_ticket(SECRET, PATH): Ticket(None, PATH, SECRET)}
EPOCH = EpochSecrets(*(bytes(32) for _ in range(6)))


class Hostile:
    """A provider whose ML-KEM key is what the fuzzer says, so that it arrives properly sealed."""

    name = "hostile"
    fast = True

    def __init__(self, public: bytes) -> None:
        self.public = public

    def generate_kem(self, entropy: Entropy = system_entropy) -> KemKey:
        return self

    def decapsulate(self, ciphertext: bytes) -> bytes:
        return bytes(32)

    def encapsulate(self, public: bytes, entropy: Entropy = system_entropy) -> tuple[bytes, bytes]:
        return PROVIDER.encapsulate(public)

    def mldsa_key(self, seed: bytes) -> MldsaKey:
        return PROVIDER.mldsa_key(seed)

    def mldsa_verify(self, public: bytes, signature: bytes, data: bytes, context: bytes) -> bool:
        return PROVIDER.mldsa_verify(public, signature, data, context)


def new_exit() -> ExitHandshake:
    return ExitHandshake(IDENTITY, PROVIDER, ciphers=CIPHERS)


def new_client(kem_key: bytes | None = None) -> ClientHandshake:
    provider = PROVIDER if kem_key is None else Hostile(kem_key)
    return ClientHandshake(IDENTITY, IDENTITY.peer_id, provider, ciphers=CIPHERS)


def new_short_client() -> ShortClientHandshake:
    return ShortClientHandshake(IDENTITY.peer_id, PROVIDER, SECRET, PATH, ciphers=CIPHERS)


def fit(data: bytes, size: range) -> bytes:
    """Of a length that passes the first check."""
    return data[: size[-1]].ljust(size[0], b"\0")


def payloads(data: bytes) -> None:
    offer = HandshakeOffer.decode(data)
    if VERSION in offer.versions and offer.encode() != data:
        raise RuntimeError(f"{offer!r} is not canonical")
    choice = choose(offer, CIPHERS)
    if Choice.decode(choice.encode()) != choice:
        raise RuntimeError(f"{choice!r} is not canonical")


def choices(data: bytes) -> None:
    choice = Choice.decode(data)
    if choice.version == VERSION and choice.encode() != data:
        raise RuntimeError(f"the choice {data!r} is not canonical")


def proofs(data: bytes) -> None:
    if encode_proof(decode_proof(data)) != data:
        raise RuntimeError(f"the proof {data!r} is not canonical")


def short_payloads(data: bytes) -> None:
    if encode_path(decode_path(data)) != data:
        raise RuntimeError(f"the number {data!r} is not canonical")


def unsealed(data: bytes) -> None:
    new_exit().read_first(fit(data, FIRST_SIZE))
    raise RuntimeError("a first flight opened that nobody sealed")


def unsealed_second(data: bytes) -> None:
    client = new_client()
    client.write_first()
    client.read_second(fit(data, SECOND_SIZE))
    raise RuntimeError("a second flight opened that nobody sealed")


def unsealed_third(data: bytes) -> None:
    exit_ = new_exit()
    exit_.read_first(new_client().write_first())
    exit_.write_second()
    exit_.read_third(fit(data, THIRD_SIZE))
    raise RuntimeError("a third flight opened that nobody sealed")


def unsealed_short_second(data: bytes) -> None:
    client = new_short_client()
    client.write_first()
    client.read_second(fit(data, SHORT_SECOND_SIZE))
    raise RuntimeError("a short second flight opened that nobody sealed")


def unsealed_short_third(data: bytes) -> None:
    exit_ = new_exit()
    exit_.read_first(new_short_client().write_first())
    exit_.write_second()
    exit_.read_short_third(fit(data, SHORT_THIRD_SIZE), TICKETS.get)
    raise RuntimeError("a short third flight opened that nobody sealed")


def sealed(data: bytes) -> None:
    """A first flight of a peer that knows the exit: its ML-KEM key and its payload are the fuzzer's."""
    key, payload = (
        data[:1184].ljust(1184, b"\0"),
        data[1184:1300] or HandshakeOffer((VERSION,), CIPHERS, 0).encode(),
    )
    client, exit_ = new_client(key), new_exit()
    noise: HandshakeState = client._noise
    exit_.read_first(noise.write_message(payload))
    exit_.write_second()
    if exit_.outdated is None and exit_.pattern not in Pattern:
        raise RuntimeError("the handshake goes on in no pattern")


class Shown:
    """The ticket and the secret that the fuzzer says."""

    def __init__(self, ticket: bytes, secret: bytes) -> None:
        self._shown = ticket, secret

    def show(self) -> tuple[bytes, bytes]:
        return self._shown

    def look_up(self, ticket: bytes) -> bytes:
        raise RuntimeError("a client looks up no tickets")


def sealed_short_third(data: bytes) -> None:
    """A third flight of a peer that knows the exit: ticket, secret and payload are the fuzzer's, or the right ones."""
    ticket = data[1:17].ljust(16, b"\0") if data[:1] < b"\x80" else next(iter(TICKETS))
    secret = data[17:49].ljust(32, b"\1") if data[:1] < b"\xc0" else SECRET
    client, exit_ = new_short_client(), new_exit()
    exit_.read_first(client.write_first())
    client.read_second(exit_.write_second())
    noise: HandshakeState = client._noise
    noise.tickets = Shown(ticket, secret)
    exit_.read_short_third(noise.write_message(data[49:]), TICKETS.get)
    if (ticket, secret, data[49:]) != (join_ticket(SECRET, PATH), SECRET, encode_path(PATH)):
        raise RuntimeError("a path opened for who does not have ticket, secret and number")


def rotations(data: bytes) -> None:
    answer_rekey(PROVIDER, bytes(16), EPOCH, 1, fit(data, range(1248, 1249)))
    raise RuntimeError("a rotation opened that nobody sealed")


def signatures(data: bytes) -> None:
    public, signature = data[:1984].ljust(1984, b"\0"), data[1984:5357].ljust(3373, b"\0")
    if verify_signatures(PROVIDER, public, signature, b"data"):
        raise RuntimeError("a signature holds that nobody made")


def ids(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    try:
        peer = PeerId.parse(text)
    except ConfigError:
        return
    if str(peer) != text.lower():
        raise RuntimeError(f"{text!r} is a second spelling of {peer}")


TARGETS = (
    payloads,
    choices,
    proofs,
    ids,
    signatures,
    sealed,
    rotations,
    unsealed,
    unsealed_second,
    unsealed_third,
    short_payloads,
    sealed_short_third,
    unsealed_short_second,
    unsealed_short_third,
)


def fuzz(data: bytes) -> None:
    if not data:
        return
    try:
        TARGETS[data[0] % len(TARGETS)](data[1:])
    except HandshakeError:
        return


if __name__ == "__main__":
    atheris.Setup(sys.argv, fuzz)
    atheris.Fuzz()
