"""What happens to a line or a host of bench/wan.py while streams are open, and for how long they then stand still.

black_outs    the line is silent for 3 s; the time after that
blocks        the line takes no UDP any more, and takes it again
moves         the client loses its address and gets another one
forgotten     the exit is behind a NAT that has forgotten the flow when the server says something again
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

from run import median
from wan_proxies import MEMORY, Proxy, Result
from wan_tests import Test, loaded, quantile

BLACK_OUT = 3
"""Seconds."""
NOTABLE = 1.0
"""Seconds of silence that are the black-out's, and no other."""
AFTER = 5.0
"""Seconds that are watched after each change."""
PAUSES = 2


def black_outs() -> list[Test]:
    def told(proxy: Proxy) -> None:
        proxy.tell_line(f"blackout {BLACK_OUT}")

    def one(proxy: Proxy) -> Result:
        result = changed(proxy, 25.0, told, "--notable", str(NOTABLE))
        return {**result, "silence": result["silence"] - BLACK_OUT}

    title = f"black-out of {BLACK_OUT} s, until the download goes on"
    return [Test(title, one, silence_figure, silence, ended)]


def blocks() -> list[Test]:
    def on_and_off(proxy: Proxy) -> None:
        proxy.tell_line("udp off")
        time.sleep(AFTER)
        proxy.tell_line("udp on")

    def one(proxy: Proxy) -> Result:
        return changed(proxy, 2 * AFTER, on_and_off)

    title = f"no UDP for {AFTER:g} s, the longest time without a byte"
    return [Test(title, one, silence_figure, silence, ended)]


def moves() -> list[Test]:
    def one(proxy: Proxy) -> Result:
        return changed(proxy, 2 * AFTER, Proxy.move_client)

    return [Test("another address, the longest time without a byte", one, silence_figure, silence, ended)]


def forgotten() -> list[Test]:
    def one(proxy: Proxy) -> Result:
        with proxy.behind_nat():
            return loaded(proxy, "late", "--count", str(PAUSES), "--pause", str(MEMORY + 4))

    def figure(results: list[Result]) -> str:
        return f"{quantile(results, 1.0):.0f} ms"

    def latest(result: Result) -> float:
        return float(max(result["times"]))

    title = f"exit behind a NAT that forgets after {MEMORY} s, the server's word after {MEMORY + 4} s"
    return [Test(title, one, figure, latest)]


def changed(proxy: Proxy, seconds: float, change: Callable[[Proxy], None], *options: str) -> Result:
    """The longest silence of a download from when `change` begins."""

    def during(proxy: Proxy, load: subprocess.Popen[str]) -> None:
        assert load.stdout is not None
        if load.stdout.readline() == "flowing\n":
            change(proxy)

    return loaded(proxy, "silence", "--seconds", str(seconds), *options, during=during)


def silence_figure(results: list[Result]) -> str:
    return f"{median(results, silence):.2f} s"


def silence(result: Result) -> float:
    return float(result["silence"])


def ended(result: Result) -> str:
    return str(result["ended"])
