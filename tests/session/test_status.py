"""What the status tells of sessions: the ledger of epochs, and totals that outlive them."""

from __future__ import annotations

from cryprq_proxy.crypto.primitives import Cipher
from cryprq_proxy.errors import CloseReason, StreamReason
from cryprq_proxy.session.epochs import EXCHANGE, MAX_EPOCHS
from cryprq_proxy.session.path import FILL_MINIMUM
from cryprq_proxy.session.session import Session
from cryprq_proxy.session.status import Totals, by_name, session_status
from cryprq_proxy.session.streams import Stream
from cryprq_proxy.status import EpochStatus, LaneStatus, PacketLinkStatus, Traffic
from tests.support.lane_pair import ROUND_TRIP, LanePair
from tests.support.links import App, Link
from tests.support.settings import rotation_limits, session_limits

INTERVAL = 60.0
LIMITS = session_limits(rotation=rotation_limits(interval=INTERVAL))
PIECE = 100_000


def ledger(session: Session, now: float) -> tuple[EpochStatus, ...]:
    return session_status(session, now, {}, None).epochs


def send(link: Link, up: App, down: App, size: int = PIECE) -> None:
    up.say(bytes(size))
    link.carrier.advance(0.0)


def test_bytes_go_to_the_epoch_that_carried_them() -> None:
    link = Link(LIMITS)
    up, down = link.pair()
    send(link, up, down)
    link.carrier.advance(INTERVAL + 1)
    send(link, up, down, 3 * PIECE)
    now = link.carrier.now
    client, exit = ledger(link.client, now), ledger(link.exit, now)
    for told in (client, exit):
        assert [(each.number, each.current) for each in told] == [(1, True), (0, False)]
        assert all(each.exchange == EXCHANGE and each.cipher for each in told)
    for newer_or_older, size in ((0, 3 * PIECE), (1, PIECE)):
        sent, received = client[newer_or_older].bytes_sent, exit[newer_or_older].bytes_received
        assert size < sent == received < size * 1.05 + 5_000
    assert 0 < client[0].bytes_received == exit[0].bytes_sent < PIECE


def test_all_paths_are_told() -> None:
    link = Link()
    link.quiesce()
    link.join()
    told = session_status(link.client, link.now, {1: ("ws", "ws://exit.example")}, None)
    assert [(path.number, path.use, path.kind, path.address) for path in told.paths] == [
        (0, "in use", "?", ""),
        (1, "standby", "ws", "ws://exit.example"),
    ]
    first, keys = told.paths[0], link.client.paths[0].keys
    assert (first.bytes_sent, first.bytes_received) == (keys.sealer.bytes, keys.opener.bytes)
    assert first.bytes_sent and first.bytes_received and first.round_trip == 0.0
    link.client.paths[1].liveness.doubt()
    assert session_status(link.client, link.now, {}, None).paths[1].use == "doubted"


def test_bytes_of_a_path_outlive_its_keys() -> None:
    link = Link(LIMITS)
    up, down = link.pair()
    send(link, up, down)
    link.carrier.advance(2 * INTERVAL)
    for session, sent, received in ((link.client, PIECE, 0), (link.exit, 0, PIECE)):
        [path] = session_status(session, link.now, {}, None).paths
        assert session.paths[0].keys.send_epoch == 2
        assert sent <= path.bytes_sent < sent * 1.05 + 10_000
        assert received <= path.bytes_received < received * 1.05 + 10_000


def test_what_a_path_has_in_flight() -> None:
    link = Link()
    up, _ = link.pair()
    link.quiesce()
    up.say(bytes(5_000))
    [path] = session_status(link.client, link.now, {}, None).paths
    assert path.in_flight == 0, "it has not left"
    link.client.paths[0].fill(memoryview(bytearray(FILL_MINIMUM + 9_000)), 9_000, link.now)
    [path] = session_status(link.client, link.now, {}, None).paths
    assert 5_000 < path.in_flight < 5_100


def test_the_lane_is_told_behind_the_paths() -> None:
    on = LanePair()
    up, _ = on.pair()
    up.say(bytes(5_000))
    [load] = on.take(on.client)
    tcp, lane = session_status(on.client, on.now, {}, None).paths
    assert (tcp.use, lane.use, lane.kind, lane.number, lane.why) == (
        "standby",
        "in use",
        "lane",
        None,
        "UDP passes",
    )
    assert lane.in_flight == load.size == 5_000
    assert (lane.rate, lane.loss, lane.round_trip) == (None, None, None)
    before = lane.bytes_sent
    assert on.deliver(on.client, load)
    told = session_status(on.exit, on.now, {}, None).paths[-1]
    assert told.bytes_received == before > 5_000
    on.lane(on.client).paced(2e6, ROUND_TRIP)
    on.lane(on.client).round_over(1e6, 0.08, False, on.now)
    on.lane(on.client).round_over(1e6, 0.0, False, on.now)
    lane = session_status(on.client, on.now, {}, None).paths[-1]
    assert (lane.rate, lane.loss) == (2e6, 0.07)


