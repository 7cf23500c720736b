"""pf by its program: whether it is on, our anchors, what stands in them, and how that is undone.

pf counts who needs it: `pfctl -E` enables it and gives a token, and `pfctl -X TOKEN` disables it when nobody needs it
any more. All of our rules stand in anchors of our own, below `com.apple/`, which the main ruleset of macOS evaluates;
the main ruleset itself is never changed. One load replaces all that stands in an anchor in one step.

The token is known only after pf is enabled, so the journal gets two entries: before, with the tokens that there were;
then the token. After a crash in between, ours is the one that pfctl has got since, if there is exactly one.

All functions block for some milliseconds and raise PfError. Not yet run on a Mac; written from pfctl(8) and pf.conf(5).
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator
from typing import Final, NamedTuple

from cryprq_proxy.base import macos_marks
from cryprq_proxy.base.paths import Role
from cryprq_proxy.errors import CryprqError

from ..journal import Entry, Record, Undoer, same_boot
from ..system import Count, FilterError
from .programs import Command, ProgramAnswer, Run, ask, change, run

ANCHORS: Final = macos_marks.ANCHORS
KIND: Final = "pf"
"""The kind of our entries in the journal: one for tokens and anchors, since where rules may stay, pf must too."""
_TOKEN: Final = re.compile(r"^Token : ([0-9]{1,20})\s*$", re.MULTILINE)
_REFERENCE: Final = re.compile(r"\s*[0-9]+\s+(\S.*?)\s+([0-9]{1,20})\s+[0-9]+ days? [0-9:]+\s*")
_NO_REFERENCES: Final = "No pf starter references held"
_OUR_PROGRAM: Final = "pfctl"
_MAX_TOKENS: Final = 256
"""That the journal keeps."""
_FAILED: Final = re.compile(r"^pfctl: ", re.MULTILINE)
_NOT_THERE: Final = re.compile(r"(pfctl: DIOCGETRULES: Invalid argument|Anchor '.*' not found\.)\s*")
"""All that pfctl says of an anchor into which nothing was loaded, or whose rules were flushed: there is none then."""
NOISE: Final = re.compile(r"(No ALTQ support in kernel|ALTQ related functions disabled)\s*")


class PfError(FilterError):
    """pf is missing or refuses what it is given, or pfctl answers in an unknown form; nothing was changed."""


class Reference(NamedTuple):
    """Who needs pf enabled."""

    program: str
    token: str


class PfRuleset(NamedTuple):
    """What stands in an anchor, as pfctl lists it: a rule a line, in pf's own words."""

    rules: tuple[str, ...]
    nat: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.rules or self.nat)


def enabled(run: Run = run) -> bool:
    """Whether pf looks at packets at all."""
    said = _ask(run, "-s", "info")
    for line in said.splitlines():
        words = line.split()
        if words[:1] == ["Status:"] and words[1:2] in (["Enabled"], ["Disabled"]):
            return words[1] == "Enabled"
    raise PfError(f"`pfctl -s info` answers in a form that is not understood: {said[:80]!r}")


def references(run: Run = run) -> list[Reference]:
    """Those who need pf enabled, with the tokens that they have got."""
    said = _ask(run, "-s", "References")
    if "TOKEN" not in said and _NO_REFERENCES not in said:
        raise PfError(f"`pfctl -s References` answers in a form that is not understood: {said[:80]!r}")
    found = (_REFERENCE.fullmatch(line) for line in said.splitlines())
    return [Reference(match[1], match[2]) for match in found if match]


def enable(record: Record, run: Run = run) -> str:
    """Enable pf, and return our token, which the journal has then. Call it once in a run."""
    before = sorted(each.token for each in references(run))[:_MAX_TOKENS]
    record({"kind": KIND, "token": "", "before": before})
    answer = _change(run, Command(("pfctl", "-E")))
    match = _TOKEN.search(f"{answer.err}\n{answer.out}")
    if match is None:
        raise PfError("`pfctl -E` gives no token, so pf could not be disabled again: this is no known macOS")
    record({"kind": KIND, "token": match[1]})
    return match[1]


def holds(token: str, run: Run = run) -> bool:
    """Whether pf still counts us, by our token."""
    return any(each.token == token for each in references(run))


def claim(role: Role, record: Record, *, ours: bool) -> str:
    """Write the anchor of this role to the journal before anything stands in it; returns its name. `ours`: the journal
    has it already."""
    if not ours:
        record({"kind": KIND, "anchor": ANCHORS[role]})
    return ANCHORS[role]


def load_command(anchor: str, text: str) -> Command:
    return Command(("pfctl", "-a", anchor, "-f", "-"), text)


def load(anchor: str, text: str, run: Run = run) -> None:
    """Let this text, as pf.conf(5), be all that stands in the anchor, in one step; refused, it changes nothing."""
    _change(run, load_command(anchor, text))


def loaded(anchor: str, run: Run = run) -> PfRuleset:
    """What stands in the anchor; empty where it is not there."""
    return PfRuleset(*(_lines(_ask_anchor(run, anchor, what)) for what in ("rules", "nat")))


def loaded_main(run: Run = run) -> PfRuleset:
    """What stands in the main ruleset."""
    return PfRuleset(*(_lines(_ask(run, "-s", what)) for what in ("rules", "nat")))


def listed(anchor: str, what: str, run: Run = run) -> tuple[str, ...]:
    """One list of an anchor, `rules` or `nat`; empty where it is not there."""
    return _lines(_ask_anchor(run, anchor, what))


