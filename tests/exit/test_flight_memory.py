"""The memory of first flights, alone and over restarts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.carriers.admission import frame_flight, read_flight
from cryprq_proxy.crypto.handshake import SECOND_SIZE
from cryprq_proxy.errors import ConfigError
from cryprq_proxy.exit import flight_memory as module
from cryprq_proxy.exit.flight_memory import FILE, RECENT, FlightFiles, FlightMemory, kept_flights
from tests.support.visits import ALICE, Visit, open_exit


def flights(first: int, end: int) -> list[bytes]:
    return [b"flight %d" % number for number in range(first, end)]


@asynccontextmanager
async def kept(directory: Path, most: int = 100) -> AsyncIterator[FlightMemory]:
    files = FlightFiles(directory, most)
    try:
        yield files.memory
    finally:
        await files.close()


# --- the memory ---


def test_a_repeat_is_seen() -> None:
    memory = FlightMemory()
    assert not memory.seen(b"a")
    assert not memory.seen(b"b")
    assert memory.seen(b"a")
    assert memory.seen(b"b")
    assert len(memory) == memory.taken == 2


def test_a_full_memory_forgets_its_oldest() -> None:
    memory = FlightMemory(most=3)
    for flight in (b"a", b"b", b"c", b"d"):
        assert not memory.seen(flight)
    assert len(memory) == 3
    assert all(memory.seen(flight) for flight in (b"b", b"c", b"d"))
    assert not memory.seen(b"a")


def test_what_was_known_counts_as_older() -> None:
    before = FlightMemory(most=3)
    for flight in flights(0, 3):
        before.seen(flight)
    after = FlightMemory(before.latest(10), most=2)
    assert len(after) == after.taken == 2
    assert not after.seen(b"flight 0")
    assert after.seen(b"flight 2")
    assert not after.seen(b"flight 1"), "the oldest made room for the one that was forgotten"


@given(st.lists(st.integers(0, 12), max_size=80))
def test_the_memory_agrees_with_a_plain_one(calls: list[int]) -> None:
    memory, plain = FlightMemory(most=5), list[int]()
    for flight in calls:
        assert memory.seen(bytes([flight])) is (flight in plain)
        if flight not in plain:
            plain = [*plain[-4:], flight]
    assert len(memory) == len(plain) == len(memory.latest(100))
    assert memory.latest(2) == memory.latest(100)[-2:]


# --- on disk ---


async def test_a_flight_that_was_answered_is_not_answered_after_a_restart(tmp_path: Path) -> None:
    """It was: the memory ended with the process."""
    flight = b""
    for start in range(2):
        async with kept(tmp_path) as memory, open_exit(flights=memory) as exit:
            visit = Visit(exit, ALICE)
            flight = flight or frame_flight(visit.handshake.write_first())
            await visit.pipe.write(flight)
            if start == 0:
                await read_flight(visit.pipe, SECOND_SIZE)
            else:
                assert await visit.is_closed()
                assert exit.listener.failed == {"no_handshake": 1}
            visit.cut()


async def test_flights_are_on_disk_after_a_second_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.SAVE_SECONDS <= 1.0
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.001)
    written, loop = asyncio.Event(), asyncio.get_running_loop()
    write = FlightFiles._write

    def noted(files: FlightFiles, new: list[bytes]) -> None:
        write(files, new)
        loop.call_soon_threadsafe(written.set)

    monkeypatch.setattr(FlightFiles, "_write", noted)
    async with kept(tmp_path) as memory:
        memory.seen(b"a")
        await written.wait()
        async with kept(tmp_path) as after_a_crash:
            assert after_a_crash.seen(b"a")


@pytest.mark.parametrize("later", [[], [b"b"]], ids=["nothing more", "one more"])
async def test_an_end_during_a_writing_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: list[bytes]
) -> None:
    """It was not: the exit hung for ever when it was stopped a second after a client had come."""
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.001)
    writing, proceed, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()
    write = FlightFiles._write

    def held(files: FlightFiles, new: list[bytes]) -> None:
        loop.call_soon_threadsafe(writing.set)
        proceed.wait()
        write(files, new)

    monkeypatch.setattr(FlightFiles, "_write", held)
    files = FlightFiles(tmp_path)
    files.memory.seen(b"a")
    await writing.wait()
    closing = asyncio.create_task(files.close())
    await asyncio.sleep(0)
    for flight in later:
        files.memory.seen(flight)
    proceed.set()
    async with asyncio.timeout(10):
        await closing
    async with kept(tmp_path) as memory:
        assert all(memory.seen(flight) for flight in [b"a", *later])


async def test_nothing_wakes_while_no_flight_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, timers = asyncio.get_running_loop(), list[float]()
    call_at = loop.call_at

    def counted(when: float, callback: Callable[..., object], *args: Any, context: Any = None) -> Any:
        timers.append(when)
        return call_at(when, callback, *args, context=context)

    monkeypatch.setattr(loop, "call_at", counted)
    async with kept(tmp_path) as memory:
        for _ in range(10):
            await asyncio.sleep(0)
        assert not timers
        memory.seen(b"a")
        for _ in range(10):
            await asyncio.sleep(0)
        assert timers
    async with kept(tmp_path) as memory:
        assert memory.seen(b"a")


async def test_few_are_written_each_time_and_all_when_they_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RECENT", 3)
    sizes = []
    for end in range(1, 12):
        async with kept(tmp_path, most=8) as memory:
            assert all(memory.seen(flight) for flight in flights(max(0, end - 9), end - 1))
            memory.seen(b"flight %d" % (end - 1))
        files = (tmp_path / FILE, tmp_path / RECENT)
        sizes.append([len(file.read_text().split()) if file.exists() else 0 for file in files])
        assert files[1].stat().st_mode & 0o777 == 0o600
    assert sizes == [
        [0, 1], [0, 2], [0, 3], [4, 0], [4, 1], [4, 2], [4, 3], [8, 0], [8, 1], [8, 2], [8, 3],
    ]  # fmt: skip


async def test_the_whole_list_has_no_more_than_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RECENT", 3)
    for end in range(4, 17, 4):
        async with kept(tmp_path, most=8) as memory:
            for flight in flights(end - 4, end):
                memory.seen(flight)
    hashes = (tmp_path / FILE).read_text().split()
    assert len(hashes) == 8
    async with kept(tmp_path, most=16) as memory:
        assert len(memory) == 8
        assert all(memory.seen(flight) for flight in flights(8, 16))


async def test_nothing_is_written_when_nothing_is_new(tmp_path: Path) -> None:
    async with kept(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


async def test_two_exits_share_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RECENT", 3)
    async with kept(tmp_path) as one, kept(tmp_path) as other:
        for flight in flights(0, 5):
            one.seen(flight)
        for flight in flights(5, 7):
            other.seen(flight)
    async with kept(tmp_path) as memory:
        assert all(memory.seen(flight) for flight in flights(0, 7))


async def test_a_crash_between_the_two_files_loses_nothing(tmp_path: Path) -> None:
    async with kept(tmp_path) as memory:
        for flight in flights(0, 5):
            memory.seen(flight)
    (tmp_path / FILE).write_bytes((tmp_path / RECENT).read_bytes())
    (tmp_path / FILE).chmod(0o600)
    async with kept(tmp_path) as memory:
        assert len(memory) == 5
        memory.seen(b"one more")
    async with kept(tmp_path) as memory:
        assert all(memory.seen(flight) for flight in (*flights(0, 5), b"one more"))


async def test_a_damaged_file_is_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with kept(tmp_path) as memory:
        memory.seen(b"a")
    with (tmp_path / RECENT).open("a") as file:
        file.write("short\n" + "0" * 31 + "\n" + "Z" * 32 + "\n")
    (tmp_path / FILE).write_bytes(b"\xff" * 100)
    async with kept(tmp_path) as memory:
        assert len(memory) == 1
        assert memory.seen(b"a")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "may be answered once more after a restart" in caplog.text


async def test_files_that_cannot_be_written_are_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "state"
    directory.write_text("a file in its place")
    async with kept(directory) as memory:
        memory.seen(b"a")
        files = FlightFiles(directory)
        files.memory.seen(b"b")
        await files._save()
        await files._save()
        await files.close()
        assert memory.seen(b"a")
    assert len([record for record in caplog.records if "cannot be written" in record.message]) == 2


async def test_the_state_directory_is_where_they_are(own_directories: Path) -> None:
    async with kept_flights() as memory:
        memory.seen(b"a")
    assert (own_directories / ".local/state/cryprq" / RECENT).exists()
    async with kept_flights() as memory:
        assert memory.seen(b"a")


async def test_without_a_state_directory_they_last_as_long_as_the_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none() -> Path:
        raise ConfigError("there is no home directory")

    monkeypatch.setattr(module, "state_dir", none)
    async with kept_flights() as memory:
        assert not memory.seen(b"a")
        assert memory.seen(b"a")
    assert "there is no home directory" in caplog.text


async def test_a_file_that_others_could_write_is_replaced_by_one_that_counts(tmp_path: Path) -> None:
    """What it held is forgotten, but not what comes then."""
    async with kept(tmp_path) as memory:
        memory.seen(b"old")
    (tmp_path / RECENT).chmod(0o666)
    async with kept(tmp_path) as memory:
        assert not memory.seen(b"old")
        memory.seen(b"new")
    async with kept(tmp_path) as memory:
        assert memory.seen(b"new")
        assert memory.seen(b"old")
