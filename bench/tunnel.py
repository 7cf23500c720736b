"""Side-by-side benchmark of whole tunnels: `cryprq-proxy --tun` against wireguard-go and against no tunnel at all.

    .venv/bin/python bench/tunnel.py                   the whole table, as root
    .venv/bin/python bench/tunnel.py --quick           a first look
    .venv/bin/python bench/tunnel.py --only tcp,ping   some of tcp, udp, ping, loss
    .venv/bin/python bench/tunnel.py --hold 300        starts the tunnels, prints commands to load them by hand

Everything happens in network namespaces that it makes and removes (tunnels.py). The contenders take turns within each
round, and the order turns round with every round; the figure that counts is the median of the rounds' ratios.

    tcp     iperf3, 1 and 4 flows, in each direction, with the retransmissions that its sender counts
    udp     datagrams of 1300 bytes: the highest rate that arrives with less than LOSS_FREE lost, found by bisection
    ping    its median alone, and beside a TCP download
    loss    TCP on a path that loses 1 % of the frames and takes 40 ms there and back, once with cubic, which
            such a loss holds far below any line's rate, and once with bbr, which fills the line: that has a rate
            then, so that the path is what limits and not the CPU, of which the delay line takes its share
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hosts import SERVER, Wire, new_lab
from pairs import BenchError
from run import NONE, machine, median, ratios, spread
from tunnels import IPERF_PORT, KINDS, Contender, Cryprq, WireGuardGo

OURS, THEIRS, DIRECT = Cryprq.name, WireGuardGo.name, Contender.name
TESTS = ("tcp", "udp", "ping", "loss")
DATAGRAM = 1300
LOSS_FREE = 0.001
"""The part of the datagrams that may be lost in flight: two busy cores lose some to the scheduler at any rate."""
FIRST_RATE = 50e6
TOP_RATE = 8e9
BISECTIONS = 4
LOSSY = Wire(delay=0.020, loss=0.01, rate=200e6, limit=2 << 20)
"""The limit is what 40 ms put in flight twice over: a router's buffer of one round trip."""
LOSS_FLOWS = 8
"""Each flow meets few losses in a few seconds; the sum of several differs less from run to run."""
CONTROLS = ("cubic", "bbr")
PINGS_PER_SECOND = 50
GOALS = {"tcp": 4.0, "udp": 2.0, "ping": 3.0, "loss": 0.9}
"""Ratio, ratio, ms, ratio."""

Result = dict[str, Any]
Samples = dict[str, list[Result]]


@dataclass
class Bench:
    """Settings of a run, the contenders that are up, and the table so far."""

    rounds: int
    seconds: float
    contenders: dict[str, Contender] = field(default_factory=dict)
    rows: list[list[str]] = field(default_factory=list)
    raw: dict[str, Samples] = field(default_factory=dict)

    def in_turns(
        self, name: str, one: Callable[[Contender], Result], summary: Callable[[Result], str]
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
        columns = [cells.get(label, NONE) for label in (OURS, THEIRS, DIRECT)]
        self.rows.append([test, *columns, ratio, goal + verdict])

    def text(self) -> str:
        head = ["test", OURS, THEIRS, DIRECT, "ratio: median (min..max)", "goal"]
        return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *self.rows])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- one measurement ---


def iperf(contender: Contender, seconds: float, *options: str) -> Result:
    """One run of iperf3 from the client to the server. Raises BenchError."""
    command = ["iperf3", "-c", SERVER, "-p", str(IPERF_PORT), "-J", "-t", f"{seconds:g}", *options]
    before = contender.cpu()
    try:
        done = contender.client.attempt(command, limit=seconds + 30)
        result: Result = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise BenchError(f"{contender.name}: iperf3 gave no result: {error}") from error
    if "error" in result:
        raise BenchError(f"{contender.name}: iperf3 failed: {result['error']}.")
    end: Result = result["end"]
    end["cpu"] = contender.cpu() - before
    return end


def tcp(contender: Contender, seconds: float, flows: int, down: bool, *options: str) -> Result:
    """Gbit/s received, retransmitted segments, and CPU seconds of the tunnel for each 10^9 bytes."""
    end = iperf(contender, seconds, "-P", str(flows), *(["-R"] if down else []), *options)
    received = end["sum_received"]
    return {
        "gbit": received["bits_per_second"] / 1e9,
        "retransmits": end["sum_sent"].get("retransmits", 0),
        "cpu_per_gb": end["cpu"] / max(received["bytes"] / 1e9, 1e-9),
    }


