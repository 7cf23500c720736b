"""Two sessions with a datagram lane between them, whatever happens to that and to the paths beside it."""

from __future__ import annotations

import os
import random

import pytest

from cryprq_proxy.session.lane_choice import HOLD_SECONDS
from cryprq_proxy.session.lane_path import LanePath
from tests.support.choices import Choices
from tests.support.settings import rotation_limits
from tests.support.simulated_apps import Ending, Manner
from tests.support.simulated_play import LanePlay
from tests.support.simulated_stage import Stage, play_limits

PLAYS = int(os.environ.get("SIMULATED_PLAYS", "60"))
"""Some thousand for the long form."""
BLOCK = 10
CALM = play_limits(rotation=rotation_limits(interval=600.0))


def seeded_play(seed: int) -> LanePlay:
    return LanePlay(Choices(random.Random(seed).randbytes(300)))


@pytest.mark.parametrize("first", range(0, PLAYS, BLOCK))
def test_whatever_happens_to_the_lane_and_the_paths_the_session_keeps_its_promises(first: int) -> None:
    for seed in range(first, first + BLOCK):
        seeded_play(seed).run()


def test_a_play_is_the_same_each_time() -> None:
    plays = [seeded_play(7), seeded_play(7)]
    for play in plays:
        play.run()
    assert plays[0].trace == plays[1].trace
    assert plays[0].stage.clock.events == plays[1].stage.clock.events


def lanes(stage: Stage) -> list[LanePath]:
    return [end.path for end in stage.lane.ends] if stage.lane is not None else []


def moving(streams: int = 4, *, size: int = 1 << 20) -> Stage:
    """Streams that talk by the lane all the time."""
    talk = Manner(size=size, piece=3_000, pause=0.004, ending=Ending.WAIT)
    stage = Stage(CALM, manner=lambda stream: talk)
    stage.add_lane()
    for _ in range(streams):
        stage.open(talk)
    stage.run(2.0)
    assert all(lane.carries for lane in lanes(stage))
    return stage


@pytest.mark.parametrize("loss", [0.01, 0.1, 0.3])
def test_what_a_lane_loses_goes_again(loss: float) -> None:
    stage = moving()
    lane = stage.lane
    assert lane is not None
    lane.change(loss=loss, jitter=0.02, repeated=0.1)
    before = [talker.received for talker in stage.talkers]
    stage.run(3.0)
    assert all(talker.received > count for talker, count in zip(stage.talkers, before, strict=True))
    stage.finish()


def test_a_session_lives_with_the_lane_alone_and_a_new_path_joins() -> None:
    stage = moving()
    network = stage.network
    network.wanted = 0
    network.connections[0].reset()
    stage.run(100.0)
    assert not stage.client.session.paths and all(lane.carries for lane in lanes(stage))
    stage.open(Manner(size=60_000))
    stage.run(5.0)
    assert len(stage.streams) == 5 and stage.streams[5].exit is not None
    network.wanted = 1
    network.keep_up()
    stage.run(5.0)
    assert stage.client.session.paths and not stage.client.errors
    stage.finish()


@pytest.mark.parametrize("interval", [1.0, 4.0])
def test_keys_are_rotated_with_the_lane_alone(interval: float) -> None:
    """Under loss too, and where what confirms an epoch comes later than the next rotation begins."""
    stage = Stage(play_limits(rotation=rotation_limits(interval=interval)))
    lane = stage.add_lane()
    stage.run(2.0)
    stage.network.wanted = 0
    stage.network.connections[0].reset()
    lane.change(loss=0.2, jitter=0.5)
    before = stage.client.session.rotation.current
    stage.run(60.0)
    assert stage.client.session.rotation.current > before + 20 / interval
    assert not stage.client.errors and not stage.exit.errors
    stage.network.wanted = 1
    stage.network.keep_up()
    stage.finish()


@pytest.mark.parametrize(("up", "down"), [(True, True), (True, False), (False, True)])
def test_a_lane_that_is_blocked_hands_over_and_takes_over_again(up: bool, down: bool) -> None:
    stage = moving()
    lane = stage.lane
    assert lane is not None
    lane.block(up=up, down=down)
    before = [talker.received for talker in stage.talkers]
    stage.run(1.0)
    assert all(talker.received > count for talker, count in zip(stage.talkers, before, strict=True))
    lane.go_on()
    stage.run(5.0)
    assert all(path.carries for path in lanes(stage))
    stage.finish()


def fail(stage: Stage, seconds: float, *, tcp: bool) -> None:
    """The lane fails for a time, and TCP too if `tcp` says so."""
    lane, connections = stage.lane, stage.network.connections if tcp else []
    assert lane is not None
    lane.block()
    for connection in connections:
        connection.stop()
    stage.run(seconds)
    lane.go_on()
    for connection in connections:
        connection.go_on()


@pytest.mark.parametrize("seconds", [0.5, 1.5, 3.0, 5.0])
def test_black_outs_of_all_of_the_network_do_not_keep_streams_off_the_lane(seconds: float) -> None:
    stage = moving()
    for _ in range(6):
        fail(stage, seconds, tcp=True)
        stage.run(HOLD_SECONDS + 0.5)
        assert all(path.carries for path in lanes(stage)), [path.choice.why for path in lanes(stage)]
    stage.finish()


@pytest.mark.parametrize("seconds", [3.0, 5.0])
def test_a_lane_that_fails_alone_again_and_again_rests_for_longer(seconds: float) -> None:
    stage = moving()
    for _ in range(6):
        fail(stage, seconds, tcp=False)
        stage.run(3 * HOLD_SECONDS)
    assert not any(path.carries for path in lanes(stage))
    stage.finish()