def test_one_round_trip_of_the_lane_is_told_everywhere() -> None:
    """There were two, the least and the smoothed one, and that of the streams was the record path's."""
    on = LanePair()
    packets = PacketLinkStatus(lane=LaneStatus(round_trip=0.075))
    for carries in (True, False):
        if not carries:
            on.shorten(on.client)
        told = session_status(on.client, on.now, {}, packets)
        tcp, lane = told.paths
        assert (lane.use == "in use", lane.round_trip) == (carries, 0.075)
        assert told.round_trip == (lane if carries else tcp).round_trip


def test_the_cipher_of_a_session_that_the_lane_alone_carries_is_the_lanes() -> None:
    on = LanePair()
    on.cut()
    told = session_status(on.client, on.now, {}, None)
    assert told.attached
    assert told.cipher == told.paths[0].cipher == on.client.rotation.cipher.name


def test_a_lane_that_does_not_carry_says_why() -> None:
    on = LanePair()
    on.shorten(on.client)
    tcp, lane = session_status(on.client, on.now, {}, None).paths
    assert (tcp.use, lane.use) == ("in use", "standby") and "so short that TCP costs less" in lane.why
    on.set_up(False)
    tcp, lane = session_status(on.client, on.now, {}, None).paths
    assert (tcp.use, lane.use, lane.why) == ("in use", "down", "a test says so")


def test_the_cipher_is_that_of_the_path_in_use() -> None:
    """It was that of the first handshake, whatever came after."""
    link = Link()
    link.quiesce()
    link.cipher = next(cipher for cipher in Cipher if cipher is not link.cipher)
    link.join()
    link.client.prefer(1)
    told = session_status(link.client, link.now, {}, None)
    assert told.cipher == told.paths[1].cipher == link.cipher.name != told.paths[0].cipher


def test_ages() -> None:
    link = Link(LIMITS)
    link.carrier.advance(2 * INTERVAL + 10)
    newest, middle, oldest = ledger(link.client, link.carrier.now)
    assert abs(newest.since - 10) < 2 and newest.lasted == newest.since
    assert abs(middle.lasted - INTERVAL) < 2 and abs(oldest.lasted - INTERVAL) < 2
    assert middle.since > INTERVAL and oldest.since > 2 * INTERVAL


def test_the_ledger_goes_on_over_paths() -> None:
    """What a path carries on the keys of its handshake counts for the epoch by whose secret it joined."""
    link = Link(LIMITS)
    up, down = link.pair()
    send(link, up, down)
    link.carrier.advance(INTERVAL + 1)
    link.carrier.cut()
    parted = ledger(link.client, link.carrier.now)
    assert [(each.number, each.current) for each in parted] == [(1, True), (0, False)]
    assert parted[1].bytes_sent > PIECE > parted[0].bytes_sent
    link.resume()
    send(link, up, down, 3 * PIECE)
    told = ledger(link.client, link.carrier.now)
    assert [each.number for each in told] == [2, 1, 0], "the secret of epoch 1 was replaced"
    assert told[1].bytes_sent > 3 * PIECE > told[0].bytes_sent
    assert told[2].bytes_sent == parted[1].bytes_sent


def test_the_paths_of_a_session_are_counted_together() -> None:
    link = Link(LIMITS)
    link.join()
    for path in link.exit.paths.values():
        path.keys.opener.bytes += PIECE
    link.exit.ledger.opened(0, link.exit.paths[1].keys.opener)
    assert ledger(link.exit, link.carrier.now)[0].bytes_received == 3 * PIECE


def test_the_ledger_is_bounded_and_holds_no_keys() -> None:
    link = Link(LIMITS)
    link.carrier.advance((MAX_EPOCHS + 10) * INTERVAL)
    told = ledger(link.client, link.carrier.now)
    assert len(told) == MAX_EPOCHS and told[0].number > MAX_EPOCHS
    assert [each.number for each in told] == list(range(told[0].number, told[0].number - MAX_EPOCHS, -1))
    for epoch in link.client.ledger._epochs:
        values = [getattr(epoch, name) for name in epoch.__slots__]
        assert all(isinstance(value, int | float | str | None) for value in values)


def test_totals_outlive_sessions() -> None:
    totals = Totals()
    first = Link(LIMITS)
    up, down = first.pair()
    send(first, up, down)
    first.carrier.advance(INTERVAL + 1)
    assert totals.bytes(first.client) == Traffic(sent=PIECE, received=0)
    assert totals.rotations(first.client) == 1
    first.client.close(CloseReason.NORMAL)
    totals.add(first.client)
    assert totals.bytes() == Traffic(sent=PIECE, received=0)
    assert totals.rotations() == 1
    second = Link(LIMITS)
    up, down = second.pair()
    send(second, up, down)
    assert totals.bytes(second.client).sent == 2 * PIECE


def test_refusals_are_counted_by_reason() -> None:
    def refuse(stream: Stream) -> App:
        stream.refuse(StreamReason.NOT_ALLOWED)
        return App()

    link = Link(LIMITS)
    link.serve = refuse
    for _ in range(3):
        link.open()
    link.carrier.advance(0.0)
    assert by_name(link.exit.table.refused) == {"not_allowed": 3}
    totals = Totals()
    totals.add(link.exit)
    assert by_name(totals.refused, link.exit.table.refused) == {"not_allowed": 6}
