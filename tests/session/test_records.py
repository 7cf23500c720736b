"""Records: frozen bytes, and that nothing but the exact sequence opens."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.crypto.primitives import Cipher
from cryprq_proxy.errors import CarrierError, CloseReason
from cryprq_proxy.session.records import HEADER, LARGE, MAX_RECORD, OVERHEAD, TAG, RecordOpener, RecordSealer
from cryprq_proxy.session.wire import MAX_PLAINTEXT

KEY = bytes(range(32))
CIPHERS = pytest.mark.parametrize("cipher", list(Cipher), ids=lambda cipher: cipher.name)
VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "vectors" / "records.json").read_text()
)


def sealed(cipher: Cipher, *plaintexts: bytes) -> list[bytes]:
    sealer = RecordSealer(cipher, KEY)
    return [sealer.seal(plaintext) for plaintext in plaintexts]


def open_all(opener: RecordOpener, data: bytes) -> list[bytes]:
    """Every whole record in `data`."""
    plaintexts: list[bytes] = []
    position = 0
    while True:
        plaintext, position = opener.open(memoryview(data), position)
        if plaintext is None:
            return plaintexts
        plaintexts.append(bytes(plaintext))


def assert_damaged(opener: RecordOpener, data: bytes) -> None:
    with pytest.raises(CarrierError) as caught:
        open_all(opener, data)
    assert caught.value.reason is CloseReason.BAD_RECORD


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["cipher"])
def test_frozen_records(vector: dict[str, Any]) -> None:
    """One direction of one epoch: the n-th record of the list is the n-th under the key."""
    cipher, key = Cipher[vector["cipher"]], bytes.fromhex(vector["key"])
    sealer, opener = RecordSealer(cipher, key), RecordOpener(cipher, key)
    for entry in vector["records"]:
        plaintext = bytes.fromhex(entry["plaintext"]) * entry.get("times", 1)
        record = sealer.seal(plaintext)
        if "record" in entry:
            assert record.hex() == entry["record"]
        assert sha256(record).hexdigest() == entry["sha256"]
        assert opener.open(memoryview(record), 0) == (plaintext, len(record))


@CIPHERS
def test_layout(cipher: Cipher) -> None:
    (record,) = sealed(cipher, b"abc")
    assert len(record) == OVERHEAD + 3
    assert int.from_bytes(record[:HEADER]) == TAG + 3 == len(record) - HEADER


@CIPHERS
def test_sealing_into_a_buffer(cipher: Cipher) -> None:
    sealer, out = RecordSealer(cipher, KEY), bytearray(b"\xee" * 100)
    end = sealer.seal_into(memoryview(b"first"), memoryview(out), 7)
    end = sealer.seal_into(b"second", memoryview(out), end)
    assert bytes(out) == b"\xee" * 7 + b"".join(sealed(cipher, b"first", b"second")) + b"\xee" * (100 - end)
    assert (sealer.records, sealer.bytes) == (2, 11 + 2 * TAG)


@CIPHERS
def test_counting(cipher: Cipher) -> None:
    opener = RecordOpener(cipher, KEY)
    assert open_all(opener, b"".join(sealed(cipher, b"first", b"second"))) == [b"first", b"second"]
    assert (opener.records, opener.bytes) == (2, 11 + 2 * TAG)


@CIPHERS
def test_the_largest_record(cipher: Cipher) -> None:
    plaintext = bytes(MAX_PLAINTEXT)
    (record,) = sealed(cipher, plaintext)
    assert open_all(RecordOpener(cipher, KEY), record) == [plaintext]


@CIPHERS
def test_byte_by_byte(cipher: Cipher) -> None:
    plaintexts = [b"a", b"bc" * 20, b"d"]
    opener, waiting, opened = RecordOpener(cipher, KEY), b"", []
    for byte in b"".join(sealed(cipher, *plaintexts)):
        waiting += bytes((byte,))
        plaintext, used = opener.open(memoryview(waiting), 0)
        waiting = waiting[used:]
        if plaintext is None:
            assert used == 0
        else:
            opened.append(plaintext)
    assert opened == plaintexts and not waiting


@CIPHERS
def test_any_changed_byte(cipher: Cipher) -> None:
    """An enlarged length waits for bytes that do not come, or swallows the next record: see also liveness."""
    first, second = sealed(cipher, b"first", b"second")
    for position in range(len(first)):
        for change in (0x01, 0x80):
            changed = bytearray(first)
            changed[position] ^= change
            opener = RecordOpener(cipher, KEY)
            enlarged = int.from_bytes(changed[:HEADER]) > len(first) - HEADER
            if enlarged and int.from_bytes(changed[:HEADER]) <= MAX_RECORD:
                assert open_all(opener, bytes(changed)) == []
                assert_damaged(opener, bytes(changed) + second + bytes(MAX_RECORD))
            else:
                assert_damaged(opener, bytes(changed) + second)
            assert opener.records == 0


@CIPHERS
@pytest.mark.parametrize("length", [0, 1, TAG - 1, TAG, MAX_RECORD + 1, 2**31, 2**32 - 1])
def test_impossible_lengths_are_refused_at_once(cipher: Cipher, length: int) -> None:
    assert_damaged(RecordOpener(cipher, KEY), length.to_bytes(HEADER))


@CIPHERS
def test_the_length_is_authenticated(cipher: Cipher) -> None:
    """The same ciphertext with a length that is right for another cut of the stream."""
    first, second = sealed(cipher, b"a" * 20, b"b" * 20)
    joined = first[HEADER:] + second
    assert_damaged(RecordOpener(cipher, KEY), len(joined).to_bytes(HEADER) + joined)
    shorter = (len(first) - HEADER - 1).to_bytes(HEADER) + first[HEADER:]
    assert_damaged(RecordOpener(cipher, KEY), shorter)


@CIPHERS
def test_replay_reorder_and_loss(cipher: Cipher) -> None:
    first, second, third = sealed(cipher, b"first", b"second", b"third")
    assert_damaged(RecordOpener(cipher, KEY), first + first)
    assert_damaged(RecordOpener(cipher, KEY), second + first)
    assert_damaged(RecordOpener(cipher, KEY), first + third)
    assert_damaged(RecordOpener(cipher, KEY), first + second + third + first)


@CIPHERS
def test_other_keys_and_ciphers(cipher: Cipher) -> None:
    (record,) = sealed(cipher, b"first")
    assert_damaged(RecordOpener(cipher, bytes(32)), record)
    other = next(c for c in Cipher if c is not cipher)
    assert_damaged(RecordOpener(other, KEY), record)


@given(st.binary(max_size=200), st.sampled_from(Cipher))
def test_arbitrary_bytes_open_nothing(data: bytes, cipher: Cipher) -> None:
    opener = RecordOpener(cipher, KEY)
    try:
        assert open_all(opener, data) == []
    except CarrierError as error:
        assert error.reason is CloseReason.BAD_RECORD


def test_a_part_of_a_record_changes_nothing() -> None:
    """However much of it is there: test_resume.py cuts carriers only where a record could look different."""
    for plaintext in (b"x", bytes(100), bytes(LARGE)):
        (record,) = sealed(Cipher.CHACHA20_POLY1305, plaintext)
        opener = RecordOpener(Cipher.CHACHA20_POLY1305, KEY)
        for size in range(len(record)):
            assert opener.open(memoryview(record)[:size], 0) == (None, 0)
        assert (opener.records, opener.bytes) == (0, 0)
        opened, end = opener.open(memoryview(record), 0)
        assert (opened, end, opener.records) == (plaintext, len(record), 1)


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.data())
def test_any_pieces(plaintexts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(sealed(Cipher.CHACHA20_POLY1305, *plaintexts))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=10).map(sorted))
    opener, waiting, opened = RecordOpener(Cipher.CHACHA20_POLY1305, KEY), b"", []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        waiting += stream[start:end]
        position = 0
        while True:
            plaintext, position = opener.open(memoryview(waiting), position)
            if plaintext is None:
                break
            opened.append(plaintext)
        waiting = waiting[position:]
    assert opened == plaintexts and not waiting
