"""pfctl with tokens and anchors, in the words of the real one; tests/support/macos has one for a whole Mac."""

from __future__ import annotations

from tun.macos.asked import FIRST
from tun.macos.programs import Command, ProgramAnswer

NOISE = "No ALTQ support in kernel\nALTQ related functions disabled\n"
NO_RULESET = "pfctl: DIOCGETRULES: Invalid argument\n"
"""Of an anchor that is not there, with the code 0."""
TOKEN, FOREIGN = "15053025338191571182", "9813589183660731843"


class PfProgram:
    """pfctl with tokens and anchors, and what it was asked for."""

    def __init__(self) -> None:
        self.tokens = {FOREIGN: "socketfilterfw"}
        self.anchors: dict[str, str] = {}
        self.main = {
            "rules": 'scrub-anchor "com.apple/*" all fragment reassemble\nanchor "com.apple/*" all\n',
            "nat": 'nat-anchor "com.apple/*" all\nrdr-anchor "com.apple/*" all\n',
            "Interfaces": "ALL\nen0\nlo0\nawdl0 (skip)\nutun0\n",
        }
        self.asked: list[str] = []
        self.answers = {"-v -s Anchors": ProgramAnswer("  com.apple\n  com.apple/200.AirDrop\n", NOISE)}
        """Argument list -> what is said instead."""
        self.evaluations = 1
        """Packets for which the first rule of each anchor was asked."""

    def __call__(self, command: Command) -> ProgramAnswer:
        assert command.argv[0] == "pfctl"
        words = " ".join(command.argv[1:])
        self.asked.append(words)
        if words in self.answers:
            return self.answers[words]
        match command.argv[1:]:
            case ("-E",):
                token = str(int(TOKEN) + self.asked.count("-E") - 1)
                self.tokens[token] = "pfctl"
                return ProgramAnswer("", f"{NOISE}pf enabled\nToken : {token}\n")
            case ("-X", token):
                assert token in self.tokens
                del self.tokens[token]
                return ProgramAnswer("", "pf disabled\n")
            case ("-s", "References"):
                rows = [
                    f"{4063 + number:<8} {program:<28} {token:<24} 0 days 00:03:31\n"
                    for number, (token, program) in enumerate(self.tokens.items())
                ]
                head = "TOKENS:\nPID      Process Name                 TOKEN                    TIMESTAMP\n"
                return ProgramAnswer(head + "".join(rows) if rows else "No pf starter references held\n")
            case ("-s", "info"):
                status = "Enabled for 0 days 00:02:03" if self.tokens else "Disabled"
                return ProgramAnswer(f"Status: {status:<30} Debug: Urgent\n\nState Table\n", NOISE)
            case ("-a", anchor, "-f", "-"):
                self.anchors[anchor] = command.stdin
                return ProgramAnswer("", "pfctl: Use of -f option, could result in flushing of rules\n")
            case ("-a", anchor, "-s", "rules" | "nat" | "labels" as what):
                return self._listed(anchor, what)
            case ("-s", "rules" | "nat" as what) | ("-v", "-s", "Interfaces" as what):
                return ProgramAnswer(self.main[what], NOISE)
            case ("-a", anchor, "-F", "all"):
                self.anchors.pop(anchor, None)
                return ProgramAnswer("", "rules cleared\nnat cleared\n0 tables deleted.\n")
            case ("-k", *_):
                return ProgramAnswer("", "killed 1 states from 1 sources and 1 destinations\n")
        raise AssertionError(f"unknown: {words}")

    def _listed(self, anchor: str, what: str) -> ProgramAnswer:
        if anchor not in self.anchors:
            return ProgramAnswer("", NOISE + NO_RULESET)
        said = {"rules": self.anchors[anchor], "labels": f"{FIRST} {self.evaluations} 0 0 0 0 0 0\n"}
        return ProgramAnswer(said.get(what, ""), NOISE)
