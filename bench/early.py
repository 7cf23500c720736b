"""What each setting of `connect` brings on a long line: requests and pages, and a browser's visits, as root.

    .venv/bin/python bench/early.py                 both
    .venv/bin/python bench/early.py --only visits   in Chromium: needs it, and nginx
    .venv/bin/python bench/early.py --only loads    what bench/wan.py measures as page and requests

A site has 20 hosts: its own and 19 of others, as advertisements, fonts and pictures are. Most speak HTTP/2 with one
connection each, every third HTTP/1.1 with up to six. Each visit is a page of its own with 97 objects of 15 kB that no
cache has. `first` is with a client and a browser that have just started, `next` follows at once on the connections
that the browser has kept, `later` when the servers have closed those, as after some minutes. A cell is the median time
until the page is loaded; how many connections it took; and how many of these were answered early.

The hosts are namespaces (hosts.py), the line is delayline.py, each setting has its own, and the settings take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import aiohttp
from commandline import BenchError, count, not_negative, run_to_end, some_of, told_at_end
from hosts import SERVER, Wire, new_lab
from run import machine
from wan import Bench, say
from wan_groups import limit_of
from wan_proxies import NGINX, SETTINGS, SOCKS, CryprqProxy
from wan_tests import pages, requests

from tests.support.browser import find, started
from tests.support.devtools import Browser
from tests.support.lab.net import LabError, until

VISITS = ("first", "next", "later")
HOSTS = 20
RATE = 200e6
"""Bit/s."""
OTHER_ADDRESS = "93.184.20.11"
"""That of the hosts with HTTP/1.1 alone: nginx cannot choose by name."""
PICTURE = 15_000
IDLE = 4
"""Seconds after which the servers close a connection that is not used."""
TLS = """
    server {{
        listen {listen} ssl{http2};
        server_name _;
        keepalive_timeout {idle};
        root {directory};
        add_header Cache-Control no-store;
        ssl_certificate {directory}/cert.pem;
        ssl_certificate_key {directory}/key.pem;
    }}
