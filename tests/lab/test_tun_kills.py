"""Fifty kills, with everything in between that a person or another program may do; a capture is the judge.

Programs send all the time, from sockets that they keep for the whole test and from new ones. What may leave the host is
the link, and what the present settings let past the tunnel. Two times are judged apart: while a pause lasts, all may
leave; from a flush of the packet filter to its repair nothing can hold what is bound to the outer interface, so there
the judge is that the filter is back in time. What such an interval has let out must not go on behind it.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Self

import pytest

from cryprq_proxy.process.control import query
from tests.support.config_files import Settings
from tests.support.lab.capture import Capture, Packet
from tests.support.lab.flows import Flow
from tests.support.lab.hosts import EXIT4, ROUTER_LAN4, SERVER4, SERVER6, ThreeHosts
from tests.support.lab.links import PORT, READY, Links, Role
from tests.support.lab.net import Namespace, until
from tests.support.lab.noise import Noise
from tests.support.lab.server import FarServer

CLOSED: Final = "nothing gets out until the link is up"
"""The line that a client writes when its filter is up."""
MOMENTS: Final = {
    "closed": 26,
    "link up": 8,
    "ready": 2,
    "in a pause": 3,
    "after a pause": 3,
    "after a reload": 5,
    "after a flush": 3,
}
"""When the client is killed, and how often."""
CLEANUP: Final = 25
"""Kills between two calls of `cleanup`."""
REPAIR: Final = 2.0
"""Seconds."""
PAUSE: Final = 1
SEED: Final = 20240607
ANY_PORT_BUT: Final = frozenset({53, 853})
"""No setting lets questions for names past the tunnel."""


@dataclass(frozen=True)
class Run:
    """Settings of one run, and the destinations that they let past the tunnel."""

    passed: frozenset[str] = frozenset({ROUTER_LAN4})
    options: tuple[str, ...] = ()
    direct: tuple[str, ...] = ()

    @property
    def settings(self) -> Settings:
        rules = [{"to": "direct", "cidrs": list(self.direct)}] if self.direct else []
        return {"log_level": "info", "rule": rules} if rules else {"log_level": "info"}


RUNS: Final = (
    Run(),
    Run(frozenset(), ("--lan", "block")),
    Run(frozenset({ROUTER_LAN4, SERVER4}), (), (SERVER4,)),
    Run(frozenset({ROUTER_LAN4, SERVER6}), ("--exclude", f"{SERVER6}/128")),
    Run(frozenset({SERVER4}), ("--lan", "block"), (SERVER4,)),
    Run(options=("--inbound", "keep")),
)


class Judge:
    """Watches the outer interface without a gap; `allow` says what may leave from now on. A context manager.

    Allow more before it can leave, and less when it can no longer.
    """

    def __init__(self, host: Namespace, allowed: frozenset[str]) -> None:
        self._host = host
        self._allowed: frozenset[str] | None = allowed
        self._capture = Capture(host, "eth0")
        self.seen = 0
        """Packets that were judged."""
        self.story: list[str] = []
        """What has happened, for a failure."""

    def allow(self, allowed: frozenset[str] | None) -> None:
        """Only the link and these destinations; None for everything."""
        if allowed == self._allowed:
            return
        # The new one begins before the old one ends.
        before, self._capture = self._capture, Capture(self._host, "eth0")
        was, self._allowed = self._allowed, allowed
        self._condemn(before, was)

    def _condemn(self, capture: Capture, allowed: frozenset[str] | None) -> None:
        capture.stop()
        if allowed is None:
            return
        sent = capture.sent()
        self.seen += len(sent)
        strangers = {
            (packet.protocol, packet.destination, packet.destination_port)
            for packet in sent
            if not is_link(packet) and not is_passed(packet, allowed)
        }
        story = ", ".join(self.story)
        assert strangers == set(), f"left though only {sorted(allowed)} and the link may, after: {story}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._condemn(self._capture, self._allowed)
        else:
            self._capture.stop()


def is_link(packet: Packet) -> bool:
    return packet.protocol in ("tcp", "udp") and (packet.destination, packet.destination_port) == (
        EXIT4,
        PORT,
    )


def is_passed(packet: Packet, allowed: frozenset[str]) -> bool:
    asks = packet.protocol in ("tcp", "udp") and packet.destination_port in ANY_PORT_BUT
    return packet.destination in allowed and not asks


def standing(host: Namespace) -> bool:
    return not host.attempt(["nft", "list", "table", "inet", "cryprq"]).returncode


def is_paused(host: Namespace) -> bool:
    """Whether the kernel still holds the filter open."""
    listed = host.run(["nft", "list", "set", "inet", "cryprq", "open"])
    return "elements" in listed


class Client:
    """The client's host through all its runs."""

    def __init__(self, host: Namespace, links: Links, judge: Judge) -> None:
        self.host = host
        self._links = links
        self._judge = judge
        self.run = Run()
        self.role: Role | None = None

    def start(self, run: Run, ready: str) -> None:
        """Until its filter is up, that of the run before may stand."""
        self._judge.story.append(f"start {run.options} {run.direct}")
        self._judge.allow(self.run.passed | run.passed)
        self.role = self._links.client(self.host, *run.options, settings=run.settings, ready=CLOSED)
        self.run = run
        self._judge.allow(run.passed)
        self.role.says(ready)

    def kill(self) -> None:
        assert self.role is not None
        assert self.role.kill() == -signal.SIGKILL
        assert standing(self.host)

    def ask(self, command: str, argument: str = "") -> None:
        query(self._links.directory / "client.sock", command, timeout=20.0, argument=argument)

    # --- what comes before the kill ---

    def pause(self) -> None:
        self._judge.allow(None)
        self.ask("pause", str(PAUSE))
        assert is_paused(self.host)

    def pause_ends(self) -> None:
        until(lambda: not is_paused(self.host), "the end of the pause", PAUSE + 5)
        self._judge.allow(self.run.passed)

    def whole_pause(self) -> None:
        self.pause()
        self.pause_ends()

    def reload(self) -> None:
        """Rules that let the other family past."""
        direct = () if self.run.direct else (SERVER4,)
        run = replace(self.run, direct=direct, passed=(self.run.passed - {SERVER4}) | frozenset(direct))
        self._judge.allow(self.run.passed | run.passed)
        file = self._links.directory / "client.toml"
        head = file.read_text().partition("[[rule]]")[0].rstrip()
        rule = f'\n\n[[rule]]\nto = "direct"\ncidrs = {json.dumps(list(direct))}\n' if direct else "\n"
        file.write_text(head + rule)
        self.ask("reload")
        self.run = run
        self._judge.allow(run.passed)

    def flush(self) -> None:
        self._judge.allow(None)
        since = time.monotonic()
        self.host.run(["nft", "flush", "ruleset"])
        until(lambda: standing(self.host), "the repair of the filter", REPAIR)
        assert time.monotonic() - since < REPAIR
        self._judge.allow(self.run.passed)


