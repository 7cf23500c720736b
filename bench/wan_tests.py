"""What bench/wan.py measures: each test loads one contender once, and says what its results mean.

A result has the processor time of both ends of the proxy, and which part of a core the line and the load generator
took while it was measured: where these are near 100 %, they and not the proxy may be what is seen.
"""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from hosts import Wire
from run import median
from wan_proxies import Proxy, Result

FILES = 4
"""Downloads that something small is measured beside."""


@dataclass(frozen=True)
class Test:
    """One row for each contender."""

    title: str
    measure: Callable[[Proxy], Result]
    figure: Callable[[list[Result]], str]
    value: Callable[[Result], float]
    """What the contenders' ratio is formed of."""


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


def requests() -> list[Test]:
    tests = []
    for kind, flags in (("fresh", ()), ("kept-alive", ("--kept",))):
        for where, downloads in (("alone", 0), (f"beside {FILES} downloads", FILES)):

            def one(proxy: Proxy, flags: tuple[str, ...] = flags, downloads: int = downloads) -> Result:
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


def groups(wire: Wire, only: list[str], seconds: float) -> list[tuple[str, Wire, list[Test]]]:
    """The tests that are asked for, by the line that they need, with its name where it is not the common one."""
    common: list[Test] = []
    for name, tests in (
        ("page", pages()),
        ("requests", requests()),
        ("streams", streams(seconds, 2.0, 1, 8)),
    ):
        if name in only:
            common += tests
    return [("", wire, common)] if common else []


NAMES = ("page", "requests", "streams")
