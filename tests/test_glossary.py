"""One word for one thing: what docs/glossary.md replaces stands nowhere in the sources, and no class name twice."""

from __future__ import annotations

import ast
import re
from collections import defaultdict

import pytest

from tests.support.pages import GLOSSARY, ROOT, table

ROWS = table(GLOSSARY, "word", "what it means", "not")
REPLACED = sorted({word for row in ROWS for word in row[2].split(", ") if word})


SOURCES = sorted(path for package in ("cryprq_proxy", "tun") for path in (ROOT / package).rglob("*.py"))


def pattern(word: str) -> re.Pattern[str]:
    """`word` as a word of its own, singular or plural; with an underscore at its end, as the beginning of a name."""
    end = "" if word.endswith("_") else r"(?:s|d)?\b"
    return re.compile(rf"(?<![a-zA-Z]){word}{end}", re.IGNORECASE)


@pytest.mark.parametrize("word", REPLACED)
def test_a_word_that_was_replaced_stands_nowhere(word: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in SOURCES
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if pattern(word).search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("word", "line", "found"),
    [
        ("way", "the way to the exit", True),
        ("way", "two ways", True),
        ("way", "_way = 1", True),
        ("way", "always, away, gateway", False),
        ("wide_", "wide_actions()", True),
        ("wide_", "system-wide mode", False),
        ("authorise", "self.authorised", True),
    ],
)
def test_words_are_told_from_parts_of_others(word: str, line: str, found: bool) -> None:
    assert bool(pattern(word).search(line)) == found


def test_each_word_has_one_line() -> None:
    words = [word for row in ROWS for word in row[0].split(", ")]
    assert len(words) == len(set(words))


def test_no_class_name_stands_twice() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
