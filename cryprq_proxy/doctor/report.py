"""Findings on a terminal: a mark, the name, the sentence, and below it the remedy."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

from .checks import CheckState, Finding

_NAME: Final = 15
_MARKS: Final = {
    CheckState.OK: "ok  ",
    CheckState.WARN: "warn",
    CheckState.FAIL: "FAIL",
    CheckState.SKIP: "-   ",
}
COLOURS: Final = {
    CheckState.OK: "green",
    CheckState.WARN: "yellow",
    CheckState.FAIL: "red",
    CheckState.SKIP: "bright_black",
}


def lines(finding: Finding, width: int) -> tuple[str, list[str]]:
    """The mark, and the lines behind it; mark and line have at most `width` columns."""
    first = f" {finding.name:<{_NAME}}"
    body = _wrapped(finding.text, first, " " * len(first), width)
    if finding.remedy and finding.state is not CheckState.OK:
        body += _wrapped(finding.remedy, " " * len(first) + "-> ", " " * (len(first) + 3), width)
    # The mark is before the first line; the others are indented below its text.
    return _MARKS[finding.state], [body[0], *("    " + line for line in body[1:])]


def _wrapped(text: str, first: str, rest: str, width: int) -> list[str]:
    # Long words (ids, URLs) are not broken: a person copies them.
    return textwrap.wrap(
        text,
        max(width - 4, 40),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first]


def summary(findings: Sequence[Finding]) -> str:
    counts = {state: sum(finding.state is state for finding in findings) for state in CheckState}
    if counts[CheckState.FAIL]:
        return f"{counts[CheckState.FAIL]} of {len(findings)} checks failed"
    warned = f", {counts[CheckState.WARN]} with a warning" if counts[CheckState.WARN] else ""
    return f"nothing is broken{warned}"
