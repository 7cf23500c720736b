"""What bench/wan.py measures: each test loads one contender once, and says what its results mean.

A result has the processor time of both ends of the proxy, and which part of a core the line and the load generator
took while it was measured: where these are near 100 %, they and not the proxy may be what is seen.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from commandline import BenchError
from hosts import IPERF_PORT, SERVER
from run import median
from wan_proxies import Proxy, Result

FILES = 4
"""Downloads that something small is measured beside."""
SETTLE = 4.0
"""Seconds after which two flows have found their shares."""
PROBES = 20
"""Pings in a second past the proxy."""


@dataclass(frozen=True)
class Test:
    """One row for each contender."""

    title: str
    measure: Callable[[Proxy], Result]
    figure: Callable[[list[Result]], str]
    value: Callable[[Result], float]
    """What the contenders' ratio is formed of."""
    broken: Callable[[Result], str] = lambda _: ""
    """What went wrong in a round, which then takes part in no figure; "" for nothing."""


def loaded(
    proxy: Proxy,
    test: str,
    *options: str,
    during: Callable[[Proxy, subprocess.Popen[str]], None] | None = None,
) -> Result:
    """One call of the load generator, and what the processes took. Raises BenchError."""
    proxies, line = proxy.cpu(), proxy.line_cpu()
    load = proxy.load(test, *options)
    if during is not None:
        during(proxy, load)
    result = proxy.result(load)
    wall = result["wall"]
    result["proxy_cpu"] = proxy.cpu() - proxies
    result["line_share"] = (proxy.line_cpu() - line) / wall
    result["load_share"] = result["cpu"] / wall
    return result


# --- figures ---


def quantile(results: list[Result], part: float) -> float:
    """Of all requests of all rounds, in ms."""
    times = sorted(time for result in results for time in result["times"])
    return 1000 * float(times[min(int(part * len(times)), len(times) - 1)])


def page_figure(results: list[Result]) -> str:
    text = f"{median(results, page_seconds):.2f} s"
    beside = median(results, lambda result: result["beside_mbit"])
    return text + (f", downloads {beside:.0f} Mbit/s" if beside else "")


def page_seconds(result: Result) -> float:
    return float(result["page"])


def request_figure(results: list[Result]) -> str:
    return f"p50 {quantile(results, 0.5):.1f}, p99 {quantile(results, 0.99):.1f} ms"


def request_seconds(result: Result) -> float:
    return float(statistics.median(result["times"]))


def speed_figure(results: list[Result]) -> str:
    return f"{median(results, mbit):.1f} Mbit/s"


def mbit(result: Result) -> float:
    return float(result["mbit"])


# --- tests ---


def pages() -> list[Test]:
    def page(*options: str) -> Callable[[Proxy], Result]:
        return lambda proxy: loaded(proxy, "page", *options)

    beside = page("--count", "60", "--downloads", str(FILES))
    return [
        Test("page of 100 objects", page(), page_figure, page_seconds),
        Test(f"page of 60 beside {FILES} downloads", beside, page_figure, page_seconds),
    ]


def requests(kind: str, *flags: str) -> list[Test]:
    tests = []
    for where, downloads in (("alone", 0), (f"beside {FILES} downloads", FILES)):

        def one(proxy: Proxy, downloads: int = downloads) -> Result:
            return loaded(proxy, "requests", *flags, "--downloads", str(downloads))

        tests.append(Test(f"{kind} request {where}", one, request_figure, request_seconds))
    return tests


def streams(seconds: float, warm: float, *counts: int) -> list[Test]:
    tests = []
    for count in counts:

        def one(proxy: Proxy, count: int = count) -> Result:
            options = ("--downloads", str(count), "--seconds", str(seconds), "--warm", str(warm))
            return loaded(proxy, "streams", *options)

        title = f"{count} download{'s' if count > 1 else ''}"
        tests.append(Test(title, one, speed_figure, mbit))
    return tests


def cold_starts(trip: float) -> list[Test]:
    def one(proxy: Proxy) -> Result:
        proxy.stop_client()
        line = proxy.line_cpu()
        load = proxy.load("cold")
        assert load.stdout is not None
        load.stdout.readline()
        started = time.monotonic()
        proxy.start_client()
        result = proxy.result(load)
        return {
            **result,
            "trips": (result["answered"] - result["opened"]) / trip,
            "after_start": result["answered"] - started,
            "proxy_cpu": 0.0,
            "line_share": (proxy.line_cpu() - line) / result["wall"],
            "load_share": result["cpu"] / result["wall"],
        }

    def figure(results: list[Result]) -> str:
        start = median(results, lambda result: result["after_start"])
        return f"{median(results, trips):.2f} round trips, {start:.2f} s after its start"

    def trips(result: Result) -> float:
        return float(result["trips"])

    return [Test("client's port open, until the first answer", one, figure, trips)]


def shared(seconds: float) -> list[Test]:
    """One download beside a kernel's flow that the server sends past the proxy."""
    tests = []
    for control in ("reno", "cubic", "bbr"):

        def one(proxy: Proxy, control: str = control) -> Result:
            options = ["-R", "-J", "-C", control, "-t", f"{SETTLE + seconds + 1:g}", "-i", "0.5"]
            command = ["iperf3", "-c", SERVER, "-p", str(IPERF_PORT), *options]
            flow = proxy.client.popen(command, stdout=subprocess.PIPE)
            result = loaded(
                proxy, "streams", "--downloads", "1", "--seconds", str(seconds), "--warm", str(SETTLE)
            )
            report = json.loads(flow.communicate(timeout=60)[0])
            if "error" in report:
                raise BenchError(f"iperf3 failed: {report['error']}.")
            pieces = [piece["sum"] for piece in report["intervals"] if piece["sum"]["start"] >= SETTLE]
            rate = sum(piece["bytes"] for piece in pieces) * 8 / sum(piece["seconds"] for piece in pieces)
            return {**result, "kernel_mbit": rate / 1e6}

        tests.append(Test(f"1 download beside a flow of the kernel's {control}", one, share_figure, share))
    return tests


def share_figure(results: list[Result]) -> str:
    kernel = median(results, lambda result: result["kernel_mbit"])
    return f"{median(results, mbit):.0f} beside {kernel:.0f} Mbit/s"


def share(result: Result) -> float:
    """Its part of what both got."""
    return mbit(result) / (mbit(result) + float(result["kernel_mbit"]))


def queues(seconds: float) -> list[Test]:
    """What a ping past the proxy waits beside a download, beyond the shortest one without."""

    def pings(proxy: Proxy, count: int) -> list[float]:
        command = ["ping", "-n", "-i", str(1 / PROBES), "-c", str(count), SERVER]
        return [float(time) for time in re.findall(r"time=(\S+)", proxy.client.run(command, limit=60))]

    def one(proxy: Proxy) -> Result:
        alone, beside = min(pings(proxy, PROBES)), []

        def during(proxy: Proxy, load: subprocess.Popen[str]) -> None:
            time.sleep(SETTLE)
            beside.extend(pings(proxy, int(PROBES * seconds)))

        options = ("--downloads", "1", "--seconds", str(seconds), "--warm", str(SETTLE))
        result = loaded(proxy, "streams", *options, during=during)
        if not beside:
            raise BenchError(f"{proxy.name}: no ping came back beside a download.")
        return {**result, "times": [max(trip - alone, 0.0) / 1000 for trip in beside]}

    def figure(results: list[Result]) -> str:
        return f"{request_figure(results)}, at {median(results, mbit):.0f} Mbit/s"

    return [Test("queue that a ping finds beside 1 download", one, figure, request_seconds)]
