"""Makes frozen.json: one whole handshake, one rotation, one invite and one short handshake under fixed randomness.

The tests call the same functions and compare. Run as a script, this file writes the vectors anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cryprq_proxy.crypto.client_handshake import ClientHandshake, ShortClientHandshake
from cryprq_proxy.crypto.exit_handshake import ExitHandshake
from cryprq_proxy.crypto.handshake import EpochSecrets, record_keys
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.payloads import InviteClaim, JoinClaim, join_ticket
from cryprq_proxy.crypto.primitives import Cipher, Entropy, KemKey, MldsaKey, Provider, select_provider
from cryprq_proxy.crypto.rekey import RekeyInitiator, answer_rekey
from cryprq_proxy.exit.ticket_book import Ticket

FROZEN = Path(__file__).with_name("frozen.json")
CIPHERS = (Cipher.CHACHA20_POLY1305, Cipher.AES_256_GCM)


IDENTITY = ("Ed25519 seed", "ML-DSA-65 seed")
ASKS = ("X25519", "ML-KEM-768 seed", "ML-DSA-65 rnd")
ANSWERS = ("X25519", "ML-KEM-768 m", "ML-DSA-65 rnd")
"""What each side draws, in this order: the third only if it signs. The seed of ML-KEM is d and z, 64 bytes (FIPS 203,
algorithm 16), m that of algorithm 17, rnd that of FIPS 204, algorithm 2."""
DRAWN = {
    "client identity": IDENTITY,
    "exit identity": IDENTITY,
    "client": ASKS,
    "exit": ANSWERS,
    "old session": ("session id",),
    "old secret": ("resume secret",),
    "rekey": ASKS,
    "rekey answer": ANSWERS,
    "invited client": ASKS,
    "inviting exit": ANSWERS,
    "invite": ("secret",),
    "short client": ASKS,
    "short exit": ANSWERS,
}
"""By label, what each draw of its FixedEntropy is."""


class FixedEntropy:
    """The same bytes in every run: call n gives SHAKE-256(label || n as 4 bytes, big endian)."""

    def __init__(self, label: str, drawn: dict[str, dict[str, str]] | None = None) -> None:
        """`drawn` gets all that is drawn, by label and by name."""
        self._label = label
        self._calls = 0
        self._drawn = {} if drawn is None else drawn

    def __call__(self, size: int, /) -> bytes:
        self._calls += 1
        value = hashlib.shake_256(self._label.encode() + self._calls.to_bytes(4)).digest(size)
        if names := DRAWN.get(self._label):
            self._drawn.setdefault(self._label, {})[names[self._calls - 1]] = value.hex()
        return value


class FastReader:
    """The fast provider, but encapsulations and signatures come from the pure one, where they can be fixed.

    So a run with it writes the frozen bytes, while all that reads them (decapsulation, verification) is fast.
    """

    name = "fast reader"
    fast = True

    def __init__(self) -> None:
        self._fast = select_provider("cryptography")
        self._pure = select_provider("pure")

    def generate_kem(self, entropy: Entropy) -> KemKey:
        return self._fast.generate_kem(entropy)

    def encapsulate(self, public: bytes, entropy: Entropy) -> tuple[bytes, bytes]:
        return self._pure.encapsulate(public, entropy)

    def mldsa_key(self, seed: bytes) -> MldsaKey:
        return self._pure.mldsa_key(seed)

    def mldsa_verify(self, public: bytes, signature: bytes, data: bytes, context: bytes) -> bool:
        return self._fast.mldsa_verify(public, signature, data, context)


def _epoch(epoch: EpochSecrets) -> dict[str, str]:
    names = ("records", "client_lane", "exit_lane", "chain", "resume", "hash")
    return {name: getattr(epoch, name).hex() for name in names}


def _record_keys(records: bytes, path: int) -> dict[str, str]:
    client, exit_ = record_keys(records, path)
    return {"client_record": client.hex(), "exit_record": exit_.hex()}


def frozen(provider: Provider) -> dict[str, object]:
    """A handshake that joins a session, with the exit's default psk, and then, as if it had begun one, the rotation to
    epoch 1 and a short handshake that joins with the secret of that."""
    drawn: dict[str, dict[str, str]] = {}

    def fixed(label: str) -> Entropy:
        return FixedEntropy(label, drawn)

    client_id = Identity.generate(provider, fixed("client identity"))
    exit_id = Identity.generate(provider, fixed("exit identity"))
    client = ClientHandshake(client_id, exit_id.peer_id, provider, ciphers=CIPHERS, entropy=fixed("client"))
    exit_ = ExitHandshake(exit_id, provider, ciphers=CIPHERS, entropy=fixed("exit"))
    first = client.write_first()
    exit_.read_first(first)
    second = exit_.write_second()
    client.read_second(second)
    old_session, old_secret = fixed("old session")(16), fixed("old secret")(32)
    join = JoinClaim.make(old_session, old_secret, client.join_hash, path=7)
    third = client.write_third(join)
    exit_.read_third(third)
    if client.result.epoch != exit_.result.epoch or exit_.joins != join:
        raise AssertionError("the two sides do not agree")
    session_id, epoch = client.result.session_id, client.result.epoch
    initiator = RekeyInitiator(provider, session_id, epoch, 1, fixed("rekey"))
    message = initiator.write()
    answer, next_epoch = answer_rekey(provider, session_id, epoch, 1, message, fixed("rekey answer"))
    if initiator.read(answer) != next_epoch:
        raise AssertionError("the two sides do not agree")
    return {
        "client_id": str(client_id.peer_id),
        "exit_id": str(exit_id.peer_id),
        "first": first.hex(),
        "second": second.hex(),
        "third": third.hex(),
        "cipher": client.result.cipher,
        "features": client.result.features,
        "join_hash": client.join_hash.hex(),
        "join_proof": join.proof.hex(),
        "session_id": session_id.hex(),
        "epoch 0": _epoch(epoch),
        "epoch 0, path 0": _record_keys(epoch.records, 0),
        "epoch 0, path 7": _record_keys(epoch.records, 7),
        "rekey": message.hex(),
        "rekey_answer": answer.hex(),
        "epoch 1": _epoch(next_epoch),
        "invite": _invite(provider, client_id, exit_id, fixed),
        "short": _short(provider, exit_id, next_epoch.resume, fixed),
        "randomness": drawn,
    }


def _invite(
    provider: Provider, client_id: Identity, exit_id: Identity, fixed: Callable[[str], Entropy]
) -> dict[str, str]:
    """A handshake that begins a session with an invite, between the same two."""
    client = ClientHandshake(
        client_id, exit_id.peer_id, provider, ciphers=CIPHERS, entropy=fixed("invited client")
    )
    exit_ = ExitHandshake(exit_id, provider, ciphers=CIPHERS, entropy=fixed("inviting exit"))
    first = client.write_first()
    exit_.read_first(first)
    second = exit_.write_second()
    client.read_second(second)
    secret = fixed("invite")(16)
    third = client.write_third(InviteClaim(secret))
    exit_.read_third(third)
    if client.result.epoch != exit_.result.epoch or exit_.invite != secret:
        raise AssertionError("the two sides do not agree")
    return {
        "secret": secret.hex(),
        "first": first.hex(),
        "second": second.hex(),
        "join_hash": client.join_hash.hex(),
        "third": third.hex(),
        "session_id": client.result.session_id.hex(),
    }


def _short(
    provider: Provider, exit_id: Identity, resume: bytes, fixed: Callable[[str], Entropy]
) -> dict[str, object]:
    """A short handshake with the exit, which adds path 8 to the session with this resume secret."""
    path = 8
    client = ShortClientHandshake(
        exit_id.peer_id, provider, resume, path, ciphers=CIPHERS, entropy=fixed("short client")
    )
    exit_ = ExitHandshake(exit_id, provider, ciphers=CIPHERS, entropy=fixed("short exit"))
    first = client.write_first()
    exit_.read_first(first)
    second = exit_.write_second()
    client.read_second(second)
    third = client.write_third()
    ticket = join_ticket(resume, path)
    exit_.read_short_third(third, {ticket: Ticket(None, path, resume)}.get)
    if client.result.records != exit_.path.records:
        raise AssertionError("the two sides do not agree")
    return {
        "path": path,
        "ticket": ticket.hex(),
        "first": first.hex(),
        "second": second.hex(),
        "third": third.hex(),
        "cipher": client.result.cipher,
        "records": client.result.records.hex(),
    } | _record_keys(client.result.records, path)


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(frozen(select_provider("pure")), indent=1) + "\n")