BEFORE_THE_KILL: Final[dict[str, Callable[[Client], None]]] = {
    "in a pause": Client.pause,
    "after a pause": Client.whole_pause,
    "after a reload": Client.reload,
    "after a flush": Client.flush,
}


@pytest.mark.timeout(900)
def test_nothing_leaves_over_fifty_kills(three_hosts: ThreeHosts, server: FarServer, links: Links) -> None:
    links.exit(three_hosts.exit, {"log_level": "info"})
    host = three_hosts.client
    chance = random.Random(SEED)
    moments = [moment for moment, often in MOMENTS.items() for _ in range(often)]
    assert len(moments) == 50
    chance.shuffle(moments)
    before = host.snapshot()
    ready = {"closed": CLOSED, "link up": "link up"}
    for at in range(0, len(moments), CLEANUP):
        # The first filter stands before the programs begin.
        links.client(host, settings=Run().settings, ready=CLOSED).kill()
        with (
            Judge(host, Run().passed) as judge,
            Noise(host, "eth0", SERVER4, SERVER6, "8.8.8.8", ROUTER_LAN4, pause=0.05) as noise,
        ):
            client = Client(host, links, judge)
            for moment in moments[at : at + CLEANUP]:
                client.start(chance.choice(RUNS), ready.get(moment, READY))
                BEFORE_THE_KILL.get(moment, lambda _: None)(client)
                client.kill()
                judge.story.append(f"kill {moment}")
                if moment == "in a pause":
                    client.pause_ends()
            taken, refused = noise.stop()
        assert taken + refused and judge.seen
        done = links.call(host, "cleanup", "--state-dir", str(links.state_dir))
        assert not done.returncode and "nft_table" in done.stdout, done.stderr
        assert host.snapshot() == before
    last = links.client(host, settings=Run().settings)
    with Flow(host, SERVER4) as flow:
        flow.moves()
        assert flow.finish()
    assert last.stop() == 0
    assert host.snapshot() == before
