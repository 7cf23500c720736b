"""The PAC file in Chromium: its size, the time to make it, and the time of a call of FindProxyForURL.

Run it as `python bench/pac.py`; it prints a Markdown table. Calls are timed in a page, compiled and interpreted
(--js-flags=--jitless), since browsers differ in which one they use for PAC files. The worst host is the one that takes
longest among names of many labels, names that match nothing, and addresses.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from random import Random
from typing import Final

from cryprq_proxy.address import Destination
from cryprq_proxy.rules.engine import RuleSet, load_rules
from cryprq_proxy.rules.pac.script import MAX_WILDCARDS, pac
from cryprq_proxy.rules.syntax import Rule, RuleAction, Verdict

PROXY: Final = Destination("127.0.0.1", 1080)
TUNNEL: Final = RuleAction(Verdict.TUNNEL)
DIRECT: Final = RuleAction(Verdict.DIRECT)
BLOCK: Final = RuleAction(Verdict.BLOCK)
CALLS: Final = 5_000
PATIENCE: Final = 120.0
FLAGS: Final = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--no-default-browser-check",
)  # fmt: skip

PAGE: Final = """<!doctype html><title>pac</title><script src="/proxy.pac"></script><script>
function timed(hosts) {
  const urls = hosts.map(host => "http://" + (host.includes(":") ? "[" + host + "]" : host) + "/");
  let best = Infinity;
  for (let round = 0; round < 5; round++) {
    const start = performance.now();
    for (let i = 0; i < CALLS; i++) FindProxyForURL(urls[i % urls.length], hosts[i % urls.length]);
    best = Math.min(best, (performance.now() - start) * 1000 / CALLS);
  }
  return best;
}
fetch("/hosts").then(r => r.json()).then(hosts => fetch("/done", {method: "POST", body: JSON.stringify(
  {mean: timed(hosts.many), worst: Math.max(...hosts.odd.map(host => timed([host])))})}));
</script>
""".replace("CALLS", str(CALLS))


def many_names(count: int) -> list[str]:
    random = Random(5)
    return [f"{random.randbytes(3).hex()}.{random.randbytes(2).hex()}.example" for _ in range(count)]


def configurations(directory: Path) -> dict[str, RuleSet]:
    """By what the table calls them."""
    listed = directory / "list.txt"
    listed.write_text("".join(f"ads{number}.tracker.example\n" for number in range(500_000)))
    office = Rule(
        action=DIRECT, domains=(".corp.example", "*.dev.example"), cidrs=(ip_network("10.0.0.0/8"),)
    )
    ads = Rule(action=BLOCK, lists=(listed,))
    turns = [
        Rule(action=BLOCK if number % 2 else DIRECT, domains=(f".{name}",), ports=((number % 900 + 1, 9000),))
        for number, name in enumerate(many_names(20_000))
    ]
    pattern = "a*b{}*c*.example"
    return {
        "a list of 500,000 domains": load_rules([office, ads], TUNNEL),
        "20,000 direct domains": RuleSet([Rule(action=DIRECT, domains=tuple(many_names(20_000)))], TUNNEL),
        "20,000 rules, direct and blocked in turns": RuleSet(turns, DIRECT),
        "20,000 networks": RuleSet(
            [
                Rule(
                    action=DIRECT,
                    cidrs=tuple(ip_network(f"10.{n >> 8 & 255}.{n & 255}.0/25") for n in range(10_000))
                    + tuple(ip_network(f"2001:db8:{n:x}::/49") for n in range(10_000)),
                )
            ],
            TUNNEL,
        ),
        f"{MAX_WILDCARDS} patterns": RuleSet(
            [Rule(action=DIRECT, domains=tuple(pattern.format(n) for n in range(MAX_WILDCARDS)))], TUNNEL
        ),
    }


ODD: Final = [
    ".".join(["a"] * 126),
    "a" * 63 + "." + ".".join(["ab1b2b3"] * 20) + ".c.example",
    "nowhere.test",
    "10.200.1.1",
    "2001:db8:1000::1",
    "::ffff:10.1.1.1",
]


class Server(ThreadingHTTPServer):
    """Hands out the page and the PAC file, and takes the figures."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = b""
        self.figures: queue.Queue[dict[str, float]] = queue.Queue()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        hosts = {"many": [*many_names(1000), "10.1.2.3", "2001:db8::1"], "odd": ODD}
        self._answer(
            {"/proxy.pac": self.server.script, "/hosts": json.dumps(hosts).encode()}.get(
                self.path, PAGE.encode()
            )
        )

    def do_POST(self) -> None:
        self.server.figures.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(b"")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with suppress(ConnectionError):  # the browser has gone on to the next page
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the table is the output."""


def in_chromium(program: str, server: Server, directory: Path, *flags: str) -> dict[str, float]:
    """Microseconds a call: of many hosts in the mean, and of the worst one."""
    browser = subprocess.Popen(
        [program, *FLAGS, *flags, f"--user-data-dir={directory}/profile", f"http://127.0.0.1:{server.server_port}/"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(directory)},
    )  # fmt: skip
    try:
        return server.figures.get(timeout=PATIENCE)
    finally:
        os.killpg(browser.pid, signal.SIGKILL)
        browser.wait()


def main() -> None:
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        sys.exit("Chromium is not installed; on Debian: apt-get install chromium")
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(
        "| rules | PAC file, KiB | made in, ms | a call, us | worst host, us | interpreted, us | worst host, us |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as place:
        for title, rules in configurations(Path(place)).items():
            start = time.perf_counter()
            server.script = pac(rules, PROXY, PROXY).encode("ascii")
            made = (time.perf_counter() - start) * 1e3
            compiled = in_chromium(program, server, Path(place))
            interpreted = in_chromium(program, server, Path(place), "--js-flags=--jitless")
            figures = [len(server.script) / 1024, made, *compiled.values(), *interpreted.values()]
            print(f"| {title} | {' | '.join(f'{figure:.1f}' for figure in figures)} |", flush=True)
    server.shutdown()


if __name__ == "__main__":
    main()
