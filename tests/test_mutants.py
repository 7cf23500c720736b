"""The faults of `make mutants` fit the tree, so that a rename cannot leave them behind; and the runner tells apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.mutants import run
from tests.mutants.run import LISTS, ROOT, BadEntry, Fault, Tree, load, load_all


@pytest.mark.parametrize("fault", load_all(), ids=lambda fault: fault.title)
def test_each_fault_fits_the_tree(fault: Fault) -> None:
    fault.mutated(ROOT)


def test_each_list_holds_faults() -> None:
    assert all(load(path) for path in LISTS.glob("*.toml"))


SOURCE = "def double(x: int) -> int:\n    return 2 * x  # twice\n"
TESTS = "from double import double\n\n\ndef test_double() -> None:\n    assert double(2) == 4\n"
FAULT = Fault("package", "name", "double.py", "2 * x", "3 * x", ("test_double.py",))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A tree of one module and its test."""
    tmp_path.joinpath("double.py").write_text(SOURCE)
    tmp_path.joinpath("test_double.py").write_text(TESTS)
    return tmp_path


def test_a_fault_changes_its_line(small: Path) -> None:
    assert FAULT.mutated(small) == SOURCE.replace("2", "3")


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (replace(FAULT, file="nowhere.py"), "does not exist"),
        (replace(FAULT, old="4 * x"), "occurs 0 times"),
        (replace(FAULT, old="x"), "occurs 2 times"),
        (replace(FAULT, new=FAULT.old), "are equal"),
        (replace(FAULT, tests=("nowhere.py",)), "nowhere.py does not exist"),
        (replace(FAULT, new="2 *"), "not valid Python"),
        (replace(FAULT, old="# twice", new="# doubled"), "only a comment"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused(fault: Fault, text: str, small: Path) -> None:
    with pytest.raises(BadEntry, match=text):
        fault.mutated(small)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[[fault]]\nname = 'a'\n", "has the keys"),
        ("[[fault]]\nname = 'a'\nfile = ''\nold = ''\nnew = ''\ntests = []\n", "names no tests"),
        ("[[fault]]\nname = 'a'\nfile = ''\nold = ''\nnew = ''\ntests = ['t']\n" * 2, "two faults"),
    ],
)
def test_a_bad_list_is_refused(text: str, wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(BadEntry, match=wrong):
        load(path)


@pytest.mark.process
def test_a_fault_that_makes_a_test_wait_is_told_apart(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HANG", 1)
    slow = replace(FAULT, new="__import__('time').sleep(60) or 3 * x")
    outcome = Tree(small).attempt(slow)
    assert outcome.good and outcome.text == "HUNG: test_double.py::test_double"


@pytest.mark.process
@pytest.mark.parametrize(
    ("fault", "good", "text"),
    [
        (FAULT, True, "killed by test_double.py::test_double"),
        (replace(FAULT, new="2 * x + 0"), False, "SURVIVED"),
        (replace(FAULT, tests=("test_double.py::test_nothing",)), False, "did not run"),
    ],
)
def test_killed_and_survived_are_told_apart(fault: Fault, good: bool, text: str, small: Path) -> None:
    tree = Tree(small)
    outcome = tree.attempt(fault)
    assert outcome.good == good
    assert text in outcome.text
    assert small.joinpath("double.py").read_text() == SOURCE
    assert tree.baseline(["test_double.py"]).good