def search(offer: Callable[[float], tuple[float, float]]) -> float:
    """The highest rate in bit/s that arrives as good as whole; 0 if none does.

    `offer` sends at a rate and gives what arrived, in bit/s, and the part that was lost. The rate doubles until some
    is lost or the sender cannot follow; then the gap between the last good and the first bad one is halved a few times.
    """
    good = rate = FIRST_RATE
    best = 0.0
    while rate <= TOP_RATE:
        arrived, lost = offer(rate)
        if lost > LOSS_FREE:
            break
        best, good = max(best, arrived), rate
        if arrived < 0.9 * rate:
            return best
        rate *= 2
    if not best:
        good = 0.0
    bad = rate
    for _ in range(BISECTIONS):
        rate = (good + bad) / 2
        arrived, lost = offer(rate)
        if lost > LOSS_FREE:
            bad = rate
        else:
            best, good = max(best, arrived), rate
    return best


def udp(contender: Contender, seconds: float, down: bool) -> Result:
    """The loss-free rate in Gbit/s of payload."""

    def offer(rate: float) -> tuple[float, float]:
        options = ["-u", "-l", str(DATAGRAM), "-b", f"{rate:.0f}", "-w", "2M", *(["-R"] if down else [])]
        total = iperf(contender, seconds, *options)["sum"]
        lost = total["lost_packets"] / max(total["packets"], 1)
        return total["bits_per_second"] * (1 - lost), lost

    return {"gbit": search(offer) / 1e9}


def ping(contender: Contender, seconds: float) -> Result:
    """Median round trips in ms: alone, and beside a TCP download that fills the tunnel."""

    def median_ms() -> float:
        count = max(10, round(seconds * PINGS_PER_SECOND))
        command = ["ping", "-i", str(1 / PINGS_PER_SECOND), "-c", str(count), SERVER]
        times = re.findall(r"time=([\d.]+)", contender.client.run(command, limit=seconds + 30))
        return statistics.median(map(float, times))

    idle = median_ms()
    # Longer than the pings; ended when they are through.
    command = ["iperf3", "-c", SERVER, "-p", str(IPERF_PORT), "-R", "-t", f"{seconds + 30:g}"]
    download = contender.client.popen([*command, "--forceflush"], stdout=subprocess.PIPE)
    assert download.stdout is not None
    try:
        while "bits/sec" not in (line := download.stdout.readline()):  # the first second is over
            if not line:
                raise BenchError(f"{contender.name}: the download beside the pings did not start.")
        loaded = median_ms()
    finally:
        # By SIGINT it tells the server, which is then ready for the next.
        download.send_signal(signal.SIGINT)
        download.communicate()
    return {"idle": idle, "loaded": loaded, "rise": loaded - idle}


# --- the table ---


def compare(samples: Samples, under: str, goal: float) -> tuple[str, bool | None]:
    """Our rate by that of `under`, and whether the median meets the goal."""
    if not samples.get(OURS) or not samples.get(under):
        return NONE, None
    values = ratios(samples[OURS], samples[under], gbit)
    return spread(values), bool(values) and statistics.median(values) >= goal


def gbit(result: Result) -> float:
    return float(result["gbit"])


def tcp_cell(results: list[Result]) -> str:
    cost = median(results, lambda r: r["cpu_per_gb"])
    again = sum(r["retransmits"] for r in results)
    return (
        f"{median(results, gbit):.2f} Gbit/s"
        + (f", {cost:.2f} CPU s/GB" if cost else "")
        + f", {again} retr."
    )


def tcp_summary(result: Result) -> str:
    return f"{gbit(result):6.3f} Gbit/s  {result['cpu_per_gb']:.2f} CPU s/GB  {result['retransmits']} retransmitted"


def add_tcp(bench: Bench) -> None:
    for flows in (1, 4):
        for down in (True, False):
            name = f"TCP, {flows} flow{'s' if flows > 1 else ''} {'down' if down else 'up'}"

            def one(contender: Contender, flows: int = flows, down: bool = down) -> Result:
                return tcp(contender, bench.seconds, flows, down)

            samples = bench.in_turns(name, one, tcp_summary)
            ratio, met = compare(samples, THEIRS, GOALS["tcp"])
            cells = {label: tcp_cell(results) for label, results in samples.items()}
            bench.add(name, cells, ratio, "≥ 4 x wireguard-go", met)