"""
type Row = tuple[float, int, int]
"""Seconds, connections, early answers."""


def others(number: int) -> bool:
    """Whether a host speaks HTTP/1.1 only."""
    return number % 3 == 2


def page(visit: str) -> str:
    """The own host has 21 objects, each other one four."""
    hosts = [0] * 21 + [number for number in range(1, HOSTS) for _ in range(4)]
    objects = (
        f'<img src="https://h{host}.site.example/{visit}-{index}">' for index, host in enumerate(hosts)
    )
    return "<!doctype html><title>site</title>" + "".join(objects)


class Site(CryprqProxy):
    """Ours with one setting, and the site on its server."""

    def prepare(self) -> None:
        super().prepare()
        self._names()

    def _names(self) -> None:
        """The exit finds them in its list of hosts."""
        with self.exit.path("/etc/hosts").open("a") as file:
            for number in range(HOSTS):
                file.write(f"{OTHER_ADDRESS if others(number) else SERVER} h{number}.site.example\n")

    def serve_site(self) -> None:
        """nginx once more, with TLS. Raises LabError."""
        self.server.ip(f"addr add {OTHER_ADDRESS}/24 dev eth0")
        directory = self.server.directory / "site"
        directory.mkdir(mode=0o755)
        subject = ["-subj", "/CN=site.example", "-days", "2"]
        self.server.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *subject,
             "-keyout", str(directory / "key.pem"), "-out", str(directory / "cert.pem")]
        )  # fmt: skip
        for visit in VISITS:
            (directory / visit).write_text(page(visit))
            for index in range(21 + 4 * (HOSTS - 1)):
                (directory / f"{visit}-{index}").write_bytes(bytes(PICTURE))
        servers = "".join(
            TLS.format(listen=f"{address}:443", http2=http2, idle=IDLE, directory=directory)
            for address, http2 in ((SERVER, " http2"), (OTHER_ADDRESS, ""))
        )
        head, _, _ = NGINX.partition("    server {{")
        file = directory / "nginx.conf"
        form = "    default_type text/html;\n"
        file.write_text("user root;\n" + head.format(directory=directory) + form + servers + "}\n")
        log = str(directory / "nginx.log")
        self.server.popen(["nginx", "-p", str(directory), "-e", log, "-c", str(file)])
        until(lambda: f"{OTHER_ADDRESS}:443" in self.server.run(["ss", "-Hltn"]), "the site is there")

    def counts(self) -> tuple[int, int]:
        """Connections so far, and how many were answered early."""
        counts = self._links.status()["connections"]
        return counts["total"], counts["early"]

    def visits(self) -> Iterator[Row]:
        """The three, in a new browser, by a client that has just started. Raises LabError."""
        self.stop_client()
        self.start_client()
        until(self._up, "the link is up")
        with tempfile.TemporaryDirectory() as directory:
            command = [sys.executable, __file__, "--browse", directory]
            browser = self.client.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert browser.stdin is not None and browser.stdout is not None
            before = self.counts()
            for visit in VISITS:
                if visit == "later":
                    time.sleep(IDLE + 2)
                browser.stdin.write(f"https://h0.site.example/{visit}\n")
                browser.stdin.flush()
                seconds = json.loads(browser.stdout.readline() or "null")
                if seconds is None:
                    raise LabError("the browser ended")
                now = self.counts()
                yield seconds, now[0] - before[0], now[1] - before[1]
                before = now
            browser.stdin.close()
            browser.wait()

    def _up(self) -> bool:
        try:
            return bool(self._links.status()["link"] == "up")
        except Exception:  # noqa: BLE001  it is not there yet
            return False


def kinds() -> dict[str, type[Site]]:
    return {setting: type(setting.title(), (Site,), {"connect": setting}) for setting in SETTINGS}


# --- the browser, a process in the client's host ---


async def browse(directory: Path) -> None:
    """Opens each address that is read, and writes how long it took."""
    flags = (
        f"--proxy-server=socks5://127.0.0.1:{SOCKS}",
        "--ignore-certificate-errors",
        "--remote-debugging-port=0",
    )
    with started(directory, *flags, "about:blank"):
        file = directory / "profile" / "DevToolsActivePort"
        await asyncio.to_thread(
            until, lambda: file.exists() and "\n" in file.read_text(), "the browser is there"
        )
        port = int(file.read_text().splitlines()[0])
        async with aiohttp.ClientSession() as http, Browser(http, port).tab() as tab:
            while url := (await asyncio.to_thread(sys.stdin.readline)).strip():
                await tab.open(url)
                done = 'performance.getEntriesByType("navigation")[0].loadEventEnd'
                await tab.until(f"location.href === '{url}' && {done} > 0")
                shown = await tab.run("[...document.images].every(image => image.complete)")
                print(json.dumps(await tab.run(done) / 1000 if shown else None), flush=True)


# --- the tables ---


def median_of(rows: list[Row]) -> str:
    seconds, opened, early = (statistics.median(row[index] for row in rows) for index in range(3))
    return f"{seconds:.2f} s; {opened:.0f}, {early:.0f} early"


def visits_table(found: dict[str, list[list[Row]]]) -> str:
    lines = ["| `connect` | " + " | ".join(VISITS) + " |", "|---" * (1 + len(VISITS)) + "|"]
    for setting, visits in found.items():
        cells = [median_of([rows[index] for rows in visits]) for index in range(len(VISITS))]
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measure_visits(wire: Wire, rounds: int) -> None:
    """Prints the table. Raises BenchError and LabError, after that of what was measured so far."""
    found: dict[str, list[list[Row]]] = {}
    with told_at_end(found, lambda: print(visits_table(found))), ExitStack() as stack:
        lab = stack.enter_context(new_lab())
        sites = {setting: kind(lab, wire) for setting, kind in kinds().items()}
        for site in sites.values():
            stack.enter_context(site).start()
            site.serve_site()
        for _ in range(rounds):
            for setting, site in sites.items():
                visits = list(site.visits())
                found.setdefault(setting, []).append(visits)
                say(f"{setting} {visits}")


def measure_loads(wire: Wire, rounds: int) -> None:
    """The same of what bench/wan.py measures."""
    bench = Bench({**kinds()}, rounds, None, [])
    with told_at_end(bench.rows, lambda: print(bench.text())):
        bench.on_wire("", wire, [*pages()[:1], *requests("fresh")[:1]])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", type=some_of(MEASURED), default=",".join(MEASURED), help="some of %(default)s"
    )
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument(
        "--delay", type=not_negative, default=0.025, help="seconds in each direction (%(default)s)"
    )
    parser.add_argument("--browse", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(options: argparse.Namespace) -> None:
    if "visits" in options.only and find() is None:
        raise BenchError("Chromium is not installed; on Debian: apt-get install chromium nginx-light")
    wire = Wire(delay=options.delay, rate=RATE, limit=limit_of(RATE, options.delay, 1.0))
    print(
        f"{machine()}; {options.rounds} rounds, in turns; {RATE / 1e6:g} Mbit/s, {2000 * options.delay:g} ms.\n"
    )
    for name, measure in MEASURED.items():
        if name in options.only:
            measure(wire, options.rounds)


MEASURED: dict[str, Callable[[Wire, int], None]] = {"loads": measure_loads, "visits": measure_visits}


def main() -> int:
    options = arguments()
    if options.browse is not None:
        return run_to_end(lambda: asyncio.run(browse(options.browse)))
    return run_to_end(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
