"""The lane, as docs/protocol.md has it: the second client against the real exit."""

from __future__ import annotations

import json

import pytest

from tests.support.pages import ROOT
from tests.support.second_flights import AES, CHACHA
from tests.support.second_lane import LaneKey, Ranges, read_ack

pytestmark = pytest.mark.timeout(60)
VECTORS = json.loads((ROOT / "tests/vectors/lane.json").read_text())


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: str(case["cipher"]))
def test_frozen_datagrams_open(case: dict[str, object]) -> None:
    cipher = AES if str(case["cipher"]).startswith("AES") else CHACHA
    key = LaneKey(cipher, bytes.fromhex(str(case["key"])), int(str(case["index"])))
    counter = 0
    for row in case["sent"]:  # type: ignore[attr-defined]
        for datagram in row["datagrams"]:
            told, message = key.open(bytes.fromhex(datagram))
            assert told == counter
            assert key.seal(counter, message) == bytes.fromhex(datagram)
            counter += 1


def test_ranges_in_any_order() -> None:
    ranges = Ranges()
    for counter in [5, 3, 9, 4, 4, 0, 10, 9]:
        ranges.add(counter)
    assert ranges.pairs == [(0, 1), (3, 6), (9, 11)]
    assert read_ack(ranges.message(0)) == [(9, 11), (3, 6), (0, 1)]
