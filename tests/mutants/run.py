"""Mutation testing: each small fault of a list must be found by the unit tests of its module.

Every `tests/mutants/<package>.toml` lists faults of one package, each a table:

    [[fault]]
    name = "replay-window-accepts-twice"   # unique in its file, says what breaks
    file = "cryprq_proxy/lane/replay.py"
    old = "self._fill(first, last, 1)"     # must occur exactly once; may span lines (''')
    new = "self._fill(first, last, 0)"     # must still be valid Python
    tests = ["tests/lane/test_replay.py"]  # the unit tests of the module; `path::name` keeps a slow file short

`make mutants` copies the tree to a temporary directory once per worker, applies one fault at a time and runs its
tests. A fault is killed when a test fails, or hangs. It fails the run when all its tests pass, when `old` no longer
occurs exactly once, or when its tests cannot be collected, which would prove nothing. Without any fault the same tests
must pass, and this is tried first.

    make mutants ARGS="session rekey"   only faults whose package/name contains one of these words
    make mutants ARGS="-j 1 lane"       one worker; the default is two per core, because a fault that hangs only waits
    make mutants ARGS=--list            the faults
"""

from __future__ import annotations

import argparse
import ast
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
LISTS = Path(__file__).parent
COPIED = (
    "cryprq_proxy",
    "tun",
    "tests",
    "configs",
    "docs",
    "bench",
    "pyproject.toml",
    "README.md",
    "Makefile",
)
HANG = 30
"""Seconds for one test, most of which take milliseconds; a fault that makes it wait longer is killed. A busy machine
can do that too, so the report says which test has hung: a fault found by that alone is worth a look."""
LONGEST = 240
"""Seconds for all tests of a fault."""
PATIENCE = 120
"""Seconds for one test without a fault, for which a slow machine is no reason to fail."""
# Without bytecode each attempt would compile the program anew.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
ALL_PASSED, SOME_FAILED = 0, 1
"""Exit codes of pytest; all others say that the tests did not run."""


class BadEntry(Exception):
    """An entry does not describe a fault of this tree. The text says why."""


@dataclass(frozen=True)
class Fault:
    """One entry of a list; `package` is the list's name."""

    package: str
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.package}/{self.name}"

    def mutated(self, root: Path) -> str:
        """The text of `file` with the fault in it. Raises BadEntry if the entry does not fit the tree."""
        path = root / self.file
        if not path.is_file():
            raise BadEntry(f"{self.file} does not exist")
        text = path.read_text("utf-8")
        if (count := text.count(self.old)) != 1:
            raise BadEntry(f"`old` occurs {count} times in {self.file}")
        if self.old == self.new:
            raise BadEntry("`old` and `new` are equal")
        for test in self.tests:
            if not (root / test.partition("::")[0]).exists():
                raise BadEntry(f"{test} does not exist")
        changed = text.replace(self.old, self.new)
        try:
            changed_tree = ast.dump(ast.parse(changed))
        except SyntaxError as error:
            raise BadEntry(f"`new` is not valid Python: {error}") from None
        if changed_tree == _dump(text):
            raise BadEntry("`new` changes only a comment or the layout")
        return changed


@lru_cache(maxsize=8)
def _dump(text: str) -> str:
    """The tree of a module without faults; many faults after another are in one module."""
    return ast.dump(ast.parse(text))


def load(path: Path) -> list[Fault]:
    """Read one list. Raises BadEntry."""
    faults: list[Fault] = []
    keys = {field.name for field in fields(Fault)} - {"package"}
    for entry in tomllib.loads(path.read_text("utf-8")).get("fault", []):
        if set(entry) != keys:
            raise BadEntry(f"{path.name}: an entry has the keys {sorted(entry)}, not {sorted(keys)}")
        if not entry["tests"]:
            raise BadEntry(f"{path.name}: {entry['name']} names no tests")
        faults.append(Fault(package=path.stem, **{**entry, "tests": tuple(entry["tests"])}))
    if len({fault.name for fault in faults}) != len(faults):
        raise BadEntry(f"{path.name}: two faults have one name")
    return faults


def load_all() -> list[Fault]:
    return [fault for path in sorted(LISTS.glob("*.toml")) for fault in load(path)]


@dataclass(frozen=True)
class Outcome:
    title: str
    good: bool
    text: str
    seconds: float


