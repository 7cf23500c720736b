"""Memory, descriptors, threads and tasks of an exit and its clients, cycle after cycle of faults.

    .venv/bin/python bench/soak.py                        ten minutes
    .venv/bin/python bench/soak.py --minutes 15
    .venv/bin/python bench/soak.py --only floods cuts     these faults alone
    .venv/bin/python bench/soak.py --traced exit          what of the exit grows: types, and places in the code

An exit with both entrances and three clients, as real processes on loopback: one over TCP through a forwarder that
cuts it, one over TCP, one over a WebSocket. Each cycle has all faults of soak_faults.py, one after another. Then it
waits until nothing is left of them, and looks at the processes. After the warm-up the second half of the samples is
held against the first: memory may be higher by SLACK, and of descriptors, threads, tasks and timers there are no more.
It ends with 1 if something grew.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import dns.message
from commandline import BenchError
from pairs import free_port
from soak_faults import FAULTS, Stage
from soak_processes import ROOT, Sample, SoakedProcess, until

sys.path.insert(0, str(ROOT))

from cryprq_proxy.config.keys import save_identity
from cryprq_proxy.crypto.identity import Identity
from cryprq_proxy.crypto.primitives import select_provider
from tests.support.background import Background
from tests.support.config_files import toml
from tests.support.cutter import Cutter
from tests.support.dns_servers import Datagrams, Server, zone
from tests.support.targets import HttpTarget, TcpTarget, UdpEcho, echo

PROVIDER: Final = select_provider()
CROWD: Final = 20
FILES: Final = 1024
"""The descriptors that the exit may open."""
SETTLE_LIMIT: Final = 90.0
"""Seconds until nothing may be left of a cycle's faults."""
SLACK: Final = {"KiB": 0.2, "blocks": 0.03, "KiB in use": 0.03}
"""As a share. What allocators keep rises in steps, each time that more is in use at once than ever before."""
LEAST_CYCLES: Final = 6
WARM_UP: Final = 3
"""One of so many samples is left out, from the first on."""
COLUMNS: Final = ("KiB", "blocks", "KiB in use", "descriptors", "threads", "tasks", "timers")
MORE_TIMERS: Final = 2
"""Those of keepalives and rotations come and go."""


# --- the stage ---


def answer(question: dns.message.Message) -> list[bytes]:
    """What the DNS server says: nothing at all about a name like mute-7.test."""
    name = question.question[0].name.to_text()
    if name.startswith("mute"):
        return []
    known = {("echo.test", "A"): ["127.0.0.1"]}
    return zone(known, rcode=0 if name.startswith("echo") else 3)(question)


async def serve_names(port: int) -> asyncio.DatagramTransport:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: Datagrams(Server(answer)), local_addr=("127.0.0.1", port)
    )
    return transport


