"""The journal: what is recorded is on the disk before it is done, whatever ends the process; and how it is undone."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryprq_proxy.base import macos_programs
from cryprq_proxy.errors import ConfigError, CryprqError, LocalError
from tun.journal import MAX_ENTRY, MAX_JOURNAL, Entry, Journal, boot_id, parse, same_boot, undo

ROOT = Path(__file__).parent.parent.parent
PLAIN = st.dictionaries(
    st.text(max_size=10),
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=20) | st.lists(st.text()),
    max_size=5,
)
KINDS = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal(path) as journal:
        yield journal


def values(entries: list[Entry]) -> list[object]:
    return [entry["n"] for entry in entries]


def test_directory_and_files_are_the_owners_alone(journal: Journal, path: Path) -> None:
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [file.stat().st_mode & 0o777 for file in path.parent.iterdir()] == [0o600, 0o600]


def test_entries_survive_in_order_with_the_boot_id(path: Path) -> None:
    with Journal(path) as journal:
        for n in range(3):
            journal.record({"kind": "test", "n": n, "more": {"list": [1, None, "é"]}})
        written = path.read_bytes()
    with Journal(path) as journal:
        assert path.read_bytes() == written
        assert values(journal.entries()) == [0, 1, 2]
        assert journal.entries()[0] == {
            "kind": "test",
            "n": 0,
            "more": {"list": [1, None, "é"]},
            "boot": boot_id(),
        }


def test_a_record_is_in_the_file_when_it_returns(journal: Journal, path: Path) -> None:
    journal.record({"kind": "test", "n": 1})
    assert values(parse(path.read_bytes())[0]) == [1]


class Disk:
    """What a power failure would leave: content of files and names in directories, as of their last fsync."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._content: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        fsync = os.fsync

        def synced(file: int) -> None:
            fsync(file)
            status = os.fstat(file)
            if stat.S_ISDIR(status.st_mode):
                self._names[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(file)}
            else:
                self._content[status.st_ino] = os.pread(file, status.st_size, 0)

        monkeypatch.setattr(os, "fsync", synced)

    def read(self, path: Path) -> bytes:
        return self._content.get(self._names[path.parent.stat().st_ino][path.name], b"")


def test_each_change_of_the_journal_is_on_the_disk_when_it_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    with Journal(path) as journal:
        assert disk.read(path) == b""  # the name is there
        for number in range(3):
            journal.record({"kind": "test", "n": number})
            assert values(parse(disk.read(path))[0]) == list(range(number + 1))
        journal.keep(journal.entries()[:2])
        assert values(parse(disk.read(path))[0]) == [0, 1]
        journal.record({"kind": "test", "n": 4})
        assert values(parse(disk.read(path))[0]) == [0, 1, 4]
        journal.clear()
        assert disk.read(path) == b""


def test_nothing_is_left_where_nothing_is_to_be_undone(path: Path) -> None:
    with Journal(path) as journal:
        journal.record({"kind": "test", "n": 1})
        journal.clear()
        assert journal.entries() == [] and path.read_bytes() == b""
    assert not path.exists()


@given(st.lists(st.tuples(KINDS, PLAIN), min_size=1, max_size=4), st.data())
def test_cut_at_any_byte_the_whole_entries_remain(
    entries: list[tuple[str, Entry]], data: st.DataObject
) -> None:
    lines = [json.dumps({**more, "kind": kind}).encode() + b"\n" for kind, more in entries]
    content = b"".join(lines)
    cut = data.draw(st.integers(0, len(content)))
    found, whole, damaged = parse(content[:cut])
    ends = [sum(map(len, lines[: count + 1])) for count in range(len(lines))]
    complete = sum(end <= cut for end in ends)
    assert found == [{**more, "kind": kind} for kind, more in entries[:complete]]
    assert whole == ([0, *ends][complete]) and not damaged


def test_a_half_written_line_is_cut_off_and_written_over(path: Path) -> None:
    with Journal(path) as journal:
        journal.record({"kind": "test", "n": 1})
        journal.record({"kind": "test", "n": 2})
    content = path.read_bytes()
    first = content.index(b"\n") + 1
    for tail in (
        content[first:-1],
        content[first : first + 1],
        b"\x00\xff garbage\n",
        b'{"n": 3}\n',
        b"[]\n\n",
    ):
        path.write_bytes(content[:first] + tail)
        with Journal(path) as journal:
            assert values(journal.entries()) == [1] and not journal.damaged
            journal.record({"kind": "test", "n": 3})
        assert values(parse(path.read_bytes())[0]) == [1, 3]


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_read(content: bytes) -> None:
    entries, whole, damaged = parse(content)
    assert 0 <= whole <= len(content)
    assert len(entries) + damaged <= content.count(b"\n")
    assert parse(content[:whole]) == (entries, whole, damaged)


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 50_000,
        b'{"kind": "test", "n": ' + b"9" * 5000 + b"}",
        b'{"kind": "test", "x": "' + b"a" * MAX_ENTRY + b'"}',
        b'{"kind": 1}',
        b'{"kind": "../../etc"}',
        b'{"kind": ""}',
        b'{"kind": "test"} {}',
        b"null",
    ],
)
def test_what_is_no_entry(line: bytes) -> None:
    good = b'{"kind": "test"}\n'
    assert parse(good + line + b"\n") == ([{"kind": "test"}], len(good), 0)
    assert parse(line + b"\n" + good) == ([{"kind": "test"}], len(line) + 1 + len(good), 1)