def add_udp(bench: Bench) -> None:
    for down in (True, False):
        name = f"UDP, {DATAGRAM} bytes, loss-free, {'down' if down else 'up'}"

        def one(contender: Contender, down: bool = down) -> Result:
            return udp(contender, bench.seconds, down)

        samples = bench.in_turns(name, one, lambda r: f"{gbit(r):6.3f} Gbit/s")
        ratio, met = compare(samples, THEIRS, GOALS["udp"])
        cells = {label: f"{median(results, gbit):.2f} Gbit/s" for label, results in samples.items()}
        bench.add(name, cells, ratio, "≥ 2 x wireguard-go", met)


def add_ping(bench: Bench) -> None:
    def summary(result: Result) -> str:
        return f"{result['idle']:.3f} ms alone, {result['loaded']:.3f} ms beside a download"

    samples = bench.in_turns("ping beside a download", lambda c: ping(c, bench.seconds), summary)
    cells = {}
    for label, results in samples.items():
        idle, loaded = median(results, lambda r: r["idle"]), median(results, lambda r: r["loaded"])
        cells[label] = f"{idle:.2f} → {loaded:.2f} ms"
    met, rise = None, NONE
    if samples.get(OURS):
        rises = [result["rise"] for result in samples[OURS]]
        rise, met = f"rise {spread(rises)} ms", statistics.median(rises) <= GOALS["ping"]
    bench.add("ping, median, alone → beside a TCP download", cells, rise, "≤ 3 ms more", met)


def add_loss(bench: Bench) -> None:
    known = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    for control, down in itertools.product((name for name in CONTROLS if name in known), (True, False)):
        name = f"1 % loss, 40 ms, TCP {control}, {LOSS_FLOWS} flows {'down' if down else 'up'}"

        def one(contender: Contender, control: str = control, down: bool = down) -> Result:
            # Slow start and recoveries take many round trips.
            return tcp(contender, 4 * bench.seconds, LOSS_FLOWS, down, "-C", control)

        samples = bench.in_turns(name, one, tcp_summary)
        ratio, met = compare(samples, DIRECT, GOALS["loss"])
        cells = {label: f"{1000 * median(results, gbit):.1f} Mbit/s" for label, results in samples.items()}
        bench.add(name, cells, ratio, "≥ 0.9 x no tunnel", met)


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
    parser.add_argument("--rounds", type=int, help="rounds of each test (5)")
    parser.add_argument("--seconds", type=float, help="seconds of each single measurement (3)")
    parser.add_argument("--only", default=",".join(TESTS), help="some of " + ",".join(TESTS))
    parser.add_argument("--tunnels", default=",".join(KINDS), help="some of %(default)s")
    parser.add_argument("--json", type=Path, help="also write all samples to this file")
    parser.add_argument("--hold", type=float, metavar="SECONDS", help="only start the tunnels and keep them")
    options = parser.parse_args()
    options.only, options.tunnels = options.only.split(","), options.tunnels.split(",")
    if not set(options.only) <= set(TESTS) or not set(options.tunnels) <= set(KINDS):
        parser.error("--only or --tunnels names something that does not exist")
    return options


def on_wire(bench: Bench, labels: list[str], wire: Wire, tests: Sequence[Callable[[Bench], None]]) -> None:
    """Starts the contenders on such a wire, runs the tests, and removes everything."""
    with ExitStack() as stack:
        lab = stack.enter_context(new_lab())
        bench.contenders = {label: KINDS[label](lab, wire) for label in labels}
        for contender in bench.contenders.values():
            stack.enter_context(contender).start()
        for test in tests:
            test(bench)


def run(options: argparse.Namespace) -> None:
    missing = [KINDS[label].missing() for label in options.tunnels]
    if any(missing):
        raise BenchError("; ".join(filter(None, missing)))
    bench = Bench(
        rounds=options.rounds or (2 if options.quick else 5),
        seconds=options.seconds or (1.0 if options.quick else 3.0),
    )
    if options.hold:
        on_wire(bench, options.tunnels, Wire(), [lambda bench: hold(bench, options.hold)])
        return
    plain = {"tcp": add_tcp, "udp": add_udp, "ping": add_ping}
    if tests := [add for test, add in plain.items() if test in options.only]:
        on_wire(bench, options.tunnels, Wire(), tests)
    if "loss" in options.only:
        on_wire(bench, options.tunnels, LOSSY, [add_loss])
    print(f"{machine()}; {bench.rounds} rounds of {bench.seconds:g} s, in turns.\n\n{bench.text()}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "samples": bench.raw}, indent=1))


def main() -> int:
    # SIGTERM unwinds like Ctrl-C, so that every namespace is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(arguments())
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
