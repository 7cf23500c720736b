"""What rules and their lists cost: load time and memory of a long list, time of a decision. Prints a Markdown table.

Run it as `python bench/rules.py [NAMES]`. The list is made here, in all its formats; memory is the difference that
loading makes to the resident size of a fresh process, at its end and at its peak.
"""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cryprq_proxy.rules.engine import RuleSet, load_rules
from cryprq_proxy.rules.syntax import Rule, RuleAction, Verdict

NAMES = 500_000
LOOK_UPS = 20_000
ROUNDS = 5
DIRECT = RuleAction(Verdict.DIRECT)
BLOCK = RuleAction(Verdict.BLOCK)


def name(number: int) -> str:
    return f"host{number}.site{number % 9973}.example.com"


def write(path: Path, count: int) -> None:
    """A list of so many names: a third each as in a hosts file, plain, and as in a filter list."""
    spellings = ("0.0.0.0 {}\n", "{}\n", "||{}^\n")
    path.write_text("".join(spellings[number % 3].format(name(number)) for number in range(count)))


def load(path: Path) -> None:
    """In a process of its own: read the list once.

    Prints seconds, those of the processor, MiB resident before, after and at the peak, and the names.
    """
    before = resident()
    start, used = time.perf_counter(), time.process_time()
    rules = load_rules([Rule(action=BLOCK, lists=(path,))], DIRECT)
    seconds, processor = time.perf_counter() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(seconds, processor, before, resident(), peak, rules.listed)


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def microseconds(rules: RuleSet, hosts: Sequence[str]) -> float:
    """For each decision, of processor time: the median of some rounds."""
    decide: Callable[[str, int], object] = rules.decide
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for host in hosts:
            decide(host, 443)
        times.append((time.process_time() - start) / len(hosts) * 1e6)
    return sorted(times)[ROUNDS // 2]


def thousand() -> list[Rule]:
    """Rules of all kinds; none is for all."""
    kinds = ("site{}.example", ".site{}.example", "*.site{}.example", "ad{}*.example.com", "track{}*")
    return [
        Rule(action=BLOCK if number % 2 else DIRECT, domains=(kinds[number % 5].format(number),))
        for number in range(1000)
    ]


def main(count: int) -> None:
    chosen = random.Random(1)
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "list.txt")
        write(path, count)
        runs = []
        for _ in range(3):
            command = [sys.executable, __file__, "--load", str(path)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs.append([float(word) for word in output.split()])
        seconds, processor, before, after, peak, listed = sorted(runs)[1]
        rows.append((f"load {listed:,.0f} names", f"{seconds:.2f} s", "under 3 s"))
        rows.append(("processor time of that", f"{processor:.2f} s", ""))
        rows.append(("memory when loaded", f"{after - before:.0f} MiB", "under 150 MB"))
        rows.append(("memory at the peak", f"{peak - before:.0f} MiB", "under 150 MB"))
        listed_rules = load_rules([Rule(action=BLOCK, lists=(path,))], DIRECT)
        mixed = load_rules([*thousand(), Rule(action=BLOCK, lists=(path,))], DIRECT)
    hits = [name(chosen.randrange(count)) for _ in range(LOOK_UPS)]
    misses = [f"www.other{chosen.randrange(count)}.example.org" for _ in range(LOOK_UPS)]
    addresses = [f"192.0.2.{chosen.randrange(256)}" for _ in range(LOOK_UPS)]
    for what, hosts in (("a listed name", hits), ("another name", misses)):
        rows.append((f"decide about {what}", f"{microseconds(listed_rules, hosts):.1f} us", "under 10 us"))
    for what, hosts in (("a listed name", hits), ("another name", misses), ("an address", addresses)):
        cost = microseconds(mixed, hosts)
        rows.append((f"decide about {what}, 1,000 rules before the list", f"{cost:.1f} us", ""))
    print("| what | measured | goal |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--load"]:
        load(Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else NAMES)
