"""Side-by-side benchmark on a long line: this program's proxy, others, and no proxy at all, as root.

    make wanbench                                                    the whole table
    .venv/bin/python bench/wan.py --only page,fresh                  some of its tests
    .venv/bin/python bench/wan.py --loss 0.01 --control cubic        another line, other hosts
    .venv/bin/python bench/wan.py --tell "police 20e6 60000"          a line that polices UDP, or `udp off`
    .venv/bin/python bench/wan.py --proxies cryprq-proxy --tree DIR  this tree and another checkout of the program

Everything happens in network namespaces that it makes and removes (hosts.py), client --line-- exit --veth-- server,
once for each contender (wan_proxies.py). The line has a delay, a rate, a queue, and chances of loss and reordering
(delayline.py); it is one process of Python, and so is the load generator (wan_load.py). Both share the cores with the
proxies, so the table says what they took, in per cent of a core.

    page      100 objects of 20 kB, six at a time, a fresh connection each; 60 of them beside 4 downloads
    fresh     requests for 1 kB, four at a time, each on a fresh connection, alone and beside 4 downloads
    kept      the same on connections that are kept
    streams   1 and 8 downloads, after two seconds
    long      1 download at 500 Mbit/s and 150 and 300 ms, after five seconds; super-packets cross whole
    cold      the client starts anew at 100 ms: from the moment when its port is open to the first answer
    queue     what a ping waits that goes past the proxy beside 1 download, where the line holds 4 BDP
    blackout  the line is silent for 3 s in a download: how long it takes after that until bytes come again
    udp       the line takes no UDP for 5 s in a download: the longest time without a byte
    address   the client gets another address in a download: the same
    nat       the exit is behind a NAT that forgets UDP after 10 s, the server speaks after 14: how late it is heard
    share     1 download beside a flow of the kernel's reno, cubic and bbr that goes past the proxy

Contenders take turns within each round, and the order turns round with every round. A cell is the median of the
rounds; the ratio is formed round by round, of the contender's figure by that of cryprq-proxy. A round in which a
download broke is counted in the cell, and is part of no figure. The line is told by what it does in each direction; the
queue, by bandwidth-delay products of the round trip.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

from commandline import (
    BenchError,
    chance,
    checkout,
    count,
    new_file,
    not_negative,
    positive,
    run_to_end,
    some_of,
    told_at_end,
)
from hosts import Wire, new_lab
from line import Line
from pairs import CARRIERS
from run import NONE, machine, median, ratios, spread
from wan_groups import NAMES, groups, limit_of
from wan_proxies import SETTINGS, CryprqProxy, Proxy, Result, ShadowsocksProxy
from wan_tests import Test
from wan_xray import XRAY, XrayProxy, version

from tests.support.lab.net import Lab

OURS = CryprqProxy.name
OTHER_TREE = "the other tree"
ALL: list[type[Proxy]] = [CryprqProxy, ShadowsocksProxy, *XRAY, Proxy]
KINDS = {kind.name: kind for kind in ALL}
TOLD = ("udp", "police", "blackout")
NEED_LINE = {"blackout", "udp"}
"""Commands of the line that nothing else sets: what has an option stands in titles, queues and checks as well."""
HEAD = ["test", "proxy", "figure", f"ratio to {OURS}", "CPU of both ends", "line, generator"]

Samples = dict[str, list[Result]]


@dataclass
class Bench:
    """What is measured, and the table so far."""

    kinds: dict[str, type[Proxy]]
    rounds: int
    control: str | None
    commands: list[str]
    """For the lines, once all contenders are up."""
    rows: list[list[str]] = field(default_factory=list)
    raw: dict[str, Samples] = field(default_factory=dict)

    def on_wire(self, name: str, wire: Wire, tests: list[Test]) -> None:
        """Starts the contenders on such a line, runs the tests, and removes everything. Raises BenchError."""
        with ExitStack() as stack:
            lab: Lab = stack.enter_context(new_lab())
            proxies = {label: kind(lab, wire, self.control) for label, kind in self.kinds.items()}
            for proxy in proxies.values():
                stack.enter_context(proxy).start()
            for proxy in proxies.values():
                for command in self.commands:
                    proxy.tell_line(command)
            for test in tests:
                self._run(f"{name}{test.title}", proxies, test)

    def _run(self, title: str, proxies: dict[str, Proxy], test: Test) -> None:
        say(title)
        samples: Samples = {label: [] for label in proxies}
        for round_ in range(self.rounds):
            order: Iterable[str] = reversed(proxies) if round_ % 2 else proxies
            for label in order:
                result = test.measure(proxies[label])
                samples[label].append(result)
                say(f"  round {round_ + 1} {label:18} {cell(test, [result])}")
        self.raw[title] = samples
        self.add(title, samples, test)

    def add(self, title: str, samples: Samples, test: Test) -> None:
        """A row for each contender."""
        for label, results in samples.items():
            whole = [result for result in results if not test.broken(result)]
            figures = [cost(whole), shares(whole)] if whole else [NONE, NONE]
            ratio = NONE if label == OURS else spread(ratio_to(samples.get(OURS, []), results, test))
            self.rows.append([title, label, cell(test, results), ratio, *figures])

    def text(self) -> str:
        return "\n".join("| " + " | ".join(row) + " |" for row in [HEAD, ["---"] * len(HEAD), *self.rows])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cell(test: Test, results: list[Result]) -> str:
    """The figure of the rounds that went well, and how many did not."""
    whole = [result for result in results if not test.broken(result)]
    causes = dict.fromkeys(test.broken(result) for result in results if test.broken(result))
    ended = (
        f"ended early in {len(results) - len(whole)} of {len(results)}: {', '.join(causes)}" if causes else ""
    )
    return "; ".join(filter(None, [test.figure(whole) if whole else "", ended]))


def ratio_to(ours: list[Result], theirs: list[Result], test: Test) -> list[float]:
    """Round by round, of those in which both went well."""
    both = [pair for pair in zip(theirs, ours, strict=False) if not any(map(test.broken, pair))]
    return ratios([pair[0] for pair in both], [pair[1] for pair in both], test.value)


def cost(results: list[Result]) -> str:
    """CPU seconds for each 10^9 bytes of downloads, else the part of a core."""
    if not any(result["proxy_cpu"] for result in results):
        return NONE
    if "bytes" in results[0]:
        return f"{median(results, lambda r: r['proxy_cpu'] / r['bytes'] * 1e9):.1f} s/GB"
    return per_cent(results, lambda result: result["proxy_cpu"] / result["wall"])


def shares(results: list[Result]) -> str:
    return f"{per_cent(results, lambda r: r['line_share'])}, {per_cent(results, lambda r: r['load_share'])}"


def per_cent(results: list[Result], part: Callable[[Result], float]) -> str:
    return f"{100 * median(results, part):.0f} %"


def line_of(options: argparse.Namespace) -> Wire:
    return Wire(
        delay=options.delay,
        loss=options.loss,
        rate=options.rate,
        limit=limit_of(options.rate, options.delay, options.buffer),
        reorder=options.reorder,
        later=options.later,
        segments=not options.offload,
    )


def told(wire: Wire, options: argparse.Namespace) -> str:
    """The line and the hosts in a sentence."""
    rate = f"{wire.rate / 1e6:g} Mbit/s" if wire.rate else "no bound of the rate"
    parts = [rate, f"{2000 * wire.delay:g} ms there and back"]
    if wire.loss:
        parts.append(f"{100 * wire.loss:g} % lost in each direction")
    if wire.reorder:
        parts.append(f"{100 * wire.reorder:g} % late by {1000 * wire.later:g} ms")
    parts.append(f"a queue of {options.buffer:g} BDP")
    parts += options.tell
    parts.append("super-packets whole" if wire.offload else "a frame for each segment")
    hosts = (options.control or "the congestion control of this machine").replace("lock ", "nothing but ")
    setting = f'; connect = "{options.connect}"' if options.connect is not None else ""
    return f"{', '.join(parts)}; hosts with {hosts}{setting}"


def versions(bench: Bench) -> str:
    """Which xray-core was measured, as a line; nothing where none was."""
    names = [name for name, kind in bench.kinds.items() if issubclass(kind, XrayProxy)]
    return f"\n{', '.join(names)}: {version()}." if names else ""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--delay", type=not_negative, default=0.025, help="seconds in each direction (%(default)s)"
    )
    parser.add_argument("--loss", type=chance, default=0.0, help="chance of each frame (%(default)s)")
    parser.add_argument(
        "--rate", type=not_negative, default=200e6, help="bit/s in each direction (%(default)s)"
    )
    parser.add_argument("--buffer", type=not_negative, default=1.0, help="the queue, in BDP (%(default)s)")
    parser.add_argument("--reorder", type=chance, default=0.0, help="chance to come late (%(default)s)")
    parser.add_argument("--later", type=not_negative, default=0.005, help="by so many seconds (%(default)s)")
    parser.add_argument("--offload", action="store_true", help="let super-packets cross whole: less CPU")
    parser.add_argument(
        "--control",
        help="of all hosts: reno, cubic, bbr; 'lock reno' where programs may choose no other",
    )
    parser.add_argument(
        "--connect", choices=SETTINGS, help="when this program answers applications: its setting of that name"
    )
    parser.add_argument(
        "--carrier",
        type=some_of(CARRIERS),
        default=[],
        help=f"this program with its setting of that name as well, each a contender; some of {','.join(CARRIERS)}",
    )
    parser.add_argument(
        "--tell",
        action="append",
        default=[],
        metavar="COMMAND",
        help=f"to the line, as delayline.py lists them; one of {', '.join(TOLD)}",
    )
    parser.add_argument("--only", type=some_of(NAMES), default=",".join(NAMES), help="some of %(default)s")
    parser.add_argument("--proxies", type=some_of(KINDS), default=",".join(KINDS), help="some of %(default)s")
    parser.add_argument("--tree", type=checkout, help="another checkout of this program, measured as well")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--seconds", type=positive, default=5.0, help="of each download (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="1 round, short downloads: a look, not a figure")
    parser.add_argument("--json", type=new_file, help="also write all samples to this file")
    options = parser.parse_args()
    if options.offload and (options.loss or options.reorder):
        parser.error("loss and reordering take frames of the wire; leave --offload out")
    try:
        for command in options.tell:
            Line(0.0).obey(0.0, command)
            if command.split()[0] not in TOLD:
                parser.error(f"--tell {command!r}: say that with the option of the line, --help lists them")
    except ValueError as error:
        parser.error(f"--tell: {error}")
    if not line_of(options).is_line and (options.tell or NEED_LINE & set(options.only)):
        parser.error(
            "without --delay and --rate there is no line to be told; leave out --tell, and the tests "
            + ", ".join(sorted(NEED_LINE))
        )
    if options.quick:
        options.rounds, options.seconds = 1, 2.0
    return options


def contenders(options: argparse.Namespace) -> dict[str, type[Proxy]]:
    """Those that can run here; says why others cannot."""
    kinds: dict[str, type[Proxy]] = {}
    for label in options.proxies:
        reason = KINDS[label].missing()
        if reason is None:
            kinds[label] = KINDS[label]
        else:
            say(f"{label} is left out: {reason}")
    if options.tree is not None:

        class OtherTree(CryprqProxy):
            name = OTHER_TREE
            tree = options.tree

        kinds[OTHER_TREE] = OtherTree
    if OURS in kinds and options.connect is not None:

        class AsAsked(CryprqProxy):
            connect = options.connect

        kinds[OURS] = AsAsked
    for carrier in options.carrier:
        kinds[f"carrier {carrier}"] = over(carrier)
    if not kinds:
        raise BenchError("none of the contenders can run here.")
    return kinds


def over(setting: str) -> type[Proxy]:
    class Over(CryprqProxy):
        name = f"carrier {setting}"
        carrier = setting

    return Over


def run(options: argparse.Namespace) -> None:
    wire = line_of(options)
    bench = Bench(contenders(options), options.rounds, options.control, options.tell)

    def tell() -> None:
        head = f"{machine()}; {bench.rounds} rounds, in turns.\n{told(wire, options)}.{versions(bench)}"
        print(f"{head}\n\n{bench.text()}")
        if options.json:
            options.json.write_text(json.dumps({"machine": machine(), "samples": bench.raw}, indent=1))

    with told_at_end(bench.rows, tell):
        for name, line, tests in groups(wire, options.buffer, options.only, options.seconds):
            bench.on_wire(name, line, tests)


if __name__ == "__main__":
    sys.exit(run_to_end(lambda: run(arguments())))
