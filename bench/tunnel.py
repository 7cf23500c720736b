"""Side-by-side benchmark of whole tunnels: `cryprq-proxy --tun` against wireguard-go and against no tunnel at all.

    .venv/bin/python bench/tunnel.py                       the whole table, as root
    .venv/bin/python bench/tunnel.py --quick               a first look
    .venv/bin/python bench/tunnel.py --only tcp,ping       some of tcp, both, tcp6, ping, udp, urgent, loss
    .venv/bin/python bench/tunnel.py --before /tmp/before  another checkout of this program takes part
    .venv/bin/python bench/tunnel.py --hold 300            starts the tunnels, prints commands to load them by hand

Everything happens in network namespaces that it makes and removes (tunnels.py). The contenders take turns within each
round, and the order turns round with every round; the figure that counts is the median of the rounds' ratios.

    tcp     iperf3, 1 and 4 flows, in each direction, with the retransmissions that its sender counts
    both    4 flows in each direction at once
    tcp6    4 flows over IPv6, in each direction
    ping    alone, and beside a TCP download with cubic and one with bbr: the 50th and the 99th percentile
    udp     datagrams of 1300 bytes: the highest rate that arrives with less than LOSS_FREE lost, found by bisection
    urgent  the same with datagrams of 160 bytes, as of a phone: our lane marks them, so that they may overtake bulk
    loss    TCP on a path that loses 1 % of the frames and takes 40 ms there and back, once with cubic, which
            such a loss holds far below any line's rate, and once with bbr, which fills the line: that has a rate
            then, so that the path is what limits and not the CPU, of which the delay line takes its share
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from commandline import BenchError, checkout, count, new_file, positive, run_to_end, some_of, told_at_end
from hosts import IPERF_PORT, SERVER, Wire, new_lab
from run import NONE, machine, median, ratios, spread
from tunnel_loads import Result, ping, tcp, tcp6, udp
from tunnels import KINDS, Cryprq, Kinds, Tunnel, WireGuardGo

OURS, THEIRS, DIRECT = Cryprq.name, WireGuardGo.name, Tunnel.name
BEFORE = "before"
TESTS = ("tcp", "both", "tcp6", "ping", "udp", "urgent", "loss")
DATAGRAM, URGENT = 1300, 160
LOSSY = Wire(delay=0.020, loss=0.01, rate=200e6, limit=2 << 20)
"""The limit is what 40 ms put in flight twice over: a router's buffer of one round trip."""
LOSS_FLOWS = 8
"""Each flow meets few losses in a few seconds; the sum of several differs less from run to run."""
CONTROLS = ("cubic", "bbr")
GOALS = {"tcp": 1.0, "both": 0.95, "ping": 5.0, "loss": 0.9}
"""Ratio, ratio, ms, ratio."""

Samples = dict[str, list[Result]]


@dataclass
class Bench:
    """Settings of a run, the contenders that are up, and the table so far."""

    rounds: int
    seconds: int
    columns: list[str]
    """The names of those that take part."""
    contenders: dict[str, Tunnel] = field(default_factory=dict)
    rows: list[list[str]] = field(default_factory=list)
    raw: dict[str, Samples] = field(default_factory=dict)

    def in_turns(
        self, name: str, one: Callable[[Tunnel], Result], summary: Callable[[Result], str]
    ) -> Samples:
        say(name)
        samples: Samples = {label: [] for label in self.contenders}
        for round_ in range(self.rounds):
            order: Iterable[str] = reversed(self.contenders) if round_ % 2 else self.contenders
            for label in order:
                result = one(self.contenders[label])
                samples[label].append(result)
                say(f"  round {round_ + 1} {label:14} {summary(result)}")
        self.raw[name] = samples
        return samples

    def add(self, test: str, cells: dict[str, str], ratio: str, goal: str, met: bool | None) -> None:
        verdict = "" if met is None else " (met)" if met else " (**missed**)"
        columns = [cells.get(label, NONE) for label in self.columns]
        self.rows.append([test, *columns, ratio, goal + verdict])

    def text(self) -> str:
        head = ["test", *self.columns, "ratio: median (min..max)", "goal"]
        return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *self.rows])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- the table ---


def compare(samples: Samples, under: str, goal: float) -> tuple[str, bool | None]:
    """Our rate by that of `under`, and whether the median meets the goal."""
    if not samples.get(OURS) or not samples.get(under):
        return NONE, None
    values = ratios(samples[OURS], samples[under], gbit)
    text = spread(values)
    if samples.get(BEFORE):
        text += f"; by {BEFORE} {spread(ratios(samples[OURS], samples[BEFORE], gbit))}"
    return text, bool(values) and statistics.median(values) >= goal


