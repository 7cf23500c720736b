"""Shared by all tests: how much hypothesis tries, where the program finds its files, and what a test may need.

A test that needs more than this process says so with a mark, `process` or `root` (pyproject.toml). All of tests/e2e
has the first one and all of tests/lab the second. `make check` leaves them out, so an unmarked test that starts a
process fails.

The default tries the same examples every time, so that a run says something about the change and not about luck.
HYPOTHESIS_PROFILE=deep looks for new ones, and much longer, for a night or a change in a parser.
"""

from __future__ import annotations

import functools
import gc
import itertools
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cryprq_proxy.base import paths

TESTS = Path(__file__).parent
SAVED = settings.get_profile("default").database  # before a profile without chance drops it
# Machines differ by more than any deadline tells; a hang is for pytest-timeout to find.
settings.register_profile(
    "fast",
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "deep", parent=settings.get_profile("fast"), max_examples=10_000, derandomize=False, database=SAVED
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from going through all modules and tests again and again: they stay to the end.

    What the tests leave in circles is still collected, so that a resource that is not closed is still found.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        _take_part()
        gc.freeze()
        gc.set_threshold(50_000, 20, 100)


@given(st.none())
def _take_part(nothing: None) -> None:
    """Let Hypothesis make its random numbers. It asks the garbage collector what refers to them, and finds nothing once
    everything there is left out."""


class Homes:
    """Empty directories. One that a test left empty serves the next test, as most do: thousands cost seconds."""

    def __init__(self, base: Path) -> None:
        self._names = map(str, itertools.count())
        self._base = base
        self._last = base

    def empty(self) -> Path:
        if self._last == self._base or not self._last.is_dir() or any(self._last.iterdir()):
            self._last = self._base / next(self._names)
            self._last.mkdir()
        return self._last


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Homes:
    return Homes(tmp_path_factory.mktemp("homes"))


@pytest.fixture(autouse=True)
def own_directories(homes: Homes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody's real configuration is read, and none is written: every test has a home of its own, and so has root."""
    home = homes.empty()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / ".local/state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "run"))
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr(paths, "ROOTS_CONFIG", home / "etc" / "cryprq")
    monkeypatch.setattr(paths, "ROOTS_STATE", home / "var" / "cryprq")
    return home


FOLDERS = {"e2e": "process", "lab": "root"}
"""Folder -> the mark of all its tests."""
STARTS = {"subprocess.Popen", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
"""What Python calls the starts of processes (its table of audit events)."""


@functools.cache
def mark_of(path: Path) -> str | None:
    """The mark of all tests in a file."""
    return FOLDERS.get(path.relative_to(TESTS).parts[0])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if mark := mark_of(item.path):
            item.add_marker(mark)


REAL_PLACES = (str(paths.ROOTS_CONFIG), str(paths.ROOTS_STATE))
"""What root's program uses on this machine."""
PROGRAM = "cryprq-proxy"
TOUCHES = {
    "open",
    *(f"os.{name}" for name in ("mkdir", "rename", "remove", "rmdir", "listdir", "scandir", "chown")),
}
"""What Python calls the use of a path."""


class UsedRealPlaces(AssertionError):
    """A test used, or let a process use, what belongs to the program on this machine."""


def uses_real_places(event: str, arguments: tuple[object, ...]) -> bool:
    """Whether an audit event is the use of such a path, or the start of the program, as root, without the variables
    that lead it elsewhere."""
    if event in TOUCHES:
        path = arguments[0]
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(REAL_PLACES)
    if event != "subprocess.Popen" or os.geteuid() != 0:
        return False
    command, environment = arguments[1], arguments[3]
    words = [os.fspath(word) for word in command] if isinstance(command, list | tuple) else [command]
    led = os.environ if environment is None else environment
    return starts_program(words) and not {"XDG_CONFIG_HOME", "XDG_STATE_HOME"} <= set(led)  # type: ignore[call-overload]


def starts_program(words: Sequence[object]) -> bool:
    """Whether this command line starts the program, as a module or by its name. By its name a host of the lab, which
    `nsenter` leads to, has one of its own, in directories of its own."""
    named = bool(words) and words[0] != "nsenter" and any(Path(str(word)).name == PROGRAM for word in words)
    return "cryprq_proxy" in words or named


class PlacesGuard:
    """Raises UsedRealPlaces where a test uses them, and fails the test too, as the code under test may suppress it.

    What a process does is not seen. But where a place was not there before, the test fails in which it appears.
    """

    def __init__(self, places: Sequence[str] = REAL_PLACES) -> None:
        self.used: list[str] = []
        self._places = places
        self._there = self._found()

    def _found(self) -> set[str]:
        return {place for place in self._places if os.path.lexists(place)}

    def look(self) -> None:
        """Raises UsedRealPlaces for a place that was not there at the last look."""
        before, self._there = self._there, self._found()
        if appeared := self._there - before:
            made = ", ".join(sorted(appeared))
            raise UsedRealPlaces(f"a process of this test, or of one beside it, has made {made}")

    def audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if (event in TOUCHES or event == "subprocess.Popen") and uses_real_places(event, arguments):
            self.used.append(f"{event} {arguments[:2]}")
            raise UsedRealPlaces(self.used[-1])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        self.used.clear()
        result = yield
        if self.used:
            raise UsedRealPlaces(", ".join(self.used))
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Iterator[None]:
        """Behind the fixtures of the test, which end its processes."""
        result = yield
        self.look()
        return result


class StartedAProcess(AssertionError):
    """A test without a mark for it started a process."""


class ProcessGuard:
    """Raises StartedAProcess where the test that runs starts a process and has no mark for that.

    `started` holds what it started, because the code under test may suppress the exception.
    """

    def __init__(self) -> None:
        self._armed = False
        self.started: list[str] = []
        sys.addaudithook(self._audit)

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if self._armed and event in STARTS:
            self.started.append(f"{event} {arguments[0]}")
            raise StartedAProcess(f"{self.started[-1]}: mark this test with pytest.mark.process")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._armed = not any(item.get_closest_marker(mark) for mark in FOLDERS.values())
        self.started.clear()
        try:
            return (yield)
        finally:
            self._armed = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self, nextitem: pytest.Item | None) -> None:
        # The last test of a worker ends the session's fixtures, which tests with a mark may have begun.
        if nextitem is None:
            self._armed = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        result = yield
        if self.started:
            raise StartedAProcess(f"{', '.join(self.started)}: mark this test with pytest.mark.process")
        return result


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ProcessGuard())
    places = PlacesGuard()
    sys.addaudithook(places.audit)
    config.pluginmanager.register(places)
