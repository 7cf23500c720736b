"""What an open stream feels when a path is lost, as root: the longest wait for an answer, on a line of 50 ms.

    .venv/bin/python bench/resume.py                        all tests, about four minutes
    .venv/bin/python bench/resume.py --only reset           some of them
    .venv/bin/python bench/resume.py --tree /tmp/before     beside another checkout, in turns

reset     the only path, over TCP, is reset at the exit: the client dials again and joins the session
second    two paths, over TCP and in a WebSocket; the one in use is reset
silent    the same, and the one in use becomes silent for two seconds: nothing passes, and nobody says so

A message goes by one stream to the server and back every ten milliseconds. `again` is the time from the loss until the
first answer behind the longest gap, `late` by how much the slowest answer exceeds a usual one. Hosts are namespaces
(hosts.py), the line is delayline.py; clocks of all hosts are the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from commandline import checkout, count, not_negative, run_to_end, some_of, told_at_end
from hosts import EXIT, SERVER, Wire, new_lab
from run import machine
from wan_load import Connection
from wan_proxies import SOCKS, CryprqProxy

from tests.support.lab.links import PORT
from tests.support.lab.net import until

WEBSOCKET_PORT = 8443
ECHO_PORT = 7007
MESSAGE = 32
EVERY = 0.010
"""Seconds between two messages."""
SILENT = 2.0
SETTLE = 2.0
"""Seconds after which all paths are there again, and what they have missed was sent."""
AROUND = 0.5
BARS = {"reset": 0.5, "second": 0.06, "silent": None}
"""Seconds: of `again` for the only path, else of `late`: one round trip, and 10 ms for the line and the programs."""


class Loss(NamedTuple):
    again: float
    late: float


class Subject(CryprqProxy):
    """Ours with one path or two, and an echo on its server."""

    paths = 1

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
        """Start the stream. Its answers stand in a file, a line each: sent, arrived."""
        self.server.popen([sys.executable, __file__, "--echo"])
        until(lambda: f":{ECHO_PORT} " in self.server.run(["ss", "-Hltn"]), "the echo listens")
        answers = self.files / "answers"
        with answers.open("w") as file:
            return self.client.popen([sys.executable, __file__, "--probe"], stdout=file), answers

    def connections(self) -> int:
        return len(self.exit.run(["ss", "-Htn", "state", "established", f"src {EXIT}"]).splitlines())

    def reset(self) -> None:
        """The path over TCP, at the exit."""
        self.exit.run(["ss", "-K", "-Htn", "state", "established", f"src {EXIT}:{PORT}"])

    def silence(self) -> None:
        """Nothing passes on it for a while."""
        chains = [
            f"chain {name} {{ type filter hook {hook} priority 0; tcp {port} {PORT} drop; }}"
            for name, hook, port in (("into", "input", "dport"), ("out", "output", "sport"))
        ]
        self.exit.nft("\n".join(["table inet silent {", *chains, "}"]))
        time.sleep(SILENT)
        self.exit.nft("delete table inet silent")


def measure(subject: Subject, lose: Callable[[], None], tries: int) -> list[Loss]:
    """Lose a path so often. Raises LabError."""
    probe, answers = subject.probe()
    until(lambda: answers.read_text().count("\n") > 100, "the stream is answered")
    losses = []
    for _ in range(tries):
        until(lambda: subject.connections() >= subject.paths, "all paths are there")
        time.sleep(SETTLE)
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


# --- the ends of the stream, processes of their own ---


def echo() -> None:
    with socket.create_server(("0.0.0.0", ECHO_PORT)) as listener:
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with sock:
                while data := sock.recv(65536):
                    sock.sendall(data)


async def by_proxy() -> socket.socket:
    connection = Connection(argparse.Namespace(server=(SERVER, ECHO_PORT), proxy=SOCKS))
    await connection.connect()
    return connection.socket


def probe() -> None:
    with asyncio.run(by_proxy()) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        following, rest = time.monotonic(), b""
        while True:
            sock.settimeout(max(following - time.monotonic(), 0.0001))
            try:
                data = sock.recv(65536)
            except (TimeoutError, BlockingIOError):
                data = b""
            else:
                if not data:
                    raise SystemExit("the stream ended")
            now, rest = time.monotonic(), rest + data
            while len(rest) >= MESSAGE:
                print(rest[:MESSAGE].decode().strip(), now, flush=True)
                rest = rest[MESSAGE:]
            if now >= following:
                sock.settimeout(None)
                sock.sendall(f"{now:.6f}".ljust(MESSAGE).encode())
                following = max(following + EVERY, now)


# --- the table ---


def row(name: str, label: str, losses: list[Loss]) -> str:
    bar = BARS[name]
    value = max(loss.again if name == "reset" else loss.late for loss in losses)
    verdict = "" if bar is None else f"{bar:g} s ({'met' if value <= bar else '**missed**'})"
    columns = list(zip(*losses, strict=True))
    cells = [f"{1000 * statistics.median(values):.0f}, {1000 * max(values):.0f}" for values in columns]
    return "| " + " | ".join([name, label, str(len(losses)), *cells, verdict]) + " |"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=some_of(BARS), default=",".join(BARS), help="some of %(default)s")
    parser.add_argument("--tries", type=count, default=20, help="(%(default)s)")
    parser.add_argument(
        "--delay", type=not_negative, default=0.025, help="seconds in each direction (%(default)s)"
    )
    parser.add_argument("--tree", type=checkout, help="another checkout of this program, measured as well")
    for hidden in ("--echo", "--probe"):
        parser.add_argument(hidden, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if isinstance(options.only, str):
        options.only = options.only.split(",")
    return options


def run(options: argparse.Namespace) -> None:
    rows: list[str] = []
    head = "| test | tree | tries | again: median, worst, ms | late: median, worst, ms | bar |"

    def tell() -> None:
        print("\n".join([head, "|" + " --- |" * 6, *rows]))

    print(f"{machine()}; {2000 * options.delay:g} ms there and back.\n")
    trees = {"this": None} if options.tree is None else {"this": None, "the other": options.tree}
    with told_at_end(rows, tell):
        for name in options.only:
            for label, tree in trees.items():
                with ExitStack() as stack:
                    subject = Subject(stack.enter_context(new_lab()), Wire(delay=options.delay))
                    subject.tree, subject.paths = tree, 1 if name == "reset" else 2
                    stack.enter_context(subject).start()
                    lose = subject.silence if name == "silent" else subject.reset
                    rows.append(row(name, label, measure(subject, lose, options.tries)))


def main() -> int:
    options = arguments()
    if options.echo or options.probe:
        echo() if options.echo else probe()
        return 0
    return run_to_end(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
