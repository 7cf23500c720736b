"""What it costs the client to be watched: its processor time with and without a page and a scraper.

    python bench/watching.py [STREAMS] [SECONDS]        default: 300 streams, 10 s each

An exit and a client as processes of their own, with so many open streams. Then the client's processor time is read for
some seconds in which nobody looks, and for as many in which one page is open (server-sent events) and Prometheus asks
every second, which is fifteen times as often as it does by default. What is spent on that is not there for data: as a
share of one core, it is the most that throughput can lose.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.applications import through  # noqa: E402
from tests.support.background import Background  # noqa: E402
from tests.support.programs import Client, World, free_port  # noqa: E402
from tests.support.targets import TcpTarget, echo  # noqa: E402


def spent(client: Client) -> float:
    """Seconds of processor time so far (proc_pid_stat(5), fields 14 and 15, in hundredths of a second)."""
    fields = Path(f"/proc/{client.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def watch(url: str, seconds: float) -> tuple[int, int]:
    """One page and one scraper; how many bytes of events came, and how many scrapes."""
    received = scrapes = 0
    end = time.monotonic() + seconds
    async with aiohttp.ClientSession() as http, http.get(url + "api/events") as events:
        while time.monotonic() < end:
            second = time.monotonic() + 1
            async with http.get(url + "metrics") as answer:
                await answer.read()
                scrapes += 1
            while (left := second - time.monotonic()) > 0:
                try:
                    async with asyncio.timeout(left):
                        received += len(await events.content.readany())
                except TimeoutError:
                    break
    return received, scrapes


def main(streams: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as directory:
        background, world = Background(), World(Path(directory))
        target = TcpTarget(background, echo)
        try:
            admin = f"127.0.0.1:{free_port()}"
            client = world.client(world.exit(), {"admin": admin, "log_level": "info"})
            sockets = [through(client.port, target.port) for _ in range(streams)]
            asyncio.run(watch(f"http://{admin}/", 2))  # the first request loads the page and the metrics
            start = spent(client)
            time.sleep(seconds)
            alone = spent(client) - start
            start = spent(client)
            received, scrapes = asyncio.run(watch(f"http://{admin}/", seconds))
            watched = spent(client) - start
            for sock in sockets:
                sock.close()
        finally:
            target.close()
            world.close()
            background.close()
    print(f"{streams} streams, {seconds:g} s: {received >> 10} KiB of events and {scrapes} scrapes")
    print(f"processor time alone {alone / seconds:.2%}, watched {watched / seconds:.2%} of a core")


if __name__ == "__main__":
    given = [*sys.argv[1:], *("300", "10")[len(sys.argv) - 1 :]]
    main(int(given[0]), float(given[1]))
