"""This working tree against another checkout of the program, pairs in turns: what did a change cost, or bring?

    git worktree add /tmp/before COMMIT
    .venv/bin/python bench/against.py /tmp/before --rounds 10

For each test the median of the rounds' ratios (this tree by the other one) with the interval that holds the median
with 95 % confidence, by the binomial distribution: a difference smaller than the interval was not seen. Ratios above 1
are better for speed and for work done per CPU second, worse for memory.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import measure
from commandline import ROOT, checkout, count, positive, run_to_end, told_at_end
from measure import Bench, Result, cpu_per_gb
from pairs import Cryprq, Pair

THIS, OTHER = "this tree", "the other"


class Checkout(Cryprq):
    """The pair of the program that is in `root`, with this interpreter and its packages."""

    def __init__(self, name: str, root: Path) -> None:
        super().__init__()
        self.name = name
        self._root = root

    def _environ(self) -> dict[str, str]:
        return {**super()._environ(), "PYTHONPATH": str(self._root)}


def interval(values: list[float]) -> tuple[float, float]:
    """The order statistics between which the median lies with a confidence of at least 95 %, as far as there are
    enough values (6); else the extremes."""
    ordered, count = sorted(values), len(values)
    outside, rank = 0.0, 0
    while rank < count // 2:
        outside += 2 * math.comb(count, rank) / 2**count
        if outside > 0.05:
            break
        rank += 1
    low = max(rank - 1, 0)
    return ordered[low], ordered[count - 1 - low]


def line(what: str, values: list[float]) -> str:
    low, high = interval(values)
    return f"{what:44} {statistics.median(values):.3f}  ({low:.3f} to {high:.3f}; {len(values)} pairs)"


def compare(samples: measure.Samples, value: Callable[[Result], float]) -> list[float]:
    return [value(a) / value(b) for a, b in zip(samples[THIS], samples[OTHER], strict=True)]


def run(bench: Bench, makers: dict[str, Callable[[], Pair]], rows: list[str]) -> None:
    """Adds a row for each figure. Raises BenchError."""
    with ExitStack() as stack:
        pairs = {label: stack.enter_context(make()) for label, make in makers.items()}
        for pair in pairs.values():
            bench.start(pair)
        for streams in (1, 16):
            for direction in ("down", "up"):
                samples = measure.bulk(bench, pairs, streams, direction)
                name = f"bulk, {streams} stream{'s' * (streams > 1)} {direction}"
                rows.append(line(f"{name}: throughput", compare(samples, lambda result: result["gbit"])))
                rows.append(
                    line(f"{name}: work per CPU s", compare(samples, lambda result: 1 / cpu_per_gb(result)))
                )
        samples = measure.connect(bench, pairs)
        rows.append(line("new connections: rate", compare(samples, lambda result: result["rate"])))
        per_cpu = compare(samples, lambda result: result["connections"] / sum(result["cpu"]))
        rows.append(line("new connections: per CPU s", per_cpu))
    rows.append(line("idle streams: memory", [idle(bench, makers) for _ in range(max(bench.rounds // 3, 1))]))


def idle(bench: Bench, makers: dict[str, Callable[[], Pair]]) -> float:
    """The ratio of what an idle stream takes at client and exit together."""
    sizes = measure.idle(bench, makers)
    return sum(sizes[THIS]) / sum(sizes[OTHER])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=checkout, help="the other checkout")
    parser.add_argument("--rounds", type=count, default=10)
    parser.add_argument("--seconds", type=positive, default=2.0)
    return parser.parse_args()


def against(options: argparse.Namespace) -> None:
    makers: dict[str, Callable[[], Pair]] = {
        THIS: lambda: Checkout(THIS, ROOT),
        OTHER: lambda: Checkout(OTHER, options.checkout),
    }
    measure.build()
    rows: list[str] = []
    with (
        told_at_end(rows, lambda: print("\n".join(rows))),
        Bench(rounds=options.rounds, seconds=options.seconds) as bench,
    ):
        run(bench, makers, rows)


if __name__ == "__main__":
    sys.exit(run_to_end(lambda: against(arguments())))