def all_anchors(run: Run = run) -> tuple[str, ...]:
    """The full names of all anchors, also of those inside others. pfctl does not go on where one vanishes meanwhile;
    that is an error."""

    def whole(command: Command) -> ProgramAnswer:
        answer = run(command)
        return answer._replace(code=answer.code or 1) if "not found" in answer.err else answer

    return _lines(_ask(whole, "-v", "-s", "Anchors"))


def counted(anchor: str, run: Run = run) -> dict[str, Count]:
    """What the rules of each label in the anchor have seen since they were loaded."""
    found: dict[str, Count] = {}
    for label, _, packets, size in _labels(anchor, run):
        before = found.get(label, Count(0, 0))
        found[label] = Count(before.packets + packets, before.bytes + size)
    return found


def asked(anchor: str, label: str, run: Run = run) -> int:
    """For how many packets pf has asked rules with this label since they were loaded, whether they matched or not."""
    return sum(asked for found, asked, _, _ in _labels(anchor, run) if found == label)


def _labels(anchor: str, run: Run) -> Iterator[tuple[str, int, int, int]]:
    """Label, evaluations, packets and bytes of each rule that has one; pfctl adds both once more for each direction."""
    for line in _lines(_ask_anchor(run, anchor, "labels")):
        match line.split():
            case [label, *numbers] if len(numbers) > 2 and all(each.isdecimal() for each in numbers[:3]):
                yield (label, *map(int, numbers[:3]))  # type: ignore[misc]


def skipped(run: Run = run) -> set[str]:
    """The interfaces that pf passes over, by `set skip` in the main ruleset."""
    lines = (line.split() for line in _lines(_ask(run, "-v", "-s", "Interfaces")))
    return {words[0] for words in lines if words[1:2] == ["(skip)"]}


def state_lines(run: Run = run) -> tuple[str, ...]:
    """All states, a line each."""
    return _lines(_ask(run, "-s", "states"))


def load_main(path: str, run: Run = run) -> None:
    """Load the main ruleset from a file of the system."""
    _change(run, Command(("pfctl", "-f", path)))


def flush(anchor: str, run: Run = run) -> None:
    """Take everything out of the anchor: rules, translations, tables. States and other anchors stay."""
    _change(run, Command(("pfctl", "-a", anchor, "-F", "all")))


def kill_states(ends: Iterable[tuple[str, ...]], run: Run = run) -> None:
    """End connections: each is a source, or source and destination, as an address or a prefix."""
    for end in ends:
        _change(run, Command(("pfctl", *(word for each in end for word in ("-k", each)))))


def _lines(said: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in said.splitlines() if line.strip() and not NOISE.fullmatch(line))


def _told_plainly(run: Run) -> Run:
    """Without what pfctl of macOS complains about at each call."""

    def told(command: Command) -> ProgramAnswer:
        answer = run(command)
        return answer._replace(err=NOISE.sub("", answer.err))

    return told


def _ask_anchor(run: Run, anchor: str, what: str) -> str:
    """What pfctl lists of an anchor; nothing where the anchor is not there. Any other complaint is an error, and so is
    this one behind a part of the list: then the anchor went meanwhile."""

    def plain(command: Command) -> ProgramAnswer:
        answer = run(command)
        absent = _NOT_THERE.fullmatch(NOISE.sub("", answer.err)) and not _lines(answer.out)
        return ProgramAnswer("") if absent else answer

    return _ask(plain, "-a", anchor, "-s", what)


def _ask(run: Run, *arguments: str) -> str:
    """pfctl ends with 0 also where it could not look, so its complaint counts: nothing said is not nothing there."""

    def strict(command: Command) -> ProgramAnswer:
        answer = _told_plainly(run)(command)
        return answer._replace(code=answer.code or 1) if _FAILED.search(answer.err) else answer

    try:
        return ask(strict, "pfctl", *arguments)
    except CryprqError as error:
        raise PfError(_sentence(error)) from None


def _change(run: Run, command: Command) -> ProgramAnswer:
    try:
        return change(_told_plainly(run), command)
    except CryprqError as error:
        raise PfError(_sentence(error)) from None


def _sentence(error: CryprqError) -> str:
    said = str(error)
    if "ermission denied" in said or "not permitted" in said:
        return "the packet filter may not be changed: run this as root"
    return f"the packet filter was not changed: {said}"


# --- undo ---


class _Undoing:
    """The undoer of our entries. Those of one `enable` are undone one after the other, the last one first."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._known = False
        """Whether the entry that was undone just now had the token."""

    def __call__(self, entry: Entry) -> None:
        match entry:
            case {"anchor": str(anchor)} if anchor in ANCHORS.values():
                # Without a look: emptying what is empty harms nothing, and a look may fail.
                if same_boot(entry):
                    flush(anchor, self._run)
            case {"token": str(token)} if isinstance(entry.get("before", []), list):
                known, self._known = self._known, bool(token)
                if same_boot(entry) and (token or not known):
                    self._disable(token, entry.get("before", ()))
            case {"anchor": anchor}:
                raise CryprqError(f"the journal names an anchor of pf that is not ours ({anchor!r:.80})")
            case _:
                raise CryprqError("the journal's entry of pf is damaged")

    def _disable(self, token: str, before: Container[str]) -> None:
        """Need pf no more. Does nothing where pf knows of no token of ours any more."""
        found = references(self._run)
        if not token:
            new = [each.token for each in found if each.program == _OUR_PROGRAM and each.token not in before]
            token = new[0] if len(new) == 1 else ""
        if any(each.token == token for each in found):
            _change(self._run, Command(("pfctl", "-X", token)))


def undoers(run: Run = run) -> dict[str, Undoer]:
    """By the kind of the entry. Make them anew for each undo."""
    return {KIND: _Undoing(run)}
