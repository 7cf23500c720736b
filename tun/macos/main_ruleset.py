"""Whether pf asks our anchors at all, and before all others that could let a packet pass.

The main ruleset of macOS asks `com.apple/*`, in the order of the names, and ours stands before those that macOS itself
has there. What is asked before, by the main ruleset or by its name below com.apple, is looked into, anchor by anchor
(front_anchors.py): what decides there decides before ours. Then nothing of ours counts, and a start is refused. So it
is where something stands in front that cannot be followed.
"""

from __future__ import annotations

from typing import Final

from . import front_anchors, pfctl
from .programs import Run, run

NOT_EVALUATED: Final = (
    "the main ruleset of pf does not evaluate the anchors of com.apple ({}), so no rule of ours would count: put "
    "the lines of the original /etc/pf.conf back, and load it (pfctl -f /etc/pf.conf), or end the program whose anchor "
    "it is"
)
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
        if not any(_asks_ours(word, line) for line in lists[where])
    ]
    # Behind it, what is quick comes too late; translations come before all rules, wherever they stand.
    front = list(main.rules)
    at = next((at for at, line in enumerate(front) if _asks_ours("anchor", line)), len(front))
    if found := next(front_anchors.deciding(tuple(front[: at + 1]), main.nat, run), ""):
        missing.append(f"{found} stands in front of them")
    return NOT_EVALUATED.format(", ".join(missing)) if missing else ""


def _asks_ours(word: str, line: str) -> bool:
    """Whether this line asks all anchors of com.apple about each packet."""
    words = line.split()
    return words[:3] == [word, _OURS, "all"] and (word == "scrub-anchor" or len(words) == 3)