def medians(results: list[Result]) -> Result:
    """Of each figure its own."""
    return {key: statistics.median(result[key] for result in results) for key in results[0]}


def gbit(result: Result) -> float:
    return float(result["gbit"])


def tcp_cell(results: list[Result], scale: float) -> str:
    rate, cost = scale * median(results, gbit), median(results, lambda r: r["cpu_per_gb"])
    again = sum(r["retransmits"] for r in results)
    speed = f"{rate:.1f} Mbit/s" if scale > 1 else f"{rate:.2f} Gbit/s"
    return speed + (f", {cost:.2f} CPU s/GB" if cost else "") + f", {again} retr."


def tcp_summary(result: Result) -> str:
    return f"{gbit(result):6.3f} Gbit/s  {result['cpu_per_gb']:.2f} CPU s/GB  {result['retransmits']} retransmitted"


def add_rates(
    bench: Bench, name: str, one: Callable[[Tunnel], Result], under: str, goal: float, scale: float = 1.0
) -> None:
    """One row of TCP. The goal is a part of what `under` reaches; `scale`: 1,000 for Mbit/s instead of Gbit/s."""
    samples = bench.in_turns(name, one, tcp_summary)
    ratio, met = compare(samples, under, goal)
    cells = {label: tcp_cell(results, scale) for label, results in samples.items()}
    bench.add(name, cells, ratio, f"≥ {goal:g} x {under}", met)


def add_tcp(bench: Bench) -> None:
    for flows, direction in itertools.product((1, 4), ("down", "up")):
        name = f"TCP, {flows} flow{'s' if flows > 1 else ''} {direction}"

        def one(contender: Tunnel, flows: int = flows, direction: str = direction) -> Result:
            return tcp(contender, bench.seconds, flows, direction)

        add_rates(bench, name, one, THEIRS, GOALS["tcp"])


def add_both(bench: Bench) -> None:
    def one(contender: Tunnel) -> Result:
        return tcp(contender, bench.seconds, 4, "both at once")

    add_rates(bench, "TCP, 4 flows down and 4 up at once", one, THEIRS, GOALS["both"])


def add_tcp6(bench: Bench) -> None:
    for direction in ("down", "up"):

        def one(contender: Tunnel, direction: str = direction) -> Result:
            return tcp6(contender, bench.seconds, 4, direction)

        add_rates(bench, f"TCP over IPv6, 4 flows {direction}", one, THEIRS, GOALS["tcp"])


def controls() -> list[str]:
    """Those of CONTROLS that this kernel has."""
    known = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    return [name for name in CONTROLS if name in known]


def add_ping(bench: Bench) -> None:
    def summary(result: Result) -> str:
        return (
            "{idle:.3f} ms alone, beside a download {p50:.3f}, p99 {p99:.3f}, at most {longest:.3f}".format(
                **result
            )
        )

    for control in controls():
        name = f"ping, alone → beside a {control} download: p50, p99"

        def one(contender: Tunnel, control: str = control) -> Result:
            return ping(contender, bench.seconds, control)

        samples = bench.in_turns(name, one, summary)
        cells = {}
        for label, results in samples.items():
            middle = medians(results)
            cells[label] = f"{middle['idle']:.2f} → {middle['p50']:.2f}, {middle['p99']:.2f} ms"
        ours = [result["p50"] for result in samples.get(OURS, [])]
        met = statistics.median(ours) <= GOALS["ping"] if ours else None
        bench.add(name, cells, f"p50 {spread(ours)} ms" if ours else NONE, f"p50 ≤ {GOALS['ping']:g} ms", met)


def add_datagrams(bench: Bench, size: int, what: str) -> None:
    for direction in ("down", "up"):
        name = f"UDP, {size} bytes{what}, loss-free, {direction}"

        def one(contender: Tunnel, direction: str = direction) -> Result:
            return udp(contender, bench.seconds, size, direction)

        samples = bench.in_turns(name, one, datagrams_cell)
        ratio, met = compare(samples, THEIRS, GOALS["tcp"])
        cells = {label: datagrams_cell(medians(results)) for label, results in samples.items()}
        bench.add(name, cells, ratio, f"≥ {GOALS['tcp']:g} x {THEIRS}", met)