@pytest.mark.parametrize(
    "entry", [{}, {"kind": ""}, {"kind": "Not This"}, {"kind": None}, {"kind": "test", "x": "a" * MAX_ENTRY}]
)
def test_what_cannot_be_read_is_not_written(journal: Journal, entry: Entry, path: Path) -> None:
    with pytest.raises(LocalError):
        journal.record(entry)
    assert path.read_bytes() == b""


def test_a_disk_that_is_full_stops_the_change_and_not_the_journal(journal: Journal, path: Path) -> None:
    journal.record({"kind": "test", "n": 1})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (len(before) + 10, hard)
    )  # the file ends in the middle of the line
    try:
        with pytest.raises(CryprqError, match="nothing may be changed"):
            journal.record({"kind": "test", "n": 2})
        assert path.read_bytes() == before and values(journal.entries()) == [1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.record({"kind": "test", "n": 3})
    assert values(parse(path.read_bytes())[0]) == [1, 3]


def test_a_full_journal_takes_no_more(path: Path) -> None:
    with Journal(path) as journal:
        journal.keep([{"kind": "test", "x": "a" * 60_000}] * (MAX_JOURNAL // 60_000 - 1))
        with pytest.raises(CryprqError, match="is full"):
            for _ in range(100):
                journal.record({"kind": "test", "x": "a" * 60_000})
        assert path.stat().st_size <= MAX_JOURNAL
    with Journal(path) as journal:
        journal.clear()


@pytest.mark.process
def test_only_one_process_has_it(journal: Journal, path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"runs in system-wide mode \(pid {os.getpid()}\)"):
        Journal(path)
    journal.record({"kind": "test", "n": 1})  # the one that has it is not disturbed
    code = "import sys, pathlib; from tun.journal import Journal; Journal(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and f"(pid {os.getpid()})" in done.stderr


@pytest.mark.process
def test_a_killed_process_leaves_what_it_recorded_and_no_lock(path: Path) -> None:
    code = (
        "import sys, pathlib; from tun.journal import Journal\n"
        "journal = Journal(pathlib.Path(sys.argv[1]))\n"
        "for n in range(10**9):\n"
        "    journal.record({'kind': 'test', 'n': n}); print(n, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        while (line := child.stdout.readline()) != "20\n":
            assert line
        child.send_signal(signal.SIGKILL)
        last = int([line, *child.stdout.readlines()][-1])
    with Journal(path) as journal:
        recorded = values(journal.entries())
        assert recorded == list(range(len(recorded))) and len(recorded) in (last + 1, last + 2)


def test_what_others_can_write_is_refused(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.parent.chmod(0o770)
    with pytest.raises(ConfigError, match="others can write to"):
        Journal(path)
    path.parent.chmod(0o755)
    path.touch(mode=0o644)
    with pytest.raises(ConfigError, match="not a file of this user alone"):
        Journal(path)
    path.unlink()
    path.symlink_to("/nowhere/else")
    with pytest.raises(ConfigError, match="cannot be used"):
        Journal(path)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(ConfigError):
        Journal(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ConfigError):
        Journal(path)
    path.rmdir()
    Journal(path).close()  # none of the failures has kept the lock


def test_a_file_too_large_is_not_read(path: Path) -> None:
    Journal(path).close()
    path.touch(mode=0o600)
    os.truncate(path, MAX_JOURNAL + 1)
    with pytest.raises(ConfigError, match="larger than"):
        Journal(path)
    assert path.stat().st_size == MAX_JOURNAL + 1


def undoer(log: list[object]) -> Callable[[Entry], None]:
    def undo_one(entry: Entry) -> None:
        if entry.get("fails"):
            raise entry["fails"] if isinstance(entry["fails"], Exception) else CryprqError(entry["fails"])
        log.append(entry["n"])

    return undo_one


def test_undo_goes_backwards_and_may_be_repeated(journal: Journal, path: Path) -> None:
    for n in range(3):
        journal.record({"kind": "test", "n": n})
    done: list[object] = []
    undo(journal, {"test": undoer(done)})
    assert done == [2, 1, 0] and path.read_bytes() == b""
    undo(journal, {"test": undoer(done)})
    assert done == [2, 1, 0]


def test_kinds_to_keep_stay(path: Path) -> None:
    done: list[object] = []
    with Journal(path) as journal:
        for number, kind in enumerate(("kept", "test", "kept", "test")):
            journal.record({"kind": kind, "n": number})
        undo(journal, {"test": undoer(done)}, keep={"kept"})
        assert done == [3, 1] and values(journal.entries()) == [0, 2]
    with Journal(path) as journal:
        assert values(journal.entries()) == [0, 2]


def test_a_failure_stops_nothing_and_stays(path: Path) -> None:
    done: list[object] = []

    def fails(entry: Entry) -> None:
        raise KeyError("a bug")

    with Journal(path) as journal:
        journal.record({"kind": "test", "n": 0})
        journal.record({"kind": "test", "n": 1, "fails": "the thing is busy"})
        journal.record({"kind": "buggy", "n": 2})
        journal.record({"kind": "test", "n": 3})
        journal.record({"kind": "of.tomorrow", "n": 4})
        with pytest.raises(CryprqError) as caught:
            undo(journal, {"test": undoer(done), "buggy": fails})
        text = str(caught.value)
        assert "test: the thing is busy" in text and "buggy: KeyError: 'a bug'" in text
        assert "of.tomorrow: this version does not know such changes" in text and "cleanup" in text
        assert done == [3, 0] and values(journal.entries()) == [1, 2, 4]
        journal.record({"kind": "test", "n": 5})  # appended to what remained
    with Journal(path) as journal:
        assert values(journal.entries()) == [1, 2, 4, 5]
        undo(journal, dict.fromkeys(("test", "buggy", "of.tomorrow"), lambda entry: done.append(entry["n"])))
    assert done == [3, 0, 5, 4, 2, 1] and not path.exists()


def test_what_another_version_wrote_has_its_own_remedy(path: Path) -> None:
    with Journal(path) as journal:
        journal.record({"kind": "of.tomorrow"})
        with pytest.raises(
            CryprqError, match=f"use the version that wrote this, or remove {path} if nothing"
        ):
            undo(journal, {})
        assert len(journal.entries()) == 1


def test_a_lost_directory_hides_no_reason(path: Path) -> None:
    with Journal(path) as journal:
        journal.record({"kind": "test", "n": 1, "fails": "the thing is busy"})
        shutil.rmtree(path.parent)
        with pytest.raises(CryprqError, match=r"test: the thing is busy; the journal .* cannot be used"):
            undo(journal, {"test": undoer([])})


def test_a_kept_entry_keeps_its_boot_id(path: Path) -> None:
    Journal(path).close()
    path.write_text('{"kind":"test","n":1,"boot":"another"}\n')
    path.chmod(0o600)
    with Journal(path) as journal:
        with pytest.raises(CryprqError):
            undo(journal, {})
        [entry] = journal.entries()
        assert entry["boot"] == "another" and not same_boot(entry)
        journal.clear()
    assert same_boot({"kind": "test"}) and same_boot({"kind": "test", "boot": boot_id()})


def test_damage_in_the_middle_is_told_once(path: Path) -> None:
    done: list[object] = []
    Journal(path).close()
    path.write_text('{"kind":"test","n":1}\nrubbish\n{"kind":"test","n":2}\n')
    path.chmod(0o600)
    with Journal(path) as journal:
        assert journal.damaged == 1
        with pytest.raises(CryprqError, match="1 damaged line"):
            undo(journal, {"test": undoer(done)})
        assert done == [2, 1]
        undo(journal, {"test": undoer(done)})
    with Journal(path) as journal:
        undo(journal, {"test": undoer(done)})
    assert done == [2, 1]


def test_macos_tells_its_boot_by_a_program_that_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Iterator[Exception | bytes] = iter(
        [FileNotFoundError(), subprocess.TimeoutExpired("sysctl", 5.0), b"", b"7B1C1F6A-5E0B\n"]
    )
    asked: list[object] = []

    def answer(argv: object, **_: object) -> subprocess.CompletedProcess[bytes]:
        asked.append(argv)
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return subprocess.CompletedProcess("", 0, found)

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", answer)
    macos_programs._boot_session.cache_clear()
    try:
        assert [boot_id() for _ in range(3)] == [""] * 3, "what was not told is asked for again"
        assert boot_id() == boot_id() == "7B1C1F6A-5E0B"
        assert asked == [["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]] * 4
    finally:
        macos_programs._boot_session.cache_clear()
