"""Whether pf asks our anchors at all, and before all others that could let a packet pass.

The main ruleset of macOS asks `com.apple/*`, in the order of the names, and ours stands before those that macOS itself
has there. What the main ruleset asks before is looked into, anchor by anchor: a quick rule there decides before ours.
Then nothing of ours counts, and a start is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from . import pfctl
from .programs import Run, run

NOT_EVALUATED: Final = (
    "the main ruleset of pf does not evaluate the anchors of com.apple ({}), so no rule of ours would count: put the "
    "lines of the original /etc/pf.conf back, and load it (pfctl -f /etc/pf.conf)"
)
MAX_ANCHORS: Final = 64
"""Anchors in front of ours that are looked into; with more, nothing is known."""
_OURS: Final = '"com.apple/*"'
_MAIN: Final = {"scrub-anchor": "rules", "anchor": "rules", "nat-anchor": "nat"}
"""What the main ruleset must have for `com.apple/*` -> in which list of pfctl it stands."""


def not_evaluated(run: Run = run) -> str:
    """A sentence where our anchor is not asked first; empty if it is. Blocks. Raises PfError."""
    main = pfctl.loaded_main(run)
    lists = {"rules": main.rules, "nat": main.nat}
    missing = [
        f"{word} is missing"
        for word, where in _MAIN.items()
        if not any(line.split()[:3] == [word, _OURS, "all"] for line in lists[where])
    ]
    if found := next(_quick_in_front(main.rules, run), ""):
        missing.append(f"{found} stands in front of them")
    return NOT_EVALUATED.format(", ".join(missing)) if missing else ""


def _quick_in_front(rules: tuple[str, ...], run: Run) -> Iterator[str]:
    """The quick rules that are asked before ours, in words."""
    waiting: list[str] = []
    for line in rules:
        words = line.split()
        if words[:3] == ["anchor", _OURS, "all"]:
            break
        if _is_quick(words):
            yield f'"{line[:80]}"'
        waiting += _anchor_of(words)
    seen: set[str] = set()
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        if len(seen) > MAX_ANCHORS:
            yield f"more than {MAX_ANCHORS} anchors, each of which may decide,"
            return
        if name.endswith("*"):
            waiting += pfctl.children(name.removesuffix("*").rstrip("/"), run)
            continue
        for line in pfctl.loaded(name, run).rules:
            words = line.split()
            if _is_quick(words):
                yield f'"{line[:80]}" of the anchor {name[:80]}'
            waiting += [inner if "/" in inner else f"{name}/{inner}" for inner in _anchor_of(words)]


def _is_quick(words: list[str]) -> bool:
    """Whether the rule decides, of itself, about packets that leave."""
    return words[:1] in (["pass"], ["block"]) and "quick" in words and words[1:2] != ["in"]


def _anchor_of(words: list[str]) -> list[str]:
    """The anchor that this line asks, if it asks one."""
    return [words[1].strip('"')] if words[:1] == ["anchor"] and len(words) > 1 else []