@contextlib.contextmanager
def staged(traced: str) -> Iterator[tuple[Stage, list[SoakedProcess]]]:
    """All that runs during the soak, and the processes that are looked at."""
    with contextlib.ExitStack() as stack:
        stage = Stage()
        stage.directory = Path(tempfile.mkdtemp(prefix="cryprq-soak-"))
        stack.callback(shutil.rmtree, stage.directory, ignore_errors=True)
        here = str(stage.directory)
        places = {
            "HOME": here,
            "XDG_CONFIG_HOME": here,
            "XDG_RUNTIME_DIR": here,
            "XDG_STATE_HOME": f"{here}/state",
        }
        stage.environment = {**os.environ, **places, "PYTHONPATH": str(ROOT)}
        background = stage.background = Background()
        stack.callback(background.close)
        stage.echo = stack.enter_context(contextlib.closing(TcpTarget(background, echo)))
        stage.http = stack.enter_context(contextlib.closing(HttpTarget(background)))
        stage.udp = stack.enter_context(contextlib.closing(UdpEcho(background)))
        stage.unread = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        dns_port = free_port()
        stack.callback(background.call, background.run(serve_names(dns_port)).close)
        (stage.directory / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:2 attempts:2\n")
        (stage.directory / "hosts").write_text("127.0.0.1 localhost\n")
        (stage.directory / "nsswitch.conf").write_text("hosts: files dns\n")
        yield stage, stack.enter_context(roles(stage, dns_port, traced))


@contextlib.contextmanager
def roles(stage: Stage, dns_port: int, traced: str) -> Iterator[list[SoakedProcess]]:
    """An exit, and a client for each kind of link."""
    port, stage.websocket_port, stage.admin_port = free_port(), free_port(), free_port()
    stage.cutter = Cutter(stage.background, port)
    kinds = ("cut", "tcp", "websocket")
    listed = {name: _identity(stage, name) for name in (*kinds, "flooder")}
    crowd = {f"crowd{number}": _identity(stage, f"crowd{number}") for number in range(CROWD)}
    stage.exit_id = _identity(stage, "exit")
    stage.crowd_keys = tuple(str(stage.directory / f"{name}.key") for name in crowd)
    stage.flooder_key = stage.directory / "flooder.key"
    stage.listed, stage.config = stage.directory / "authorized", stage.directory / "exit.toml"
    stage.list_text = "".join(f"{peer} {name}\n" for name, peer in (listed | crowd).items())
    stage.listed.touch(mode=0o600)
    stage.listed.write_text(stage.list_text)
    _configure(
        stage,
        "exit",
        {
            "listen": f"127.0.0.1:{port}",
            "public": f"127.0.0.1:{port}",
            "authorized": str(stage.listed),
            "allow_private": True,
            "shutdown_grace": 0,
            "limits": {"handshakes_per_minute": 100_000, "resume_seconds": 10},
            "websocket": {"listen": f"127.0.0.1:{stage.websocket_port}"},
        },
    )
    endpoints = {
        "cut": f"cryprq://{stage.exit_id}@127.0.0.1:{stage.cutter.port}",
        "tcp": f"cryprq://{stage.exit_id}@127.0.0.1:{port}",
        "websocket": f"cryprq+ws://{stage.exit_id}@127.0.0.1:{stage.websocket_port}/cryprq",
    }
    started: list[SoakedProcess] = []
    try:
        started.append(
            SoakedProcess("exit", port, stage.directory, stage.environment, dns_port, traced == "exit")
        )
        resource.prlimit(started[0].pid, resource.RLIMIT_NOFILE, (FILES, FILES))
        until(lambda: bool(started[0].status()), "the exit answers")
        for name in kinds:
            proxy = free_port()
            admin = f"127.0.0.1:{stage.admin_port}" if name == kinds[0] else "off"
            _configure(stage, name, {"listen": f"127.0.0.1:{proxy}", "peer": endpoints[name], "admin": admin})
            started.append(
                SoakedProcess(name, proxy, stage.directory, stage.environment, dns_port, traced == name)
            )
        stage.exit, stage.clients = started[0], list(started[1:])
        yield started
    finally:
        for process in reversed(started):
            process.stop()
        stage.cutter.close()
        for process in started:
            for line in process.wrong:
                print(f"{process.name}: {line}", flush=True)


def _identity(stage: Stage, name: str) -> str:
    identity = Identity.generate(PROVIDER)
    save_identity(identity, stage.directory / f"{name}.key")
    return str(identity.peer_id)


def _configure(stage: Stage, name: str, settings: Mapping[str, Any]) -> None:
    common = {
        "identity": str(stage.directory / f"{name}.key"),
        "control_socket": str(stage.directory / f"{name}.sock"),
        "rotation": {"interval": 2.0},
    }
    file = stage.directory / f"{name}.toml"
    file.write_text(toml({**common, **settings}))
    file.chmod(0o600)


def left(processes: list[SoakedProcess]) -> str:
    """What is left of the faults, in words; empty if nothing is."""
    exit, *clients = processes
    told, found = exit.status(), []
    if not told:
        return "the exit does not answer"
    busy = {
        "targets": told["targets"],
        "strangers": told["strangers"],
        "handshakes": told["handshakes"],
        "names": told["names"]["running"] + told["names"]["waiting"],
        "streams": sum(session["streams"] for session in told["sessions"]),
        "other sessions": len(told["sessions"]) - len(clients),
    }
    found += [f"{number} {what} at the exit" for what, number in busy.items() if number]
    for client in clients:
        told = client.status()
        if told.get("link") != "up":
            found.append(f"no link of {client.name}")
        elif number := told["connections"]["open"] + told["waiting"]:
            found.append(f"{number} connections at {client.name}")
    return ", ".join(found)


# --- the soak ---


class Soak:
    """Cycle after cycle; `samples` of each process, after each of them."""

    def __init__(self, stage: Stage, processes: list[SoakedProcess], faults: list[str], traced: str) -> None:
        self._stage = stage
        self._processes = processes
        self._faults = [fault for fault in FAULTS if not faults or fault.__name__ in faults]
        self._traced = traced
        self.samples: dict[str, list[Sample]] = {process.name: [] for process in processes}
        self._began = time.monotonic()

    def run(self, seconds: float) -> None:
        self._settle()
        self._look("start")
        number = 0
        while time.monotonic() - self._began < seconds or number < LEAST_CYCLES:
            number += 1
            for fault in self._faults:
                fault(self._stage)
            self._settle()
            self._look(f"cycle {number}")

    def _settle(self) -> None:
        until(lambda: not left(self._processes), "nothing is left of the faults", SETTLE_LIMIT)

    def _look(self, when: str) -> None:
        print(f"{when}, {time.monotonic() - self._began:.0f} s", flush=True)
        for process in self._processes:
            sample, census = process.sample()
            self.samples[process.name].append(sample)
            told = ", ".join(f"{value} {what}" for what, value in zip(COLUMNS, sample, strict=True))
            print(f"  {process.name:9} {told}", flush=True)
            if process.name == self._traced:
                print(f"  more of: {census.types}")
                print("\n".join(census.places), flush=True)

    def grown(self) -> list[str]:
        """A sentence for each value that is higher in the second half of the samples than in the first."""
        sentences = []
        print(f"\n{'process':10}" + "".join(f"{what:>22}" for what in COLUMNS))
        for name, samples in self.samples.items():
            steady = samples[max(1, len(samples) // WARM_UP) :]
            half = len(steady) // 2
            values = []
            for index, what in enumerate(COLUMNS):
                first = statistics.median(sample[index] for sample in steady[:half])
                second = statistics.median(sample[index] for sample in steady[half:])
                slack = MORE_TIMERS if what == "timers" else SLACK.get(what, 0.0) * first
                values.append(f"{samples[0][index]} {first:g} {second:g}")
                if second > first + slack:
                    sentences.append(f"{name}: {what} rose from {first:g} to {second:g}")
            print(f"{name:10}" + "".join(f"{value:>22}" for value in values), flush=True)
        return sentences


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", nargs="*", default=[], choices=[fault.__name__ for fault in FAULTS])
    parser.add_argument("--traced", default="", help="a process: exit, cut, tcp or websocket")
    return parser.parse_args()


def main() -> int:
    chosen = options()
    # aiohttp of the HTTP target tells of each connection that breaks.
    logging.disable()
    try:
        with staged(chosen.traced) as (stage, processes):
            soak = Soak(stage, processes, chosen.only, chosen.traced)
            soak.run(60.0 * chosen.minutes)
            sentences = soak.grown()
            sentences += [
                f"{process.name}: {line}" for process in processes for line in dict.fromkeys(process.wrong)
            ]
    except BenchError as error:
        print(f"soak: {error}")
        return 1
    print("\n".join(sentences) or "Nothing grew.")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
