"""What is measured: each function loads started pairs in turn with the load generator, and gives samples.

Pairs take turns within each round, and the order turns round with every round, so that a slow moment of the
machine or a drift of its clock meets them alike; the figure that counts is the median of the rounds' ratios.
Besides time, the CPU seconds of both processes of a pair are compared: on a busy machine the steadier figure.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from commandline import BenchError
from pairs import Cryprq, Pair, Process, Shadowsocks, free_port

HERE = Path(__file__).resolve().parent
LOADGEN = HERE / "build" / "loadgen"
SOURCES = sorted((HERE / "loadgen").glob("*.c"))
WARM_STREAMS = 50
"""Idle streams open when memory is first read: what a process allocates once does not count per stream."""

Result = dict[str, Any]
"""One line of JSON of the load generator."""


def build() -> None:
    """Compiles the load generator if it is older than its sources. Raises BenchError."""
    newest = max(path.stat().st_mtime for path in [*SOURCES, *(HERE / "loadgen").glob("*.h")])
    if LOADGEN.exists() and LOADGEN.stat().st_mtime >= newest:
        return
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise BenchError("The load generator needs a C compiler; on Debian: apt-get install gcc libc6-dev")
    LOADGEN.parent.mkdir(exist_ok=True)
    done = subprocess.run(
        [compiler, "-O2", "-Wall", "-o", str(LOADGEN), *map(str, SOURCES)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"The load generator does not compile:\n{done.stderr}")


class Target(Process):
    """The server that streams go to. Each pair has its own: TIME_WAIT ports of one do not slow the next."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = free_port()
        command = [str(LOADGEN), "server", "--port", str(self.port), *options]
        super().__init__(f"target-{self.port}", command, directory)
        self.wait_for_port(self.port)


@dataclass
class Bench:
    """The settings of a run, and the targets that live as long as it does. Use it as a context manager."""

    rounds: int = 5
    seconds: float = 3.0
    idle_streams: int = 2000
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="cryprq-bench-")))
    say: Callable[[str], None] = print
    _targets: dict[str, tuple[Target, Target]] = field(default_factory=dict)

    def targets(self, pair: Pair) -> tuple[Target, Target]:
        """The pair's targets for small requests, and for bulk."""
        if pair.name not in self._targets:
            self._targets[pair.name] = (Target(self.directory, "--realtime", "1"), Target(self.directory))
        return self._targets[pair.name]

    def start(self, pair: Pair) -> Pair:
        pair.start(self.targets(pair)[0].port)
        return pair

    def command(self, pair: Pair, test: str, *options: str) -> list[str]:
        """The command line that runs one test of the generator against a started pair."""
        small, bulk = self.targets(pair)
        ports = ["--proxy", str(pair.socks_port), "--target", str((bulk if test == "bulk" else small).port)]
        if test == "latency":
            ports += ["--bulk-target", str(bulk.port)]
        pids = ["--pids", ",".join(map(str, pair.pids))] if pair.pids else []
        return [str(LOADGEN), test, *ports, *pids, *options]

    def run(self, pair: Pair, test: str, *options: str, timeout: float = 120) -> Result:
        """Runs it. Raises BenchError if the generator, or a process of the pair, fails."""
        command = self.command(pair, test, *options)
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{pair.name}: {test} did not end within {timeout:.0f} s.") from error
        for process in pair.processes:
            process.check()
        return self._parse(pair, test, done.stdout)

    @staticmethod
    def _parse(pair: Pair, test: str, output: str) -> Result:
        try:
            result: Result = json.loads(output.splitlines()[-1])
        except (IndexError, ValueError) as error:
            raise BenchError(f"{pair.name}: {test} gave no result: {output[-300:]!r}") from error
        if "error" in result:
            raise BenchError(f"{pair.name}: {test} failed: {result['error']}.")
        return result

    def hold_idle(self, pair: Pair, count: int) -> list[int]:
        """Private KiB of each process while `count` idle streams are open."""
        command = self.command(pair, "idle", "--count", str(count))
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as generator:
            assert generator.stdin is not None and generator.stdout is not None
            self._parse(pair, "idle", generator.stdout.readline())
            sizes = pair.private_kib()
            generator.stdin.close()
            self._parse(pair, "idle", generator.stdout.read())
        return sizes

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for pair in self._targets.values():
            for target in pair:
                target.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


