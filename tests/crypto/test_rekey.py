"""The rotation of keys. Its frozen vector is part of the one in test_handshake.py."""

from __future__ import annotations

import itertools
import os
from dataclasses import fields, replace
from typing import Any

import pytest

from cryprq_proxy.crypto.handshake import EpochSecrets
from cryprq_proxy.crypto.primitives import select_provider
from cryprq_proxy.crypto.rekey import REKEY_ANSWER_SIZE, REKEY_SIZE, RekeyInitiator, answer_rekey
from cryprq_proxy.errors import HandshakeError, LocalError

FAST = select_provider()
SESSION = bytes(range(16))
EPOCH = EpochSecrets(*(bytes([value]) * 32 for value in range(6)))


def initiator(**changes: Any) -> RekeyInitiator:
    arguments: dict[str, Any] = {"provider": FAST, "session_id": SESSION, "epoch": EPOCH, "number": 1}
    return RekeyInitiator(**(arguments | changes))


def answer(message: bytes, **changes: Any) -> tuple[bytes, EpochSecrets]:
    arguments: dict[str, Any] = {"provider": FAST, "session_id": SESSION, "epoch": EPOCH, "number": 1}
    return answer_rekey(**(arguments | changes), message=message)


@pytest.mark.parametrize(("ours", "theirs"), list(itertools.product(("cryptography", "pure"), repeat=2)))
def test_both_sides_agree(ours: str, theirs: str) -> None:
    client = initiator(provider=select_provider(ours))
    message = client.write()
    reply, epoch = answer(message, provider=select_provider(theirs))
    assert client.read(reply) == epoch
    assert (len(message), len(reply)) == (REKEY_SIZE, REKEY_ANSWER_SIZE) == (1248, 1152)


def test_a_chain_of_epochs() -> None:
    ours = theirs = EPOCH
    seen = {getattr(EPOCH, field.name) for field in fields(EPOCH)}
    for number in range(1, 6):
        client = initiator(epoch=ours, number=number)
        reply, theirs = answer(client.write(), epoch=theirs, number=number)
        ours = client.read(reply)
        assert ours == theirs
        secrets = {getattr(ours, field.name) for field in fields(ours)}
        assert len(secrets) == 6
        assert not secrets & seen
        seen |= secrets


@pytest.mark.parametrize(
    "changes",
    [
        {"session_id": bytes(16)},
        {"number": 2},
        {"epoch": replace(EPOCH, chain=os.urandom(32))},
        {"epoch": replace(EPOCH, hash=os.urandom(32))},
    ],
    ids=["session", "number", "chain", "hash"],
)
def test_what_is_bound(changes: dict[str, Any]) -> None:
    with pytest.raises(HandshakeError):
        answer(initiator().write(), **changes)


@pytest.mark.parametrize("name", ["records", "client_lane", "exit_lane", "resume"])
def test_other_secrets_play_no_part(name: str) -> None:
    client = initiator()
    other = replace(EPOCH, **{name: bytes(32)})
    assert client.read(answer(client.write(), epoch=other)[0])


def test_each_byte_of_the_message_counts() -> None:
    message = initiator().write()
    for offset in range(len(message)):
        wrong = bytearray(message)
        wrong[offset] ^= 0x80
        with pytest.raises(HandshakeError):
            answer(bytes(wrong))


def test_each_byte_of_the_answer_counts() -> None:
    for offset in [*range(0, REKEY_ANSWER_SIZE, 11), 31, 32, 1135, 1136, REKEY_ANSWER_SIZE - 1]:
        client = initiator()
        wrong = bytearray(answer(client.write())[0])
        wrong[offset] ^= 0x80
        with pytest.raises(HandshakeError):
            client.read(bytes(wrong))


def test_lengths() -> None:
    message = initiator().write()
    for length in [*range(0, REKEY_SIZE, 31), REKEY_SIZE - 1, REKEY_SIZE + 1, REKEY_SIZE + 1000]:
        with pytest.raises(HandshakeError, match="wrong length"):
            answer((message + bytes(1000))[:length])
    for length in (0, REKEY_ANSWER_SIZE - 1, REKEY_ANSWER_SIZE + 1):
        client = initiator()
        reply, _ = answer(client.write())
        with pytest.raises(HandshakeError, match="wrong length"):
            client.read((reply + b"\0")[:length])


def test_an_answer_to_another_message() -> None:
    first, second = initiator(), initiator()
    reply, _ = answer(first.write())
    second.write()
    with pytest.raises(HandshakeError):
        second.read(reply)


def test_misuse() -> None:
    for changes in ({"number": 0}, {"number": -1}, {"number": 2**32}, {"session_id": bytes(15)}):
        with pytest.raises(LocalError):
            initiator(**changes)
    client = initiator()
    with pytest.raises(LocalError):
        client.read(bytes(REKEY_ANSWER_SIZE))
    client = initiator()
    client.write()
    with pytest.raises(LocalError):
        client.write()
