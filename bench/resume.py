"""What an open stream feels when a path is lost, as root: the longest wait for an answer, on a line of 50 ms.

    .venv/bin/python bench/resume.py                        all tests, about twelve minutes
    .venv/bin/python bench/resume.py --only reset           some of them
    .venv/bin/python bench/resume.py --tree /tmp/before     beside another checkout, in turns

reset     the only path, over TCP, is reset at the exit: the client dials again and joins the session
second    two paths, over TCP and in a WebSocket; the one in use is reset
silent    the same, and the one in use becomes silent for two seconds: nothing passes, and nobody says so
up, down  the same, and only what the client sends is lost, or only what the exit sends

What the stream does (resume_ends.py), with --load:

talk      a message goes to the server and back every 20 ms
idle      the same, once a second
take      a download, on a line of 20 Mbit/s
send      an upload on such a line

`again` is the time from the loss until the first answer, or data, behind the longest gap; `late` by how much the
slowest answer exceeds a usual one, or that gap. Hosts are namespaces (hosts.py), the line is delayline.py; clocks of
all hosts are the machine's.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

from commandline import checkout, count, not_negative, run_to_end, some_of, told_at_end
from hosts import EXIT, Wire, new_lab
from resume_ends import PORT as SERVER_PORT
from run import machine
from wan_proxies import CryprqProxy

from tests.support.lab.links import PORT
from tests.support.lab.net import until

WEBSOCKET_PORT = 8443
ENDS = Path(__file__).with_name("resume_ends.py")
LOADS = {
    "talk": ["talk", "--every", "0.02"],
    "idle": ["talk", "--every", "1"],
    "take": ["take"],
    "send": ["send"],
}
RATE = 20e6
"""Bit/s of the line for a transfer."""
SILENT = 2.0
SETTLE = 2.0
"""Seconds after which all paths are there again, and what they have missed was sent."""
STEADY = 10.5
"""Seconds after which a second path that is lost is dialled again at once, and not after a longer pause each time."""
AROUND = 0.5
BARS = {"reset": 0.5, "second": 0.06, "silent": None, "up": None, "down": None}
"""Seconds: of `again` for the only path, else of `late`: one round trip, and 10 ms for the line and the programs."""


class Loss(NamedTuple):
    again: float
    late: float


class Subject(CryprqProxy):
    """Ours with one path or two, and the other end of the stream on its server."""

    paths = 1
    stream = "talk"

    def prepare(self) -> None:
        super().prepare()
        if self.paths > 1:
            identity = self._links.identity("exit")[1]
            file = self._exit_file
            file.write_text(f'{file.read_text()}\n[websocket]\nlisten = "0.0.0.0:{WEBSOCKET_PORT}"\n')
            peers = [
                f"cryprq://{identity}@{EXIT}:{PORT}",
                f"cryprq+ws://{identity}@{EXIT}:{WEBSOCKET_PORT}/cryprq",
            ]
            lines = [
                line for line in self._client_file.read_text().splitlines() if not line.startswith("peer")
            ]
            quoted = ", ".join(f'"{peer}"' for peer in peers)
            self._client_file.write_text("\n".join([f"peer = [{quoted}]", *lines]) + "\n")

    def probe(self) -> tuple[subprocess.Popen[str], Path]:
        """Start the stream. What arrives stands in a file, a line each: sent, or arrived before, and arrived."""
        arrivals = [self.files / name for name in ("at the server", "at the client")]
        with arrivals[0].open("w") as at_server, arrivals[1].open("w") as at_client:
            self.server.popen([sys.executable, str(ENDS), "serve"], stdout=at_server)
            until(lambda: f":{SERVER_PORT} " in self.server.run(["ss", "-Hltn"]), "the server listens")
            probe = self.client.popen([sys.executable, str(ENDS), *LOADS[self.stream]], stdout=at_client)
        return probe, arrivals[self.stream != "send"]

    def connections(self) -> int:
        return len(self.exit.run(["ss", "-Htn", "state", "established", f"src {EXIT}"]).splitlines())

    def reset(self) -> None:
        """The path over TCP, at the exit."""
        self.exit.run(["ss", "-K", "-Htn", "state", "established", f"src {EXIT}:{PORT}"])

    def silence(self, what: str) -> None:
        """Nothing passes on it for a while, or not in one direction."""
        chains = [
            f"chain {name} {{ type filter hook {hook} priority 0; tcp {port} {PORT} drop; }}"
            for name, hook, port in (("up", "input", "dport"), ("down", "output", "sport"))
            if what in ("silent", name)
        ]
        self.exit.nft("\n".join(["table inet silent {", *chains, "}"]))
        time.sleep(SILENT)
        self.exit.nft("delete table inet silent")


def measure(subject: Subject, lose: Callable[[], None], settle: float, tries: int) -> list[Loss]:
    """Lose a path so often, after `settle` seconds in which all were there. Raises LabError."""
    probe, answers = subject.probe()
    until(lambda: answers.read_text().count("\n") > 5, "the stream goes on")
    losses = []
    for _ in range(tries):
        until(lambda: subject.connections() >= subject.paths, "all paths are there")
        time.sleep(settle)
        began = time.monotonic()
        losses.append(began)
        lose()
        time.sleep(SETTLE)
    probe.terminate()
    probe.wait()
    pairs = [
        (float(sent), float(arrived))
        for sent, arrived in map(str.split, answers.read_text().splitlines()[:-1])
    ]
    usual = statistics.median(arrived - sent for sent, arrived in pairs)
    return [of_loss(began, usual, pairs) for began in losses]


def of_loss(began: float, usual: float, pairs: list[tuple[float, float]]) -> Loss:
    near = [pair for pair in pairs if began - AROUND < pair[1] < began + SILENT + SETTLE]
    gaps = [(after[1] - before[1], after[1]) for before, after in pairwise(near)]
    return Loss(max(gaps)[1] - began, max(arrived - sent for sent, arrived in near) - usual)


# --- the table ---


def row(name: str, load: str, label: str, losses: list[Loss]) -> str:
    bar = BARS[name]
    value = max(loss.again if name == "reset" else loss.late for loss in losses)
    verdict = "" if bar is None else f"{bar:g} s ({'met' if value <= bar else '**missed**'})"
    columns = list(zip(*losses, strict=True))
    cells = [f"{1000 * statistics.median(values):.0f}, {1000 * max(values):.0f}" for values in columns]
    return "| " + " | ".join([name, load, label, str(len(losses)), *cells, verdict]) + " |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=some_of(BARS), default=",".join(BARS), help="some of %(default)s")
    parser.add_argument("--load", type=some_of(LOADS), default="talk", help="some of %(default)s")
    parser.add_argument("--tries", type=count, default=20, help="(%(default)s)")
    parser.add_argument(
        "--delay", type=not_negative, default=0.025, help="seconds in each direction (%(default)s)"
    )
    parser.add_argument("--tree", type=checkout, help="another checkout of this program, measured as well")
    options = parser.parse_args()
    for name in ("only", "load"):
        if isinstance(chosen := getattr(options, name), str):
            setattr(options, name, chosen.split(","))
    return options


def run(options: argparse.Namespace) -> None:
    rows: list[str] = []
    head = "| test | load | tree | tries | again: median, worst, ms | late: median, worst, ms | bar |"

    def tell() -> None:
        print("\n".join([head, "|" + " --- |" * 7, *rows]))

    print(f"{machine()}; {2000 * options.delay:g} ms there and back.\n")
    trees = {"this": None} if options.tree is None else {"this": None, "the other": options.tree}
    with told_at_end(rows, tell):
        for name, load, label in product(options.only, options.load, trees):
            wire = Wire(delay=options.delay, rate=RATE if load in ("take", "send") else 0)
            with ExitStack() as stack:
                subject = Subject(stack.enter_context(new_lab()), wire)
                subject.tree, subject.paths, subject.stream = trees[label], 1 if name == "reset" else 2, load
                stack.enter_context(subject).start()
                lose = subject.reset if name in ("reset", "second") else partial(subject.silence, name)
                settle = STEADY if name == "second" else SETTLE
                rows.append(row(name, load, label, measure(subject, lose, settle, options.tries)))


def main() -> int:
    return run_to_end(lambda: run(arguments()))


if __name__ == "__main__":
    sys.exit(main())