class Tree:
    """A copy of the repository in which one fault at a time is tried."""

    def __init__(self, directory: Path) -> None:
        self._root = directory
        self._stamp = 1_000_000_000

    @classmethod
    def copied(cls, directory: Path) -> Tree:
        """Copy the repository to `directory`."""
        ignored = shutil.ignore_patterns("__pycache__", "build", ".*")
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, directory / name, ignore=ignored)
            else:
                shutil.copy2(source, directory / name)
        return cls(directory)

    def baseline(self, tests: Iterable[str]) -> Outcome:
        """Without a fault, all of `tests` must pass."""
        started = time.monotonic()
        code, output = self._run(tests, PATIENCE, None)
        text = "all pass without a fault" if code == ALL_PASSED else f"fails without a fault:\n{output}"
        return Outcome("baseline", code == ALL_PASSED, text, time.monotonic() - started)

    def attempt(self, fault: Fault) -> Outcome:
        """Whether the tests of `fault` find it."""
        started = time.monotonic()
        try:
            changed = fault.mutated(self._root)
        except BadEntry as error:
            return Outcome(fault.title, False, str(error), 0.0)
        path = self._root / fault.file
        original = path.read_text("utf-8")
        self._write(path, changed)
        try:
            code, output = self._run(fault.tests, HANG, LONGEST)
        finally:
            self._write(path, original)
        seconds = time.monotonic() - started
        if code == ALL_PASSED:
            return Outcome(fault.title, False, "SURVIVED: " + " ".join(fault.tests), seconds)
        if code != SOME_FAILED:
            return Outcome(fault.title, False, f"its tests did not run:\n{output}", seconds)
        killer = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        by = killer[1] if killer else "all tests together"
        return Outcome(fault.title, True, f"{'HUNG: ' if _hung(output) else 'killed by '}{by}", seconds)

    def _write(self, path: Path, text: str) -> None:
        """Each version has a time of its own: Python compares seconds and sizes, and would take stale bytecode."""
        path.write_text(text, "utf-8")
        self._stamp += 1
        os.utime(path, (self._stamp, self._stamp))

    def _run(self, tests: Iterable[str], hang: int, longest: int | None) -> tuple[int, str]:
        options = ("-q", "-x", "-p", "no:cacheprovider", "--tb=line", "-o", f"timeout={hang}")
        try:
            result = subprocess.run(
                (sys.executable, "-m", "pytest", *options, *tests),
                cwd=self._root,
                env=ENVIRONMENT | {"PYTHONPATH": str(self._root)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=longest,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return SOME_FAILED, ""
        return result.returncode, result.stdout[-4000:]


def _hung(output: str) -> bool:
    """Whether the tests were ended by a limit of time; there is no output if it was that of all of them."""
    return not output or "from pytest-timeout" in output


def main() -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", help="only faults whose package/name contains one of these")
    parser.add_argument("-j", "--jobs", type=int, default=2 * (os.cpu_count() or 1))
    parser.add_argument("--list", action="store_true", help="print the faults and try none")
    arguments = parser.parse_args()
    try:
        faults = load_all()
    except BadEntry as error:
        print(error)
        return 1
    if arguments.words:
        faults = [fault for fault in faults if any(word in fault.title for word in arguments.words)]
    if not faults:
        print("no fault has such a name")
        return 1
    if arguments.list:
        for fault in faults:
            print(f"{fault.title}  {fault.file}  {' '.join(fault.tests)}")
        return 0
    return report(try_all(faults, arguments.jobs))


def try_all(faults: list[Fault], jobs: int) -> Iterable[Outcome]:
    """Try the unchanged tests of each test file first, then every fault. Yields each as it ends."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        trees: queue.SimpleQueue[Tree] = queue.SimpleQueue()
        for number in range(jobs):
            trees.put(Tree.copied(Path(directory, str(number))))

        def in_a_tree(attempt: Callable[[Tree], Outcome]) -> Outcome:
            tree = trees.get()
            try:
                return attempt(tree)
            finally:
                trees.put(tree)

        tests = sorted({test for fault in faults for test in fault.tests})
        shares = [share for number in range(jobs) if (share := tests[number::jobs])]
        attempts = [partial(Tree.baseline, tests=share) for share in shares]
        attempts += [partial(Tree.attempt, fault=fault) for fault in faults]
        with ThreadPoolExecutor(jobs) as pool:
            for done in as_completed([pool.submit(in_a_tree, attempt) for attempt in attempts]):
                yield done.result()


def report(outcomes: Iterable[Outcome]) -> int:
    killed, bad = 0, []
    for outcome in outcomes:
        print(
            f"{'ok  ' if outcome.good else 'FAIL'} {outcome.title} ({outcome.seconds:.1f} s): {outcome.text}"
        )
        if not outcome.good:
            bad.append(outcome.title)
        elif outcome.title != "baseline":
            killed += 1
    print(f"{killed} faults killed, {len(bad)} failures" + (": " + ", ".join(bad) if bad else ""))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
