"""The conntrack marks: what is in them comes out again, and no number is taken twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tun.linux.firewall.marks import LAST_PAUSE, LAST_RUN, MarkKind, Marks, Reason, reason_of_mark

runs = st.integers(1, LAST_RUN)


@given(runs, st.integers(0, LAST_PAUSE), st.sampled_from(MarkKind))
def test_a_mark_says_run_pause_and_kind(run: int, pause: int, kind: MarkKind) -> None:
    mark = Marks(run, pause).of(kind)
    assert reason_of_mark(mark) == Reason(run, pause if kind is MarkKind.PAUSED else 0, kind)
    assert mark & 0xFFFFFC00 == Marks(run).this_run
    assert mark & 0xFFF00007 == kind.any_run


@given(st.integers(0, 0xFFFFFFFF).filter(lambda mark: mark >> 20 != 0x637))
def test_other_programs_marks_say_nothing(mark: int) -> None:
    assert reason_of_mark(mark) is None


def test_the_number_of_a_pause_is_never_none() -> None:
    marks = Marks(7)
    seen = []
    for _ in range(LAST_PAUSE + 1):
        marks = marks.next_pause()
        seen.append(marks.pause)
    assert seen == [*range(1, LAST_PAUSE + 1), 1]


@given(runs, st.sets(runs, max_size=50))
def test_another_run_is_another(run: int, avoid: set[int]) -> None:
    found = Marks(run, 3).next_run(avoid)
    assert found.run not in {run, *avoid}
    assert (1 <= found.run <= LAST_RUN, found.pause) == (True, 0)


def test_where_all_are_taken_any_is_good_enough() -> None:
    assert 1 <= Marks(1).next_run(range(1, LAST_RUN + 1)).run <= LAST_RUN
