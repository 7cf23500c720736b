"""What decides in rulesets of pf that are asked before ours, found by following their anchors as pf does.

    quick of a rule       ends the evaluation where the rule matches
    quick of an anchor    ends it behind the anchor, where any rule in it has matched
    names                 begin where the rule stands, `../` goes up and `/` begins at the top; `a/*` are all anchors
                          directly below `a`, in the order of their names
    `pass` of nat, rdr    lets a packet pass, and no rule is asked about it
    `tag` by our names    is what rules of ours let a packet pass for, so who sets it decides without `quick`

A rule that lets a packet in decides too: it passes by ours for what comes in, and its state lets answers out. One that
only keeps packets from coming in takes nothing from ours. Nor does one for loopback.

Our own anchors are passed over, and so are the rules of those of `com.apple/*` whose names are behind ours: the line
that names it asks ours first. Not so translations, all of which come before all rules.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Final, NamedTuple

from . import pfctl
from .programs import Run

MAX_ANCHORS: Final = 64
"""Anchors in front of ours that are looked into; with more, nothing is known."""
_PARENT: Final = "com.apple"
_OURS: Final = re.compile(r"com\.apple/\d{3}\.cryprq-proxy(-\w+)?", re.ASCII)
"""Our own, and one that the test on a Mac puts in front of them (tests/support/mac_stage.py)."""
_LAST: Final = max(pfctl.ANCHORS.values())
_LOOPBACK: Final = frozenset({"lo0", "lo"})
"""The interface, and the group of all such."""
_ANCHOR: Final = re.compile(r'(?:nat-|rdr-|binat-)?anchor(?: "([^"]*)")?(?: (.*))?')
"""Its name, and its conditions."""
_NAME: Final = re.compile(r"/?(?:\.\./)*[\w.:@()-]+(?:/[\w.:@()-]+)*(?:/\*)?|\*", re.ASCII)
"""Of an anchor, as it stands in a rule. Others pfctl takes for something else, or changes."""
_RULES: Final = frozenset({"pass", "block"})
_TRANSLATIONS: Final = frozenset({"nat", "rdr", "binat"})
_OF_NO_WEIGHT: Final = frozenset({"scrub", "scrub-anchor", "dummynet", "dummynet-anchor", "no"})
"""They decide about no packet."""
_OUR_TAGS: Final = re.compile(r'\btag "?cryprq_')
_SHOWN: Final = 80
"""Characters of a line or a name that are told."""


class _Place(NamedTuple):
    """A ruleset that is asked, and under which conditions."""

    name: str = ""
    """In full; empty for the main ruleset."""
    what: str = "rules"
    """Which list of it, as pfctl calls them: rules or nat."""
    quick: bool = False
    """Whether anything that matches in it ends the evaluation."""
    incoming: bool = False
    """Whether it is asked about packets only that come in."""


def deciding(rules: Iterable[str], nat: Iterable[str], run: Run) -> Iterator[str]:
    """What decides before our anchors do, in words. `rules` is the main ruleset up to the line that asks ours, `nat`
    its translations. Blocks: for as long as it takes to run pfctl, up to MAX_ANCHORS times. Raises PfError."""
    front = _InFront(pfctl.all_anchors(run))
    yield from front.through(rules, _Place())
    yield from front.through(nat, _Place(what="nat"))
    looked_into = 0
    while front.waiting:
        place = front.waiting.popleft()
        looked_into += 1
        if looked_into > MAX_ANCHORS:
            yield f"more than {MAX_ANCHORS} anchors, each of which may decide,"
            return
        yield from front.through(pfctl.listed(place.name, place.what, run), place)


class _InFront:
    """Through all rulesets that are asked; each is looked into once under each condition, also where they ask each
    other in a circle."""

    def __init__(self, anchors: Iterable[str]) -> None:
        self.waiting: deque[_Place] = deque()
        self._anchors = sorted(anchors)
        self._seen: set[_Place] = set()

    def through(self, lines: Iterable[str], place: _Place) -> Iterator[str]:
        """What decides in this ruleset."""
        # In braces stand the rules of an anchor without a name.
        around: list[_Place | None] = []
        now: _Place | None = place
        for line in lines:
            if line == "}" and around:
                now = around.pop()
            elif line.endswith("{") and _ANCHOR.fullmatch(line):
                around.append(now)
                now = _asked(line, now) if now else None
            elif now is not None and (said := self._line(line, now, nested=bool(around))) is not None:
                where = f" of the anchor {place.name[:_SHOWN]}" if place.name else ""
                yield f'"{line[:_SHOWN]}"{where}{said}'

    def _line(self, line: str, place: _Place, *, nested: bool) -> str | None:
        """None for what decides nothing; else what is to be added to it. The anchor that it asks waits then."""
        words = line.partition('"')[0].split() or [""]
        if _OUR_TAGS.search(line):
            return ""
        if words[0] in _OF_NO_WEIGHT:
            return None
        if words[0] in _RULES or words[0] in _TRANSLATIONS:
            return "" if _decides(words, place) else None
        match = _ANCHOR.fullmatch(line)
        name = _joined(place.name, match[1] or "", nested=nested) if match else None
        if name is None:
            return ", which cannot be followed,"
        asked = _asked(line, place)
        if asked is not None:
            self._await(asked._replace(name=name))
        return None

    def _await(self, place: _Place) -> None:
        for name in self._called(place):
            found = place._replace(name=name)
            if not _OURS.fullmatch(name) and found not in self._seen:
                self._seen.add(found)
                self.waiting.append(found)

    def _called(self, place: _Place) -> Iterator[str]:
        """The anchors by this full name that are there, as far as they are asked before ours."""
        if not place.name.endswith("/*"):
            return iter([place.name] if place.name in self._anchors else [])
        parent = place.name.removesuffix("/*")
        children = (each for each in self._anchors if each.rpartition("/")[0] == parent)
        return (each for each in children if parent != _PARENT or place.what == "nat" or each < _LAST)


def _asked(line: str, place: _Place) -> _Place | None:
    """Under which conditions the anchor of this line is asked; None where that is only about loopback."""
    match = _ANCHOR.fullmatch(line)
    # Behind a quotation mark stands a label.
    conditions = (match[2] or "").partition('"')[0].split() if match else []
    if _on_loopback(conditions):
        return None
    quick, incoming = "quick" in conditions, "in" in conditions
    return place._replace(quick=place.quick or quick, incoming=place.incoming or incoming)


def _decides(words: list[str], place: _Place) -> bool:
    if _on_loopback(words):
        return False
    if words[0] in _TRANSLATIONS:
        return words[1:2] == ["pass"]
    if words[0] == "block" and (place.incoming or "in" in words):
        return False
    return place.quick or "quick" in words


def _on_loopback(words: list[str]) -> bool:
    return any(one == "on" and name in _LOOPBACK for one, name in pairwise(words))


def _joined(place: str, name: str, *, nested: bool) -> str | None:
    """The full name of what is called by `name` in the anchor `place`, as pf joins them; None where that is not known:
    in an anchor without a name (`nested`), and for names that pfctl cannot ask about."""
    if not _NAME.fullmatch(name) or (nested and not name.startswith("/")):
        return None
    if name.startswith("/"):
        full = name[1:]
    else:
        while name.startswith("../"):
            if not place:
                return None
            place = place.rpartition("/")[0]
            name = name.removeprefix("../")
        full = f"{place}/{name}" if place else name
    # At the top, a star is a name as any other, and pfctl takes it for all anchors.
    return None if full == "*" else full
