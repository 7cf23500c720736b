"""Side-by-side benchmark: cryprq-proxy against shadowsocks-libev (C, AES-256-GCM), all on 127.0.0.1.

    make bench                                    the whole table, about six minutes
    .venv/bin/python bench/run.py --quick         a first look, about one and a half
    .venv/bin/python bench/run.py --only bulk     one test (bulk, connect, latency, idle, rotation, watched)
    .venv/bin/python bench/run.py --hold 300      starts the pairs, prints commands to load them by hand

pairs.py starts the processes, measure.py lets loadgen load them in turns, this file makes the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import measure
from commandline import BenchError, count, new_file, positive, run_to_end, some_of, told_at_end
from measure import Bench, Result, Samples
from pairs import CARRIERS, Cryprq, Direct, Pair, Shadowsocks

OURS, THEIRS, DIRECT = Cryprq.name, Shadowsocks.name, Direct.name
TESTS = ("bulk", "connect", "latency", "idle", "rotation", "watched")
NONE = "-"
GOALS = {
    "bulk": 1.6,
    "fairness": 0.9,
    "connect": 0.75,
    "rise": 15.0,
    "idle": 30.0,
    "rotation": 0.97,
    "watched": 0.99,
}
"""Ratio, index, ratio, ms, KB (1000 bytes), ratio, ratio."""
FRESH = {"quiet": {"p50": 1.2}, "loaded": {"p50": 5.0, "p99": 8.0}}
"""Most ms of a small request on a fresh connection, alone and beside 8 downloads."""


@dataclass
class Table:
    """Rows of the result, and what stands behind them."""

    rows: list[list[str]] = field(default_factory=list)
    raw: dict[str, object] = field(default_factory=dict)

    def add(self, test: str, cells: dict[str, str], ratio: str, goal: str, met: bool | None) -> None:
        verdict = "" if met is None else " (met)" if met else " (**missed**)"
        columns = [cells.get(label, NONE) for label in (OURS, THEIRS, DIRECT)]
        self.rows.append([test, *columns, ratio, goal + verdict])

    def text(self) -> str:
        head = ["test", OURS, THEIRS, "no proxy", "ratio: median (min..max)", "goal"]
        return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *self.rows])


def median(samples: list[Result], value: Callable[[Result], float]) -> float:
    return statistics.median(map(value, samples))


def ratios(over: list[Result], under: list[Result], value: Callable[[Result], float]) -> list[float]:
    """`over` by `under`, round by round."""
    return [value(a) / value(b) for a, b in zip(over, under, strict=True) if value(b)]


def spread(values: list[float], digits: int = 2) -> str:
    if not values:
        return NONE
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def compare(samples: Samples, value: Callable[[Result], float], goal: float) -> tuple[str, bool | None]:
    """The cell of our ratio to theirs, and whether its median meets the goal."""
    if not samples.get(OURS) or not samples.get(THEIRS):
        return NONE, None
    values = ratios(samples[OURS], samples[THEIRS], value)
    return spread(values), bool(values) and statistics.median(values) >= goal


def cpu_ratio(samples: Samples, cost: Callable[[Result], float]) -> str:
    """How many times the CPU time of ours the other pair takes for the same work."""
    if not samples.get(OURS) or not samples.get(THEIRS):
        return ""
    return f"; per CPU second {spread(ratios(samples[THEIRS], samples[OURS], cost))}"


def percentiles(results: list[Result]) -> str:
    p50, p99 = median(results, lambda r: r["p50"]), median(results, lambda r: r["p99"])
    return f"p50 {p50:.2f}, p99 {p99:.2f} ms"


def gbit(result: Result) -> float:
    return float(result["gbit"])


def add_bulk(table: Table, bench: Bench, pairs: dict[str, Pair]) -> None:
    for streams in (1, 16):
        for direction in ("down", "up"):
            name = f"bulk, {streams} stream{'s' if streams > 1 else ''} {direction}"
            bench.say(name)
            samples = measure.bulk(bench, pairs, streams, direction)
            table.raw[name] = samples
            cells = {label: f"{median(rs, gbit):.2f} Gbit/s" for label, rs in samples.items()}
            for label in cells.keys() & {OURS, THEIRS}:
                cells[label] += f", {median(samples[label], measure.cpu_per_gb):.2f} CPU s/GB"
            ratio, met = compare(samples, gbit, GOALS["bulk"])
            table.add(name, cells, ratio + cpu_ratio(samples, measure.cpu_per_gb), "≥ 1.6", met)
            if streams > 1 and direction == "down":
                add_fairness(table, samples, streams)


def add_fairness(table: Table, samples: Samples, streams: int) -> None:
    """Jain's index of what the streams got, and the one that got least by the one that got most."""
    cells = {
        label: f"{median(rs, lambda r: r['fairness']):.3f}; {median(rs, lambda r: r['least_over_most']):.2f}"
        for label, rs in samples.items()
    }
    met = median(samples[OURS], lambda r: r["fairness"]) >= GOALS["fairness"] if OURS in samples else None
    table.add(f"fairness of {streams} downloads: Jain's index; least by most", cells, NONE, "≥ 0.9", met)


