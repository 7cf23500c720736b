"""What loads a tunnel for bench/tunnel.py, and what came out: iperf3 and ping, from the client to the server.

Each function is one measurement of one contender. All raise BenchError where a program gives no result.
"""

from __future__ import annotations

import json
import math
import re
import signal
import statistics
import subprocess
from collections.abc import Callable
from typing import Any

from commandline import BenchError
from hosts import IPERF_PORT, SERVER, SERVER6
from tunnels import Tunnel

LOSS_FREE = 0.001
"""The part of the datagrams that may be lost in flight: two busy cores lose some to the scheduler at any rate."""
FIRST_RATE = 50e6
TOP_RATE = 8e9
BISECTIONS = 4
PINGS_PER_SECOND = 50
DIRECTIONS = {"down": ["-R"], "up": [], "both at once": ["--bidir"]}

type Result = dict[str, Any]


def iperf(contender: Tunnel, seconds: float, *options: str, server: str = SERVER) -> Result:
    """The sums of one run of iperf3, and "cpu": seconds of the tunnel's processes."""
    command = ["iperf3", "-c", server, "-p", str(IPERF_PORT), "-J", "-t", f"{seconds:g}", *options]
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


def tcp(
    contender: Tunnel, seconds: float, flows: int, direction: str, *options: str, server: str = SERVER
) -> Result:
    """Gbit/s received, retransmitted segments, and CPU seconds of the tunnel for each 10^9 bytes. "both at once" is the
    sum of two directions with `flows` each."""
    chosen = ("-P", str(flows), *DIRECTIONS[direction], *options)
    end = iperf(contender, seconds, *chosen, server=server)
    received = [end[key] for key in ("sum_received", "sum_received_bidir_reverse") if key in end]
    sent = [end[key] for key in ("sum_sent", "sum_sent_bidir_reverse") if key in end]
    return {
        "gbit": sum(part["bits_per_second"] for part in received) / 1e9,
        "retransmits": sum(part.get("retransmits", 0) for part in sent),
        "cpu_per_gb": end["cpu"] / max(sum(part["bytes"] for part in received) / 1e9, 1e-9),
    }


def tcp6(contender: Tunnel, seconds: float, flows: int, direction: str) -> Result:
    """The same over IPv6."""
    return tcp(contender, seconds, flows, direction, server=SERVER6)


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


def udp(contender: Tunnel, seconds: float, size: int, direction: str) -> Result:
    """The loss-free rate of datagrams of `size` bytes: Gbit/s of payload, and datagrams a second."""

    def offer(rate: float) -> tuple[float, float]:
        options = ["-u", "-l", str(size), "-b", f"{rate:.0f}", "-w", "2M", *DIRECTIONS[direction]]
        total = iperf(contender, seconds, *options)["sum"]
        lost = total["lost_packets"] / max(total["packets"], 1)
        return total["bits_per_second"] * (1 - lost), lost

    rate = search(offer)
    return {"gbit": rate / 1e9, "packets": rate / 8 / size}


def ping(contender: Tunnel, seconds: float, control: str) -> Result:
    """Round trips in ms: alone, and beside a TCP download with that congestion control, which fills the tunnel. 50th
    and 99th percentile; of few pings the latter is the longest but one or so."""

    def round_trips() -> list[float]:
        count = max(10, round(seconds * PINGS_PER_SECOND))
        command = ["ping", "-i", str(1 / PINGS_PER_SECOND), "-c", str(count), SERVER]
        times = re.findall(r"time=([\d.]+)", contender.client.run(command, limit=seconds + 30))
        return sorted(map(float, times))

    idle = statistics.median(round_trips())
    # Longer than the pings; ended when they are through.
    command = ["iperf3", "-c", SERVER, "-p", str(IPERF_PORT), "-R", "-C", control, "-t", f"{seconds + 30:g}"]
    download = contender.client.popen([*command, "--forceflush"], stdout=subprocess.PIPE)
    assert download.stdout is not None
    try:
        while "bits/sec" not in (line := download.stdout.readline()):  # the first second is over
            if not line:
                raise BenchError(f"{contender.name}: the download beside the pings did not start.")
        loaded = round_trips()
    finally:
        # By SIGINT it tells the server, which is then ready for the next.
        download.send_signal(signal.SIGINT)
        download.communicate()
    p99 = loaded[math.ceil(0.99 * len(loaded)) - 1]
    return {"idle": idle, "p50": statistics.median(loaded), "p99": p99, "longest": loaded[-1]}
