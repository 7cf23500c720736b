"""A kernel in memory that keeps scripts of nft: what stands, what is open, and until when."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from tun.linux.firewall.nft import NftError, UnreadableAnswer

_TABLE = re.compile(r"^table inet (\w+) \{$", re.MULTILINE)
_CHAIN = re.compile(r"^ *chain (\w+) \{$", re.MULTILINE)
_TIMED = re.compile(r"([^\s,{]+) timeout (\d+)s")
_COUNTER = re.compile(r"counter (\w+) \{ packets (\d+) bytes (\d+); \}")


class Kernel:
    """`run` and `ask` are given to what uses nft; the test turns `now`, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0
        self.scripts: list[str] = []
        self.tables: dict[str, dict[str, dict[str, float]]] = {}
        """Table -> set -> timed element -> when it ends."""
        self.own_chains: dict[str, list[str]] = {}
        """Table -> names of its chains."""
        self.counters: dict[str, tuple[int, int]] = {}
        self.chains: list[dict[str, Any]] = []
        """What other programs have put up, as `nft -j list chains` says it."""
        self.unreadable: set[str] = set()
        """Tables with flags: nft prints garbage for them. Writing a table anew leaves none."""
        self.failure: type[NftError] = UnreadableAnswer
        self.lasting = False
        """Whether it goes on after a table was written."""
        self.before_run: Callable[[], None] = lambda: None

    def run(self, script: str) -> None:
        self.before_run()
        self.scripts.append(script)
        (table,) = _TABLE.findall(script)
        sets: dict[str, dict[str, float]] = {}
        title = ""
        for line in map(str.strip, script.splitlines()):
            if line.startswith("set "):
                title = line.split()[1]
                sets[title] = {}
            elif line.startswith("elements = "):
                sets[title] |= {what: self.now + int(left) for what, left in _TIMED.findall(line)}
        self.tables[table] = sets
        if not self.lasting:
            self.unreadable.discard(table)
        self.own_chains[table] = _CHAIN.findall(script)
        self.counters = {name: (int(packets), int(size)) for name, packets, size in _COUNTER.findall(script)}

    def ask(self, *command: str) -> list[dict[str, Any]] | None:
        match command:
            case ("list", "chain", "inet", table, chain):
                return [{"chain": {"name": chain}}] if chain in self.own_chains.get(table, ()) else None
            case ("list", "chains"):
                return [{"chain": chain} for chain in self.chains]
            case ("list", "set", "inet", table, title):
                return None if table not in self.tables else [self._listed(table, title)]
            case ("list", "counters", "table", "inet", table):
                return None if table not in self.tables else self._counted()
            case ("list", "table", "inet", table) if table in self.unreadable:
                raise self.failure(table)
            case ("list", "table", "inet", table) if table in self.tables:
                chains = [{"chain": {"name": name}} for name in self.own_chains.get(table, ())]
                return [
                    *chains,
                    *self._counted(),
                    *(self._listed(table, title) for title in self.tables[table]),
                ]
            case ("list", "table", "inet", _):
                return None
        raise AssertionError(f"nobody asks for {command}")

    def open(self, table: str, title: str) -> dict[str, float]:
        """Timed element of a set -> seconds that are left, as the kernel counts them."""
        ends = self.tables[table][title]
        return {what: end - self.now for what, end in ends.items() if end > self.now}

    def _counted(self) -> list[dict[str, Any]]:
        return [
            {"counter": {"name": name, "packets": packets, "bytes": size}}
            for name, (packets, size) in self.counters.items()
        ]

    def _listed(self, table: str, title: str) -> dict[str, Any]:
        """As nft does, in whole seconds rounded down."""
        elements = [
            {"elem": {"val": what, "expires": int(left)}} for what, left in self.open(table, title).items()
        ]
        return {"set": {"name": title, "elem": elements}} if elements else {"set": {"name": title}}