Samples = dict[str, list[Result]]
"""Results by the pair's label, one a round."""


def in_turns(
    bench: Bench,
    pairs: dict[str, Pair],
    test: str,
    options: Sequence[str],
    summary: Callable[[Result], str],
    rounds: int | None = None,
) -> Samples:
    """One test, `rounds` times, pairs in turns; "direct" only in the first round, as it is only a ceiling."""
    samples: Samples = {label: [] for label in pairs}
    for round_ in range(rounds or bench.rounds):
        order: Iterable[str] = reversed(pairs) if round_ % 2 else pairs
        for label in order:
            if label == "direct" and round_:
                continue
            result = bench.run(pairs[label], test, *options)
            samples[label].append(result)
            bench.say(f"  round {round_ + 1} {label:18} {summary(result)}")
    return samples


def cpu_per_gb(result: Result) -> float:
    """CPU seconds of client and exit together for each 10^9 bytes."""
    return float(sum(result["cpu"]) / (result["bytes"] / 1e9))


def bulk(
    bench: Bench,
    pairs: dict[str, Pair],
    streams: int,
    direction: str,
    rounds: int | None = None,
    seconds: float | None = None,
) -> Samples:
    options = ["--streams", str(streams), "--dir", direction, "--seconds", str(seconds or bench.seconds)]

    def summary(result: Result) -> str:
        return (
            f"{result['gbit']:6.2f} Gbit/s  {cpu_per_gb(result):.2f} CPU s/GB  "
            f"CPU {result['cpu']} idle {result['idle_cpu']}"
        )

    return in_turns(bench, pairs, "bulk", options, summary, rounds)


def connect(bench: Bench, pairs: dict[str, Pair]) -> Samples:
    options = ["--concurrency", "64", "--seconds", str(bench.seconds)]

    def summary(result: Result) -> str:
        times = result["ms"]
        return (
            f"{result['rate']:6.0f} /s  p50 {times['p50']:.1f} ms  p99 {times['p99']:.1f} ms  "
            f"{result['errors']} errors {result['last_error']}  "
            f"CPU {result['cpu']} idle {result['idle_cpu']}"
        )

    return in_turns(bench, pairs, "connect", options, summary)


def p99_rise(result: Result, what: str) -> float:
    """Milliseconds that bulk downloads add to the 99th percentile of "echo" (kept-alive) or "fresh" ones."""
    return float(result["loaded"][what]["p99"] - result["quiet"][what]["p99"])


def latency(bench: Bench, pairs: dict[str, Pair]) -> Samples:
    def summary(result: Result) -> str:
        parts = [
            f"{what} {result[phase][what]['p50']:.2f}/{result[phase][what]['p99']:.2f}"
            for phase in ("quiet", "loaded")
            for what in ("echo", "fresh")
        ]
        speed = result["loaded"]["bulk_gbit"]
        return f"p50/p99 ms quiet, loaded: {'  '.join(parts)}  bulk {speed:.2f} Gbit/s"

    options = ["--bulk", "8", "--seconds", str(max(2.0, 1.5 * bench.seconds))]
    return in_turns(bench, pairs, "latency", options, summary)


def idle(bench: Bench, makers: dict[str, Callable[[], Pair]]) -> dict[str, list[float]]:
    """KiB per idle stream of client and of exit, in fresh processes."""
    sizes: dict[str, list[float]] = {}
    for label, make in makers.items():
        with make() as pair:
            bench.start(pair)
            before = bench.hold_idle(pair, WARM_STREAMS)
            after = bench.hold_idle(pair, bench.idle_streams)
            more = bench.idle_streams - WARM_STREAMS
            sizes[label] = [(late - early) / more for early, late in zip(before, after, strict=True)]
            each = " + ".join(f"{size:.1f}" for size in sizes[label])
            bench.say(f"  {label:18} {each} KiB per stream ({before} -> {after} KiB private)")
    return sizes


