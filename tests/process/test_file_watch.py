"""Files that change while the program runs: what counts as a change, and when it is told."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from cryprq_proxy.base.file_access import Mark, mark
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.process.file_watch import LOOK_SECONDS, REST_SECONDS, FileWatch

A, B = Path("/a"), Path("/b")


def state(number: int) -> Mark:
    return (1, number, number, number)


def watch(*files: Path) -> FileWatch:
    """It has marked `files` in their first state."""
    watched = FileWatch(look=lambda _: state(1))
    watched.before_reading(*files)
    return watched


@pytest.mark.parametrize(
    ("looks", "told"),
    [
        ([1, 1, 1], [False, False, False]),
        ([1, 2, 2, 2], [False, False, True, False]),
        ([1, 2, 3, 3, 3], [False, False, False, True, False]),
        ([2, 2, 2], [False, True, False]),
        ([None, 1, 1], [False, False, True]),
        ([1, None, None, None], [False, False, True, False]),
        ([1, None, 2, 2], [False, False, False, True]),
        ([1, 2, 2, 3, 3], [False, False, True, False, True]),
        ([1, 2, 1, 1], [False, False, False, True]),
    ],
)
def test_a_change_is_told_once_it_is_over(looks: list[int | None], told: list[bool]) -> None:
    watched = watch(A)
    assert [watched.note({A: None if look is None else state(look)}) for look in looks] == told


def test_one_restless_file_holds_back_the_others() -> None:
    watched = watch(A, B)
    assert not watched.note({A: state(2), B: state(1)})
    assert not watched.note({A: state(2), B: state(2)})
    assert watched.note({A: state(2), B: state(2)})


def test_a_file_that_is_read_again_keeps_its_mark() -> None:
    states = [1, 2, 2]
    watched = FileWatch(look=lambda _: state(states.pop(0)))
    watched.before_reading(A)
    watched.before_reading(A, B)  # A has changed meanwhile, and nobody has noticed yet
    assert not watched.note({A: state(2), B: state(2)})
    assert watched.note({A: state(2), B: state(2)})


async def test_what_was_read_last_is_compared_with_what_is_there() -> None:
    states = {A: 1, B: 1}
    watched = FileWatch(look=lambda file: state(states[file]))
    watched.before_reading(A)
    watched.before_reading(B)
    assert not await watched.differs()
    states[B] = 2
    assert await watched.differs()
    # A look that notices it is no reading.
    watched.note({A: state(1), B: state(2)})
    assert await watched.differs()
    watched.before_reading(A, anew=True)
    # B is not read any more.
    assert not await watched.differs()


async def test_a_change_between_reading_and_the_first_look_is_told(tmp_path: Path) -> None:
    file, clock, calls = tmp_path / "authorized", Clock(), []

    async def changed() -> None:
        calls.append(file.read_text())

    file.write_text("before the start")
    watched = FileWatch(sleep=clock)
    watched.before_reading(file)
    file.write_text("during the start")
    watching = spawn(watched.run(changed), "watch")
    await clock.tick()
    await clock.tick()
    assert calls == ["during the start"]
    # An idle program is woken seldom; a change is not kept waiting once it has been seen.
    assert clock.slept == [REST_SECONDS, LOOK_SECONDS, LOOK_SECONDS]
    assert 1.0 == REST_SECONDS < LOOK_SECONDS <= 10.0
    watching.cancel()


def test_marks_of_real_files(tmp_path: Path) -> None:
    file = tmp_path / "rules"
    assert mark(file) is None
    file.write_text("one")
    first = mark(file)
    assert first == mark(file) is not None
    other = tmp_path / "new"
    other.write_text("two")
    status = file.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(other, file)
    assert mark(file) != first  # of the same size and time, but another file
    replaced = mark(file)
    changed_at = file.stat().st_ctime_ns
    while file.stat().st_ctime_ns == changed_at:  # until the next tick of the kernel's clock
        file.write_text("six")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert mark(file) != replaced  # of the same size and time, and the same file
    assert mark(Path("/\0")) is None
    (tmp_path / "link").symlink_to(file)
    assert mark(tmp_path / "link") == mark(file)


class Clock:
    """A sleep that ends when the test says so."""

    def __init__(self) -> None:
        self._turn = asyncio.Event()
        self._asleep = asyncio.Event()
        self.slept: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._asleep.set()
        await self._turn.wait()
        self._turn.clear()

    async def tick(self) -> None:
        """One look from its beginning to its end."""
        await self._asleep.wait()
        self._asleep.clear()
        self._turn.set()
        await self._asleep.wait()


async def test_looking_at_real_files_that_an_editor_replaces(tmp_path: Path) -> None:
    file, clock, calls = tmp_path / "client.toml", Clock(), []

    async def changed() -> None:
        calls.append(file.read_text())

    file.write_text("one")
    watched = FileWatch(sleep=clock)
    watched.before_reading(file)
    watching = spawn(watched.run(changed), "watch")
    await clock.tick()
    assert calls == []
    for text in ("", "two, half", "two, whole"):
        new = tmp_path / f"new {text}"
        new.write_text(text)
        new.replace(file)
        await clock.tick()
    assert calls == []
    await clock.tick()
    await clock.tick()
    assert calls == ["two, whole"]
    file.unlink()
    await clock.tick()
    file.write_text("back")
    await clock.tick()
    await clock.tick()
    assert calls == ["two, whole", "back"]
    watching.cancel()