def add_connect(table: Table, bench: Bench, pairs: dict[str, Pair]) -> None:
    name = "new connections, 64 at a time"
    bench.say(name)
    samples = measure.connect(bench, pairs)
    table.raw[name] = samples

    def cell(results: list[Result]) -> str:
        rate = median(results, lambda r: r["rate"])
        errors = sum(r["errors"] for r in results)
        times = percentiles([r["ms"] for r in results])
        return f"{rate:.0f}/s, {times}" + (f", **{errors} errors**" if errors else "")

    ratio, met = compare(samples, lambda r: r["rate"], GOALS["connect"])
    ratio += cpu_ratio(samples, lambda r: sum(r["cpu"]) / max(r["connections"], 1))
    table.add(name, {label: cell(rs) for label, rs in samples.items()}, ratio, f"≥ {GOALS['connect']:g}", met)


def add_latency(table: Table, bench: Bench, pairs: dict[str, Pair]) -> None:
    bench.say("small requests, without and with 8 bulk downloads")
    samples = measure.latency(bench, pairs)
    table.raw["latency"] = samples
    for what, title in (("echo", "kept-alive"), ("fresh", "fresh connection")):
        for phase, load in (("quiet", "alone"), ("loaded", "beside 8 downloads")):
            cells = {label: percentiles([r[phase][what] for r in rs]) for label, rs in samples.items()}
            most = FRESH[phase] if what == "fresh" else {}
            goal = ", ".join(f"{name} ≤ {ms:g}" for name, ms in most.items()) + " ms" if most else NONE
            met = within(samples[OURS], phase, what, most) if most and OURS in samples else None
            table.add(f"small request, {title}, {load}", cells, NONE, goal, met)
        rises = {label: [measure.p99_rise(r, what) for r in rs] for label, rs in samples.items()}
        cells = {label: f"{spread(values, 1)} ms" for label, values in rises.items()}
        met = statistics.median(rises[OURS]) <= GOALS["rise"] if OURS in rises else None
        table.add(f"small request, {title}: rise of p99", cells, NONE, "≤ 15 ms", met)


def within(results: list[Result], phase: str, what: str, most: dict[str, float]) -> bool:
    """Whether each of these percentiles, in ms, is at most that in the median of the rounds."""
    return all(statistics.median(r[phase][what][name] for r in results) <= ms for name, ms in most.items())


def add_idle(table: Table, bench: Bench, makers: dict[str, Callable[[], Pair]]) -> None:
    bench.say(f"{bench.idle_streams} idle streams")
    sizes = measure.idle(bench, makers)
    table.raw["idle"] = sizes
    cells = {
        label: f"{sum(each):.1f} KiB each ({' + '.join(f'{size:.1f}' for size in each)})"
        for label, each in sizes.items()
    }
    met = sum(sizes[OURS]) * 1.024 <= GOALS["idle"] if OURS in sizes else None
    ratio = f"{sum(sizes[OURS]) / sum(sizes[THEIRS]):.2f}" if OURS in sizes and THEIRS in sizes else NONE
    table.add(f"{bench.idle_streams} idle streams, client + exit", cells, ratio, "≤ 30 KB", met)


def add_rotation(table: Table, bench: Bench) -> None:
    name = "bulk with rotation every second"
    bench.say(name)
    result = measure.rotation(bench)
    fast, slow = result.samples["every second"], result.samples["every 300 s"]
    table.raw[name] = {**result.samples, "epochs": result.epochs, "verified": result.verified}
    values = ratios(fast, slow, gbit)
    speeds = f"{median(fast, gbit):.2f}, else {median(slow, gbit):.2f} Gbit/s"
    epochs = "rotations not reported" if result.epochs is None else f"{result.epochs} rotations"
    cell = f"{speeds}; {epochs}, {result.verified / 1e9:.1f} GB compared byte by byte"
    # The goal is one for the median: single rounds differ by more than 3 % on a shared machine.
    cost = f"{spread(values, 3)}; per CPU second {spread(ratios(slow, fast, measure.cpu_per_gb), 3)}"
    met = statistics.median(values) > GOALS["rotation"] and result.epochs != 0
    table.add(name, {OURS: cell}, cost, "> 0.97, nothing lost", met)


