"""Fifty kills, with everything in between that a person or another program may do; a capture is the judge.

Programs send all the time, from sockets that they keep for the whole test and from new ones. What may leave the host is
the link, and what the present settings let past the tunnel. Two times are judged apart: while a pause lasts, all may
leave; from a flush of the packet filter to its repair, so may what is sent by sockets that have opened the outer
interface by name, and nothing else. What such an interval has let out must not go on behind it.
"""

from __future__ import annotations

import json
import random
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Self

import pytest

from cryprq_proxy.process.control import query
from tests.support.config_files import Settings
from tests.support.lab.capture import Capture, Packet, leaving
from tests.support.lab.flows import Flow
from tests.support.lab.hosts import EXIT4, ROUTER_LAN4, SERVER4, SERVER6, ThreeHosts
from tests.support.lab.links import PORT, READY, Links, Role
from tests.support.lab.net import Namespace, until
from tests.support.lab.noise import Noise
from tests.support.lab.questions import CLEAR_DNS, questions
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
    "after flushes": 3,
}
"""When the client is killed, and how often."""
PARTS: Final = 2
"""Tests on hosts of their own, which may run beside each other; each ends with a `cleanup`."""
REPAIR: Final = 2.0
"""Seconds that a repair of the filter may take; on a machine that is busy, as long as a start takes there."""
PAUSE: Final = 1
LONG_PAUSE: Final = 60
FLUSHES: Final = 3
"""One after the other, each time."""
SEED: Final = 20240607
ASKED: Final = (ROUTER_LAN4, SERVER4, SERVER6)
"""Name servers, each of which some of the settings let past the tunnel, but for questions."""
WEB: Final = 443


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


@dataclass(frozen=True)
class Allowed:
    """What may leave beside the link."""

    destinations: frozenset[str]
    bound_ports: frozenset[int] = frozenset()
    """Source ports of sockets that have opened the outer interface by name."""
    everything: bool = False

    def __contains__(self, packet: Packet) -> bool:
        with_ports = packet.protocol in ("tcp", "udp")
        if self.everything or (packet.protocol == "udp" and packet.source_port in self.bound_ports):
            return True
        if with_ports and (packet.destination, packet.destination_port) == (EXIT4, PORT):
            return True
        # No setting lets questions for names past the tunnel.
        asks = with_ports and packet.destination_port in CLEAR_DNS
        return packet.destination in self.destinations and not asks


class Judge:
    """Watches the outer interface without a gap; `allow` says what may leave from now on. A context manager.

    Allow more before it can leave, and less when it can no longer.
    """

    def __init__(self, host: Namespace, allowed: Allowed) -> None:
        self._allowed = allowed
        self._capture = Capture(host, "eth0")
        self.seen = 0
        """Packets that were judged."""
        self.story: list[str] = []
        """What has happened, for a failure."""

    def allow(self, allowed: Allowed) -> None:
        if allowed != self._allowed:
            self._condemn(self._capture.take())
            self._allowed = allowed

    def _condemn(self, packets: list[Packet]) -> None:
        if self._allowed.everything:
            return
        sent = leaving(packets)
        self.seen += len(sent)
        strangers = {
            (packet.protocol, packet.source_port, packet.destination, packet.destination_port)
            for packet in sent
            if packet not in self._allowed
        }
        story = ", ".join(self.story)
        assert strangers == set(), f"left though only {self._allowed} may, after: {story}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        packets = self._capture.stop()
        if kind is None:
            self._condemn(packets)


def standing(host: Namespace) -> bool:
    return not host.attempt(["nft", "list", "table", "inet", "cryprq"]).returncode


def is_paused(host: Namespace) -> bool:
    """Whether the kernel still holds the filter open."""
    listed = host.run(["nft", "list", "set", "inet", "cryprq", "open"])
    return "elements" in listed


