"""Three hosts in a row, for what is measured between machines: namespaces of tests/lab, and the cables between them.

    client 45.83.20.2 -------- 45.83.20.1 exit 93.184.20.1 ------- 93.184.20.10 server
           2a01:e0a:20::2      2a01:e0a:20::1  2606:2800:20::1     2606:2800:20::10

The cable between client and exit is a veth, or a delay line (delayline.py). Every contender of a benchmark has hosts of
its own, so that none sees the other's routes. The addresses are ordinary public ones because an exit refuses others;
they never leave the namespaces.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from commandline import ROOT, BenchError
from line import LIMIT

sys.path.insert(0, str(ROOT))
from tests.support.lab.delay_line import DelayLine
from tests.support.lab.net import Lab, LabError, Namespace, until

CLIENT = "45.83.20.2"
EXIT = "45.83.20.1"
EXIT_OUTER = "93.184.20.1"
SERVER = "93.184.20.10"
CLIENT6 = "2a01:e0a:20::2"
EXIT6 = "2a01:e0a:20::1"
EXIT_OUTER6 = "2606:2800:20::1"
SERVER6 = "2606:2800:20::10"
CONGESTION_CONTROL = "net.ipv4.tcp_congestion_control"
NUMBERS = ("delay", "loss", "seed", "rate", "limit", "reorder", "later")
"""Options of the delay line that a Wire has."""
TICKS = os.sysconf("SC_CLK_TCK")
IPERF_PORT = 5201
"""Where iperf3 listens on the server."""
START_LIMIT = 30.0
"""Seconds until the first request or packet must have come through."""


@dataclass(frozen=True)
class Wire:
    """The cable between client and exit; with neither delay, loss nor rate it is a veth."""

    delay: float = 0.0
    """Seconds in each direction."""
    loss: float = 0.0
    """Chance of each frame, in each direction."""
    rate: float = 0.0
    """Bit/s in each direction, 0 for what the machine can do."""
    limit: int = LIMIT
    """Bytes that it holds in each direction."""
    reorder: float = 0.0
    """Chance of each frame to come `later` seconds behind its turn."""
    later: float = 0.005
    seed: int = 1
    segments: bool = False
    """Frames of one segment each also where none is lost: the queue counts what a router's would, at more CPU."""

    @property
    def is_line(self) -> bool:
        return bool(self.delay or self.loss or self.rate or self.reorder)

    @property
    def offload(self) -> bool:
        """Whether the kernel's super-packets cross whole."""
        return not (self.loss or self.reorder or self.segments)

    @property
    def options(self) -> list[str]:
        """Of the delay line."""
        numbers = {name: getattr(self, name) for name in NUMBERS}
        options = [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
        return [*options, *(["--offload"] if self.offload else [])]


def new_lab() -> Lab:
    """Where the contenders' hosts are made. Raises BenchError where none can be."""
    try:
        return Lab()
    except LabError as error:
        raise BenchError(f"The hosts cannot be made: {error}.") from error


def cpu_of(program: subprocess.Popen[str]) -> float:
    """Seconds of user and system time of a process so far. Raises BenchError if it has ended."""
    if program.poll() is not None:
        raise BenchError(
            f"The process {program.pid} ended with code {program.returncode} while it was measured."
        )
    values = Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / TICKS


class Contender:
    """Three hosts, and what subclasses put on them. A context manager; all ends with the lab at the latest."""

    name = ""

    @staticmethod
    def missing() -> str | None:
        """Why it cannot be measured here and what to do, else None."""
        return None

    def __init__(self, lab: Lab, wire: Wire, control: str | None = None) -> None:
        """`control` is the congestion control of all three hosts, with "lock" before it where programs must take that
        one; None for the machine's own."""
        self.lab = lab
        self.wire = wire
        self.control = control
        self.programs: list[subprocess.Popen[str]] = []
        """What cpu() counts."""
        self.line: DelayLine | None = None

    def start(self) -> None:
        """Makes the hosts and starts everything; returns when the server answers. Raises BenchError."""
        try:
            self._cable()
            self._serve()
            self.run()
            until(self.answers, "the server answers through it", START_LIMIT)
        except (LabError, OSError) as error:
            raise BenchError(f"{self.name} did not start: {error}.{self.said()}") from error

    def run(self) -> None:
        """Starts what is measured. Raises LabError and BenchError."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Whether the server can be reached as it will be in the tests. Raises LabError where that cannot come."""
        raise NotImplementedError

    def said(self) -> str:
        """What a person should read where it did not start."""
        return ""

    def listening(self) -> tuple[int, ...]:
        """Starts more on the server; returns the TCP ports where it will listen."""
        return ()

    def _serve(self) -> None:
        self.server.popen(["iperf3", "-s", "-p", str(IPERF_PORT)])
        ports = [f":{port} " for port in (IPERF_PORT, *self.listening())]
        until(lambda: all(port in self.server.run(["ss", "-Hltn"]) for port in ports), "the server listens")

    def _cable(self) -> None:
        """Makes the hosts. Raises LabError and BenchError."""
        lab = self.lab
        self.client, self.exit, self.server = (lab.namespace(label) for label in ("client", "exit", "server"))
        ends = (self.client, "eth0", self.exit, "eth0")
        if self.wire.is_line:
            self.line = DelayLine(lab, *ends, *self.wire.options)
        else:
            lab.veth(*ends)
        lab.veth(self.exit, "eth1", self.server, "eth0")
        lab.address(self.client, "eth0", f"{CLIENT}/24", f"{CLIENT6}/64")
        lab.address(self.exit, "eth0", f"{EXIT}/24", f"{EXIT6}/64")
        lab.address(self.exit, "eth1", f"{EXIT_OUTER}/24", f"{EXIT_OUTER6}/64")
        lab.address(self.server, "eth0", f"{SERVER}/24", f"{SERVER6}/64")
        for host, gateway in ((self.client, EXIT), (self.server, EXIT_OUTER)):
            host.ip(f"route add default via {gateway}")
        # An exit carries IPv6 where it has a default route of it.
        for host, gateway in ((self.client, EXIT6), (self.server, EXIT_OUTER6), (self.exit, SERVER6)):
            host.ip(f"-6 route add default via {gateway}")
        # Buffers that hold what 300 ms and 500 Mbit/s put in flight, with what TCP keeps beside it; the same for all.
        for host in (self.client, self.exit, self.server):
            host.sysctl("net.ipv4.tcp_rmem", "4096 131072 67108864")
            host.sysctl("net.ipv4.tcp_wmem", "4096 65536 67108864")
            if self.control:
                self._use(host, self.control)

    def _use(self, host: Namespace, control: str) -> None:
        """Makes it the host's congestion control. One that the kernel restricts can be set by routes only, and only
        routes keep programs from choosing another one."""
        words = control.split()
        try:
            host.sysctl(CONGESTION_CONTROL, words[-1])
        except PermissionError:
            host.sysctl(CONGESTION_CONTROL, "reno")
        except FileNotFoundError as error:
            raise BenchError(f"This kernel has no congestion control {words[-1]!r}.") from error
        else:
            if words[0] != "lock":
                return
        for route in host.ip("-4 route").splitlines():
            host.ip(f"route replace {route} congctl {control}")

    def tell_line(self, command: str) -> None:
        """A command for the delay line (line.py, Line.obey), from now on. Raises BenchError where there is none."""
        if self.line is None:
            raise BenchError(f"No delay line runs that could be told {command!r}.")
        try:
            self.line.tell(command)
        except LabError as error:
            raise BenchError(f"{self.name}: {error}.") from error

    def cpu(self) -> float:
        """Seconds of user and system time of `programs` so far."""
        return sum(map(cpu_of, self.programs))

    def line_cpu(self) -> float:
        """The same of the delay line; 0 for a veth."""
        return cpu_of(self.line.process) if self.line is not None else 0.0

    def stop(self) -> None:
        """Nothing that the hosts' end does not end as well."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