def add_watched(table: Table, bench: Bench) -> None:
    name = "bulk with the dashboard open, metrics asked for every second"
    bench.say(name)
    samples = measure.watched(bench)
    table.raw[name] = samples
    seen, unseen = samples["watched"], samples["not watched"]
    speeds = f"{median(seen, gbit):.2f}, else {median(unseen, gbit):.2f} Gbit/s"
    values = ratios(seen, unseen, gbit)
    cost = f"{spread(values, 3)}; per CPU second {spread(ratios(unseen, seen, measure.cpu_per_gb), 3)}"
    table.add(name, {OURS: speeds}, cost, "> 0.99", statistics.median(values) > GOALS["watched"])


def hold(bench: Bench, pairs: dict[str, Pair], seconds: float) -> None:
    """Leaves the pairs running and says how to load them by hand."""
    for label, pair in pairs.items():
        print(f"\n{label}: SOCKS5 on 127.0.0.1:{pair.socks_port}, client and exit are {pair.pids}")
        print(f"  their files are in {pair.directory}")
        for test, options in (
            ("bulk", ["--streams", "1", "--dir", "down", "--seconds", "5"]),
            ("bulk", ["--streams", "16", "--dir", "up", "--seconds", "5"]),
            ("connect", ["--concurrency", "64", "--seconds", "5"]),
            ("latency", ["--bulk", "8", "--seconds", "3"]),
            ("idle", ["--count", "2000"]),
        ):
            print("  " + " ".join(bench.command(pair, test, *options)))
    print(f"\nEnds in {seconds:.0f} s, or with Ctrl-C.", flush=True)
    time.sleep(seconds)


def machine() -> str:
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0))
    return f"{cores} x {model}, Linux {platform.release()}, CPython {platform.python_version()}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 s: a look, not a figure")
    parser.add_argument("--rounds", type=count, help="rounds of each test (5)")
    parser.add_argument("--seconds", type=positive, help="seconds of each single measurement (3)")
    parser.add_argument("--only", type=some_of(TESTS), default=",".join(TESTS), help="some of %(default)s")
    names = (OURS, THEIRS, DIRECT)
    parser.add_argument("--pairs", type=some_of(names), default=",".join(names), help="some of %(default)s")
    parser.add_argument(
        "--carrier", choices=CARRIERS, help="what carries streams, but for the last two tests"
    )
    parser.add_argument("--json", type=new_file, help="also write all samples to this file")
    parser.add_argument("--hold", type=positive, metavar="SECONDS", help="only start the pairs and keep them")
    return parser.parse_args()


def run(options: argparse.Namespace) -> None:  # noqa: C901  the list of what there is to measure
    measure.build()
    missing = Shadowsocks.missing()
    if THEIRS in options.pairs and missing:
        raise BenchError(missing)
    bench = Bench(
        rounds=options.rounds or (2 if options.quick else 5),
        seconds=options.seconds or (1.0 if options.quick else 3.0),
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    table = Table()
    proxies = [label for label in options.pairs if label != DIRECT]

    makers = measure.makers(proxies, options.carrier)
    setting = f'carrier = "{options.carrier}"; ' if options.carrier else ""

    def tell() -> None:
        head = f"{machine()}; {setting}{bench.rounds} rounds of {bench.seconds:g} s, pairs in turns."
        print(f"{head}\n\n{table.text()}")
        if options.json:
            options.json.write_text(json.dumps({"machine": machine(), "samples": table.raw}, indent=1))

    with ExitStack() as stack:
        if not options.hold:
            stack.enter_context(told_at_end(table.rows, tell))
        stack.enter_context(bench)
        if options.hold or set(options.only) & {"bulk", "connect", "latency"}:
            pairs: dict[str, Pair] = {label: make() for label, make in makers.items()}
            if DIRECT in options.pairs:
                pairs[DIRECT] = Direct()
            for pair in pairs.values():
                stack.enter_context(pair)
            for pair in pairs.values():
                bench.start(pair)
            if options.hold:
                hold(bench, pairs, options.hold)
                return
            for test, add in (("bulk", add_bulk), ("connect", add_connect), ("latency", add_latency)):
                if test in options.only:
                    add(table, bench, pairs)
            for pair in pairs.values():
                pair.stop()
        if "idle" in options.only:
            add_idle(table, bench, makers)
        if "rotation" in options.only and OURS in proxies:
            add_rotation(table, bench)
        if "watched" in options.only and OURS in proxies:
            add_watched(table, bench)


def main() -> int:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return run_to_end(lambda: run(arguments()))


if __name__ == "__main__":
    sys.exit(main())