@dataclass
class Rotation:
    """Bulk with an epoch a second against bulk with one in 300 s."""

    samples: Samples
    epochs: int | None
    """Rotations that the client reports for the whole test; None if it reports none."""
    verified: int
    """Bytes compared one by one while it rotated every second, both directions together."""


def rotation(bench: Bench) -> Rotation:
    """Raises BenchError if a single byte is lost, doubled or changed while the link rotates."""
    with ExitStack() as stack:
        fast, slow = Cryprq(rotation=1.0), Cryprq(rotation=300.0)
        for pair in (fast, slow):
            stack.enter_context(pair)
        for pair in (fast, slow):
            bench.start(pair)
        first = fast.epoch()
        pairs: dict[str, Pair] = {"every second": fast, "every 300 s": slow}
        # Many short rounds: a difference of 3 % is looked for, on machines where single rounds differ by 20 %.
        samples = bulk(bench, pairs, 1, "down", 10 * bench.rounds, max(1.0, bench.seconds / 2))
        verified = 0
        gbit = min(result["gbit"] for result in samples["every second"])
        for direction in ("down", "up"):
            # About as long as a timed run, and so several rotations.
            size = int(max(gbit, 0.1) * 1e9 / 8 * max(bench.seconds, 2.0) / 4)
            result = bench.run(fast, "bulk", "--streams", "4", "--size", str(size), "--dir", direction)
            verified += result["bytes"]
            bench.say(f"  {result['bytes']} bytes {direction}, each compared, in {result['seconds']:.1f} s")
        last = fast.epoch()
    return Rotation(samples, None if first is None or last is None else last - first, verified)


class Watcher:
    """Somebody with the dashboard open, and a Prometheus that asks every second. Use it as a context manager."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._listen, self._scrape)]
        self.events = 0
        """Bytes of events that came."""
        self.scrapes = 0

    def _get(self, path: str) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self._port), 5.0)
        host = f"127.0.0.1:{self._port}"
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        sock.settimeout(1.0)
        return sock

    def _listen(self) -> None:
        with self._get("/api/events") as sock:
            while not self._over.is_set():
                with suppress(TimeoutError):
                    self.events += len(sock.recv(1 << 16))

    def _scrape(self) -> None:
        while not self._over.wait(1.0):
            with self._get("/metrics") as sock:
                while sock.recv(1 << 16):
                    pass
            self.scrapes += 1

    def __enter__(self) -> Watcher:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def watched(bench: Bench) -> Samples:
    """Bulk with the dashboard open and metrics asked for every second, against bulk with neither."""
    with ExitStack() as stack:
        seen, unseen = Cryprq(dashboard=True), Cryprq()
        for pair in (seen, unseen):
            stack.enter_context(pair)
        for pair in (seen, unseen):
            bench.start(pair)
        watcher = stack.enter_context(Watcher(seen.admin_port))
        pairs: dict[str, Pair] = {"watched": seen, "not watched": unseen}
        samples = bulk(bench, pairs, 1, "down", 10 * bench.rounds, max(1.0, bench.seconds / 2))
        if not watcher.events or not watcher.scrapes:
            raise BenchError("The dashboard told nothing, so there is nothing to compare.")
        bench.say(f"  {watcher.events} bytes of events, {watcher.scrapes} scrapes")
    return samples


def makers(labels: Iterable[str], carrier: str | None = None) -> dict[str, Callable[[], Pair]]:
    """How to make the pairs of these labels; `carrier` is a setting of ours."""
    ours = partial(Cryprq, carrier=carrier)
    known: dict[str, Callable[[], Pair]] = {Cryprq.name: ours, Shadowsocks.name: Shadowsocks}
    return {label: known[label] for label in labels}
