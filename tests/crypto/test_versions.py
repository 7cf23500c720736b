"""Peers of other versions meet, and the side that can tell says which one to update."""

from __future__ import annotations

import pytest

from cryprq_proxy.crypto.exit_handshake import ExitHandshake
from cryprq_proxy.crypto.handshake import SECOND_SIZE, SIGNED_PATTERN, THIRD_SIZE, begin
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.noise import HandshakeState
from cryprq_proxy.crypto.payloads import Choice, HandshakeOffer, Pattern, version_mismatch
from cryprq_proxy.crypto.primitives import select_provider, sha256, system_entropy
from cryprq_proxy.crypto.signer import ROLE_CLIENT, Signer
from cryprq_proxy.errors import HandshakeError, LocalError
from tests.support.handshakes import BOTH, CHACHA, CLIENT, EXIT, FAST, new_client, new_exit, new_short_client
from tests.vectors.make import FixedEntropy

OFFER_1 = bytes.fromhex("01 01  02 02 01  00000000")
"""Payload 1 of version 1: no pattern behind the features."""
FIRST_OF_VERSION_1 = "93b6d42f73879ffa1ab97a9a48f2332759032716fa07c8787e8838c762b69301"
"""SHA-256 of a first flight that version 1 made, with the identity and the randomness of `frozen.json`."""


class OtherClient:
    """A client of another version, as far as the end of the second flight."""

    def __init__(self, offer: bytes, exit_: Identity = EXIT) -> None:
        self.signer = Signer(CLIENT, FAST, ROLE_CLIENT, exit_.peer_id, system_entropy)
        self.noise: HandshakeState = begin(
            SIGNED_PATTERN,
            exit_.peer_id,
            None,
            FAST,
            FixedEntropy("client"),
            initiator=True,
            authenticator=self.signer,
        )
        self.first = self.noise.write_message(offer)

    def read_second(self, flight: bytes) -> Choice:
        return Choice.decode(self.noise.read_message(flight))


def test_the_first_flight_of_version_1() -> None:
    """The labels of the handshake are what they were, so that an exit can answer."""
    exit_id = Identity.generate(select_provider("pure"), FixedEntropy("exit identity"))
    client = OtherClient(OFFER_1, exit_id)
    assert sha256(client.first).hex() == FIRST_OF_VERSION_1
    exit_ = ExitHandshake(exit_id, FAST)
    exit_.read_first(client.first)
    assert exit_.outdated == 1


@pytest.mark.parametrize(
    ("offer", "newest"),
    [
        (OFFER_1, 1),
        (bytes.fromhex("02 00 01  01 01  00000001"), 1),
        (HandshakeOffer((3,), BOTH, 0).encode(), 3),
        (HandshakeOffer((4, 3), BOTH, 0, Pattern.SHORT).encode(), 4),
        (bytes.fromhex("01 03") + bytes(40), 3),
    ],
    ids=["1", "0 and 1", "3", "3 and 4, short", "3, otherwise unlike ours"],
)
def test_a_client_of_another_version_gets_a_signed_answer(offer: bytes, newest: int) -> None:
    client, exit_ = OtherClient(offer), new_exit(features=3)
    exit_.read_first(client.first)
    assert exit_.outdated == newest
    assert (exit_.pattern, exit_.third_size) == (Pattern.SIGNED, THIRD_SIZE)
    second = exit_.write_second()
    assert len(second) in SECOND_SIZE
    assert client.read_second(second) == Choice(2, CHACHA, 0)
    assert client.signer.peer == EXIT.peer_id


def test_it_gets_no_further() -> None:
    client, exit_ = OtherClient(OFFER_1), new_exit()
    exit_.read_first(client.first)
    client.read_second(exit_.write_second())
    third = client.noise.write_message(b"\0")
    for call in (
        lambda: exit_.read_third(third),
        lambda: exit_.read_short_third(third, lambda ticket: None),
        exit_.write_second,
        lambda: exit_.result,
        lambda: exit_.path,
    ):
        with pytest.raises(LocalError):
            call()


def test_a_client_of_this_version_is_not_outdated() -> None:
    for client in (new_client(), new_short_client()):
        exit_ = new_exit()
        exit_.read_first(client.write_first())
        assert exit_.outdated is None


@pytest.mark.parametrize("version", [0, 1, 3, 255])
def test_an_exit_of_another_version(version: int) -> None:
    client, exit_ = new_client(), new_exit()
    exit_.read_first(client.write_first())
    exit_._choice = Choice(version, CHACHA, 0)
    with pytest.raises(HandshakeError) as caught:
        client.read_second(exit_.write_second())
    assert str(caught.value) == version_mismatch(version, "exit", "client")
    assert str(caught.value).endswith("update the exit" if version < 2 else "update this client")


def test_an_exit_whose_choice_looks_otherwise() -> None:
    client, exit_ = new_client(), new_exit()
    exit_.read_first(client.write_first())
    with pytest.raises(HandshakeError, match="update this client"):
        client.read_second(exit_._noise.write_message(b"\3" + bytes(20)))


def test_a_forged_answer_says_nothing_about_versions() -> None:
    """Only the pinned exit can say that it speaks another version."""
    client, exit_ = new_client(), new_exit()
    exit_._signer._identity = CLIENT
    exit_.read_first(client.write_first())
    exit_._choice = Choice(3, CHACHA, 0)
    with pytest.raises(HandshakeError, match="not the expected one"):
        client.read_second(exit_.write_second())
