"""Side-by-side benchmark of the carriers: one link by TCP, by WebSocket and by WebSocket under TLS, all on 127.0.0.1.

    .venv/bin/python bench/carriers.py            the whole table, about two minutes
    .venv/bin/python bench/carriers.py --quick    a first look
    .venv/bin/python bench/carriers.py --hold 300 starts the pairs, prints commands to load them by hand

Client and exit are processes of their own, as always, but started from here, so that only the carrier differs: for the
last one the exit ends TLS itself. The carriers take turns within each round, and the order turns round with every
round; the figure that counts is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import measure
from commandline import ROOT, count, positive, run_to_end, told_at_end
from measure import Bench
from pairs import Pair, Process, free_port
from run import NONE, gbit, machine, median, percentiles, ratios, spread

sys.path.insert(0, str(ROOT))

CARRIERS = ("tcp", "ws", "wss")
GOAL = 0.5
PATH = "/bench"


class Carried(Pair):
    """A pair whose link is carried by `name`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def launch(self) -> list[Process]:
        from cryprq_proxy.config.keys import save_identity
        from cryprq_proxy.crypto.identity import Identity
        from cryprq_proxy.crypto.primitives import select_provider
        from tests.support.web_links import make_certificates

        self.socks_port = free_port()
        setting = {"carrier": self.name, "socks": self.socks_port, "tcp": free_port(), "web": free_port()}
        for role in ("exit", "client"):
            identity = Identity.generate(select_provider())
            save_identity(identity, self.directory / f"{role}-identity")
            setting[role] = str(identity.peer_id)
        if self.name == "wss":
            make_certificates(self.directory)
        (self.directory / "setting.json").write_text(json.dumps(setting))
        here = str(self.directory)
        environment = {**os.environ, "HOME": here, "XDG_CONFIG_HOME": here, "XDG_STATE_HOME": here}

        def start(role: str) -> Process:
            command = [sys.executable, str(Path(__file__).resolve()), "--role", role]
            return Process(role, command, self.directory, environment)

        exit = start("exit")
        return [start("client"), exit]


# --- the processes of a pair; they find their setting in the working directory ---