def datagrams_cell(result: Result) -> str:
    return f"{gbit(result):.2f} Gbit/s, {result['packets'] / 1000:.0f} thousand/s"


def add_loss(bench: Bench) -> None:
    for control, direction in itertools.product(controls(), ("down", "up")):
        name = f"1 % loss, 40 ms, TCP {control}, {LOSS_FLOWS} flows {direction}"

        def one(contender: Tunnel, control: str = control, direction: str = direction) -> Result:
            # Slow start and recoveries take many round trips.
            return tcp(contender, 4 * bench.seconds, LOSS_FLOWS, direction, "-C", control)

        add_rates(bench, name, one, DIRECT, GOALS["loss"], scale=1_000)


def hold(bench: Bench, seconds: float) -> None:
    """Leaves the tunnels running and says how to load them by hand."""
    for label, contender in bench.contenders.items():
        print(f"\n{label}: tunnel processes {[program.pid for program in contender.programs]}")
        inside = f"ip netns exec {contender.client.name}"
        for options in ("-P 1 -R", "-P 4", f"-u -l {DATAGRAM} -b 500M"):
            print(f"  {inside} iperf3 -c {SERVER} -p {IPERF_PORT} {options}")
        print(f"  {inside} ping {SERVER}")
    print(f"\nEnds in {seconds:.0f} s, or with Ctrl-C.", flush=True)
    signal.sigtimedwait([], seconds)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 s: a look, not a figure")
    parser.add_argument("--rounds", type=count, help="rounds of each test (5)")
    parser.add_argument("--seconds", type=count, help="seconds of each single measurement (3)")
    parser.add_argument("--only", type=some_of(TESTS), default=",".join(TESTS), help="some of %(default)s")
    parser.add_argument("--tunnels", type=some_of(KINDS), default=",".join(KINDS), help="some of %(default)s")
    parser.add_argument(
        "--before", type=checkout, metavar="TREE", help="another checkout, which takes part too"
    )
    parser.add_argument("--json", type=new_file, help="also write all samples to this file")
    parser.add_argument(
        "--hold", type=positive, metavar="SECONDS", help="only start the tunnels and keep them"
    )
    return parser.parse_args()


def on_wire(bench: Bench, kinds: Kinds, wire: Wire, tests: Sequence[Callable[[Bench], None]]) -> None:
    """Starts the contenders on such a wire, runs the tests, and removes everything."""
    with ExitStack() as stack:
        lab = stack.enter_context(new_lab())
        bench.contenders = {label: make(lab, wire) for label, make in kinds.items()}
        for contender in bench.contenders.values():
            stack.enter_context(contender).start()
        for test in tests:
            test(bench)


def version(bench: Bench) -> str:
    """Which wireguard-go was measured, as a line; nothing where it was not."""
    return f"\n{THEIRS}: {WireGuardGo.version()}." if THEIRS in bench.columns else ""


def run(options: argparse.Namespace) -> None:
    missing = [KINDS[label].missing() for label in options.tunnels]
    if any(missing):
        raise BenchError("; ".join(filter(None, missing)))
    kinds: Kinds = {label: KINDS[label] for label in options.tunnels}
    if options.before:
        kinds[BEFORE] = partial(Cryprq, name=BEFORE, tree=options.before)
    bench = Bench(
        rounds=options.rounds or (2 if options.quick else 5),
        seconds=options.seconds or (1 if options.quick else 3),
        columns=list(kinds),
    )
    if options.hold:
        on_wire(bench, kinds, Wire(), [lambda bench: hold(bench, options.hold)])
        return
    plain = {
        "tcp": add_tcp,
        "both": add_both,
        "tcp6": add_tcp6,
        "ping": add_ping,
        "udp": lambda bench: add_datagrams(bench, DATAGRAM, ""),
        "urgent": lambda bench: add_datagrams(bench, URGENT, " marked as urgent"),
    }

    def tell() -> None:
        print(f"{machine()}; {bench.rounds} rounds of {bench.seconds:g} s, in turns.{version(bench)}")
        print(f"\n{bench.text()}")
        if options.json:
            options.json.write_text(json.dumps({"machine": machine(), "samples": bench.raw}, indent=1))

    with told_at_end(bench.rows, tell):
        if tests := [add for test, add in plain.items() if test in options.only]:
            on_wire(bench, kinds, Wire(), tests)
        if "loss" in options.only:
            on_wire(bench, kinds, LOSSY, [add_loss])


if __name__ == "__main__":
    sys.exit(run_to_end(lambda: run(arguments())))
