"""The keys of one path: borders between epochs, each direction by itself, and counts that go on over them."""

from __future__ import annotations

import pytest

from cryprq_proxy.crypto.handshake import record_keys
from cryprq_proxy.crypto.primitives import Cipher
from cryprq_proxy.errors import CarrierError, CloseReason
from cryprq_proxy.session.path_keys import CarrierKeys, PathKeys
from cryprq_proxy.session.records import RecordOpener, RecordSealer
from tests.support.links import epoch

SECRETS = [epoch(number).records for number in range(5)]


def pair(
    number: int = 3, joined: int = 0, cipher: Cipher = Cipher.CHACHA20_POLY1305
) -> tuple[PathKeys, PathKeys]:
    """Both sides of a path on the keys of its handshake: the client's, the exit's."""
    up, down = record_keys(epoch(77).records, number)
    return (
        PathKeys(
            number,
            CarrierKeys(cipher, RecordSealer(cipher, up), RecordOpener(cipher, down)),
            100.0,
            dialler=True,
            epoch=joined,
        ),
        PathKeys(
            number,
            CarrierKeys(cipher, RecordSealer(cipher, down), RecordOpener(cipher, up)),
            100.0,
            dialler=False,
            epoch=joined,
        ),
    )


def carry(source: PathKeys, target: PathKeys, count: int = 1) -> None:
    for number in range(count):
        record = source.sealer.seal(b"%d" % number)
        assert target.opener.open(memoryview(record), 0) == (b"%d" % number, len(record))


NEVER = 1 << 62
"""A limit that nothing reaches."""


def border(source: PathKeys, target: PathKeys, number: int, now: float = 200.0) -> None:
    source.switch_sending(number, SECRETS[number], now)
    target.switch_receiving(number, SECRETS[number], now)


@pytest.mark.parametrize("cipher", list(Cipher), ids=lambda cipher: cipher.name)
def test_each_direction_goes_over_by_itself(cipher: Cipher) -> None:
    client, exit_ = pair(cipher=cipher)
    for keys in (client, exit_):
        assert (keys.send_epoch, keys.receive_epoch, keys.since) == (0, 0, 100.0)
    carry(client, exit_, 3)
    carry(exit_, client, 2)
    border(client, exit_, 1)
    carry(client, exit_, 4)
    carry(exit_, client)
    assert (client.send_epoch, client.receive_epoch) == (1, 0) == (exit_.receive_epoch, exit_.send_epoch)
    assert client.since == exit_.since == 100.0, "the older of the two counts"
    border(exit_, client, 1, 210.0)
    carry(exit_, client)
    assert client.since == exit_.since == 200.0
    border(client, exit_, 3, 220.0)
    carry(client, exit_)
    assert client.since == exit_.since == 210.0
    assert client.joined == exit_.joined == 100.0


def test_counts_go_on_over_epochs() -> None:
    client, exit_ = pair()
    carry(client, exit_, 3)
    border(client, exit_, 1)
    carry(client, exit_, 4)
    carry(exit_, client, 2)
    assert (client.records_sent, client.records_received) == (7, 2)
    assert (exit_.records_sent, exit_.records_received) == (2, 7)
    assert client.sent_before == exit_.received_before == 3
    for keys, size in ((client, client.sealer.bytes), (exit_, exit_.opener.bytes)):
        assert keys.used(4, NEVER), "under one key"
        assert keys.used(NEVER, size), "in the busier direction"
        assert not keys.used(5, size + 1)


def test_the_path_is_settled_when_both_directions_are_there_and_the_peer_knows() -> None:
    client, exit_ = pair()
    assert client.settled(0) and not client.settled(1)
    carry(client, exit_, 3)
    border(client, exit_, 1)
    assert not client.settled(1)
    border(exit_, client, 1)
    client.acknowledged = 2
    assert not client.settled(1), "the exit may not have read SWITCH"
    client.acknowledged = 3
    assert client.settled(1) and client.settled(0) and not client.settled(2)


def test_a_path_that_joins_stands_in_the_epoch_of_its_secret() -> None:
    client, exit_ = pair(joined=2)
    assert client.settled(2) and exit_.settled(2) and not client.settled(3)
    with pytest.raises(CarrierError):
        exit_.switch_receiving(2, SECRETS[2], 200.0)
    border(client, exit_, 3)
    carry(client, exit_)


@pytest.mark.parametrize(("number", "known"), [(0, True), (1, True), (2, False)])
def test_a_border_that_may_not_be_changes_nothing(number: int, known: bool) -> None:
    client, exit_ = pair()
    border(client, exit_, 1)
    with pytest.raises(CarrierError) as caught:
        exit_.switch_receiving(number, SECRETS[number] if known else None, 300.0)
    assert caught.value.reason is CloseReason.REKEY
    carry(client, exit_)
    assert exit_.receive_epoch == 1


def test_no_two_paths_share_a_key() -> None:
    """Nor do the directions: else a nonce would be used twice."""
    records = []
    for number in range(3):
        for keys in pair(number):
            keys.switch_sending(1, SECRETS[1], 200.0)
            records.append(keys.sealer.seal(b"the same"))
    assert len(set(records)) == 6