async def serve(role: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    setting = json.loads(Path("setting.json").read_text())
    await (_serve_exit if role == "exit" else _serve_client)(setting, stop)


async def _serve_exit(setting: dict[str, Any], stop: asyncio.Event) -> None:
    from cryprq_proxy.address import Destination
    from cryprq_proxy.config.exit import ExitConfig
    from cryprq_proxy.config.keys import load_identity
    from cryprq_proxy.crypto.identity import PeerId
    from cryprq_proxy.crypto.primitives import select_provider
    from cryprq_proxy.exit.egress_policy import EgressPolicy
    from cryprq_proxy.exit.exit import Exit
    from cryprq_proxy.exit.settings import ExitSettings, WebSocketSettings
    from cryprq_proxy.outbound.resolving.resolver import SystemResolver

    provider = select_provider()
    tls = (Path("certificate.pem"), Path("key.pem")) if setting["carrier"] == "wss" else (None, None)
    config = ExitConfig()
    web = WebSocketSettings(Destination("127.0.0.1", setting["web"]), PATH, *tls)
    exit = Exit(
        load_identity(provider, Path("exit-identity")),
        ExitSettings(
            (Destination("127.0.0.1", setting["tcp"]),), config.session_limits(), config.bounds(), web
        ),
        {PeerId.parse(setting["client"]): ""},
        EgressPolicy(allow_private=True),
        SystemResolver(),
        provider,
    )
    await exit.start()
    await stop.wait()
    await exit.stop(0.0)


async def _serve_client(setting: dict[str, Any], stop: asyncio.Event) -> None:
    from cryprq_proxy.address import Destination
    from cryprq_proxy.carriers.dial.endpoint import Endpoint
    from cryprq_proxy.client.dispatcher import Dispatcher
    from cryprq_proxy.client.exit_entry import PlannedExit, entry_maker
    from cryprq_proxy.client.exits import keep_up, plan_exits
    from cryprq_proxy.client.settings import ClientSettings
    from cryprq_proxy.config.client import ClientConfig
    from cryprq_proxy.config.keys import load_identity
    from cryprq_proxy.crypto.identity import PeerId
    from cryprq_proxy.crypto.primitives import select_provider
    from cryprq_proxy.fronts.listener import MixedListener
    from cryprq_proxy.rules.engine import EVERYTHING
    from cryprq_proxy.service.client_parts import listener_settings
    from cryprq_proxy.session.retention import SlotPool
    from cryprq_proxy.session.wire import LaneUse

    provider, carrier = select_provider(), setting["carrier"]
    port, path = (setting["tcp"], "") if carrier == "tcp" else (setting["web"], PATH)
    config = ClientConfig()
    settings = ClientSettings(
        PeerId.parse(setting["exit"]),
        (Endpoint(carrier, Destination("127.0.0.1", port), path),),
        config.session_limits(),
        config.wait_for_link,
        config.connect,
        LaneUse.AUTO,
        ca=Path("ca.pem") if carrier == "wss" else None,
    )
    identity = load_identity(provider, Path("client-identity"))
    slots = SlotPool()
    make = entry_maker(identity, provider, slots)
    exits = plan_exits([PlannedExit("exit", 1, settings)], make, slots, failback=config.failback)
    listen = replace(listener_settings(config), listen=Destination("127.0.0.1", setting["socks"]))
    listener = MixedListener(Dispatcher(exits, EVERYTHING), listen)
    listener.start()
    keep_up(exits)
    await stop.wait()
    await listener.stop()
    await exits.stop()


# --- the table ---


def add_bulk(rows: list[list[str]], bench: Bench, pairs: dict[str, Pair]) -> None:
    for streams in (1, 16):
        for direction in ("down", "up"):
            name = f"bulk, {streams} stream{'s' if streams > 1 else ''} {direction}"
            bench.say(name)
            samples = measure.bulk(bench, pairs, streams, direction)
            base = samples["tcp"]
            for carrier, results in samples.items():
                cost = median(results, measure.cpu_per_gb)
                row = [name, carrier, f"{median(results, gbit):.2f} Gbit/s, {cost:.2f} CPU s/GB"]
                if carrier == "tcp":
                    rows.append([*row, NONE, NONE])
                    continue
                values = ratios(results, base, gbit)
                met = bool(values) and statistics.median(values) >= GOAL
                verdict = f"≥ {GOAL}" + (" (met)" if met else " (**missed**)") if carrier == "ws" else NONE
                rows.append([*row, spread(values), verdict])


def add_latency(rows: list[list[str]], bench: Bench, pairs: dict[str, Pair]) -> None:
    bench.say("small requests, without and with 8 bulk downloads")
    for carrier, results in measure.latency(bench, pairs).items():
        for phase, load in (("quiet", "alone"), ("loaded", "beside 8 downloads")):
            times = percentiles([result[phase]["echo"] for result in results])
            rows.append([f"small request, {load}", carrier, times, NONE, NONE])


def run(options: argparse.Namespace) -> None:
    measure.build()
    rows: list[list[str]] = []
    rounds, seconds = (2, 1.0) if options.quick else (options.rounds, options.seconds)

    def tell() -> None:
        head = ["test", "carrier", "figure", "ratio to tcp: median (min..max)", "goal"]
        text = "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
        print(f"{machine()}; {rounds} rounds of {seconds:g} s, carriers in turns.\n\n{text}")

    with ExitStack() as stack:
        if not options.hold:
            stack.enter_context(told_at_end(rows, tell))
        bench = stack.enter_context(Bench(rounds=rounds, seconds=seconds))
        pairs: dict[str, Pair] = {name: stack.enter_context(Carried(name)) for name in CARRIERS}
        for pair in pairs.values():
            bench.start(pair)
        if options.hold:
            for name, pair in pairs.items():
                print(name, "pids", pair.pids, " ".join(bench.command(pair, "bulk", "--dir", "down")))
            with suppress(KeyboardInterrupt):
                time.sleep(options.hold)
            return
        add_bulk(rows, bench, pairs)
        add_latency(rows, bench, pairs)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 s: a look, not a figure")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--seconds", type=positive, default=3.0, help="of each round")
    parser.add_argument(
        "--hold", type=positive, metavar="SECONDS", help="only start the pairs, for that long"
    )
    parser.add_argument("--role", choices=("exit", "client"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.role:
        return run_to_end(lambda: asyncio.run(serve(options.role)))
    return run_to_end(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