class Client:
    """The client's host through all its runs."""

    def __init__(
        self,
        host: Namespace,
        links: Links,
        judge: Judge,
        bound_ports: frozenset[int],
    ) -> None:
        self.host = host
        self._links = links
        self._judge = judge
        self._bound_ports = bound_ports
        self.run = Run()
        self.role: Role | None = None
        self.starts: list[float] = []
        """Seconds of each start until the filter was up."""
        self.repairs: list[float] = []
        """Seconds of each repair after a flush."""

    def start(self, run: Run, ready: str) -> None:
        """Until its filter is up, that of the run before may stand."""
        self._judge.story.append(f"start {run.options} {run.direct}")
        self._judge.allow(Allowed(self.run.passed | run.passed))
        begun = time.monotonic()
        self.role = self._links.client(self.host, *run.options, settings=run.settings, ready=CLOSED)
        self.starts.append(time.monotonic() - begun)
        self.run = run
        self._judge.allow(Allowed(run.passed))
        self.role.says(ready)

    def kill(self) -> None:
        assert self.role is not None
        assert self.role.kill() == -signal.SIGKILL
        assert standing(self.host)

    def ask(self, command: str, argument: str = "") -> None:
        query(self._links.directory / "client.sock", command, timeout=20.0, argument=argument)

    # --- what comes before the kill ---

    def pause(self) -> None:
        """Cut short when the kernel has been asked: on a busy machine a short pause is over before that."""
        self._judge.allow(Allowed(frozenset(), everything=True))
        self.ask("pause", str(LONG_PAUSE))
        assert is_paused(self.host)
        self.ask("pause", str(PAUSE))

    def pause_ends(self) -> None:
        until(lambda: not is_paused(self.host), "the end of the pause")
        self._judge.allow(Allowed(self.run.passed))

    def whole_pause(self) -> None:
        self.pause()
        self.pause_ends()

    def reload(self) -> None:
        """Rules that let the other family past."""
        direct = () if self.run.direct else (SERVER4,)
        run = replace(self.run, direct=direct, passed=(self.run.passed - {SERVER4}) | frozenset(direct))
        self._judge.allow(Allowed(self.run.passed | run.passed))
        file = self._links.directory / "client.toml"
        head = file.read_text().partition("[[rule]]")[0].rstrip()
        rule = f'\n\n[[rule]]\nto = "direct"\ncidrs = {json.dumps(list(direct))}\n' if direct else "\n"
        file.write_text(head + rule)
        self.ask("reload")
        self.run = run
        self._judge.allow(Allowed(run.passed))

    def flushes(self) -> None:
        with questions(self.host, ASKED, (*CLEAR_DNS, WEB)):
            for _ in range(FLUSHES):
                self._judge.allow(Allowed(self.run.passed, self._bound_ports))
                since = time.monotonic()
                self.host.run(["nft", "flush", "ruleset"])
                until(lambda: standing(self.host), "the repair of the filter")
                self.repairs.append(time.monotonic() - since)
                self._judge.allow(Allowed(self.run.passed))


BEFORE_THE_KILL: Final[dict[str, Callable[[Client], None]]] = {
    "in a pause": Client.pause,
    "after a pause": Client.whole_pause,
    "after a reload": Client.reload,
    "after flushes": Client.flushes,
}


def moments_of(part: int, chance: random.Random) -> list[str]:
    """A part of all moments, with as many of each kind as the others."""
    moments = [moment for moment, often in MOMENTS.items() for _ in range(often)]
    assert len(moments) == 50
    own = moments[part::PARTS]
    chance.shuffle(own)
    return own


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_leaves_over_fifty_kills(
    part: int, three_hosts: ThreeHosts, server: FarServer, links: Links
) -> None:
    links.exit(three_hosts.exit, {"log_level": "info"})
    host = three_hosts.client
    chance = random.Random(SEED + part)
    moments = moments_of(part, chance)
    assert set(moments) == set(MOMENTS)
    before = host.snapshot()
    ready = {"closed": CLOSED, "link up": "link up"}
    # The first filter stands before the programs begin.
    links.client(host, settings=Run().settings, ready=CLOSED).kill()
    with (
        Judge(host, Allowed(Run().passed)) as judge,
        Noise(host, "eth0", SERVER4, SERVER6, "8.8.8.8", ROUTER_LAN4, pause=0.05) as noise,
    ):
        client = Client(host, links, judge, noise.bound_ports)
        for moment in moments:
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
    starts, repairs = client.starts, client.repairs
    # A busy machine is slow at both.
    assert statistics.median(repairs) < max(REPAIR, statistics.median(starts)), repairs
    last = links.client(host, settings=Run().settings)
    with Flow(host, SERVER4) as flow:
        flow.moves()
        assert flow.finish()
    assert last.stop() == 0
    assert host.snapshot() == before
